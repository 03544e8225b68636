// Vectors of 16 lanes in one register of AVX-512: see simd.hpp.

struct vec {
    __m512 v;
};
struct ivec {
    __m512i v;
};

INLINE __mmask16 first_lanes(int n) { return (__mmask16)((1u << n) - 1); }

INLINE vec zero() { return {_mm512_setzero_ps()}; }
INLINE vec set1(float x) { return {_mm512_set1_ps(x)}; }
INLINE vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
INLINE vec load(const float* p, int n) { return {_mm512_maskz_loadu_ps(first_lanes(n), p)}; }
INLINE void store(float* p, vec a) { _mm512_storeu_ps(p, a.v); }
INLINE void store(float* p, vec a, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), a.v); }
INLINE vec widen(__m256i h) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16))}; }
INLINE vec load(const bf16* p) { return widen(_mm256_loadu_si256((const __m256i*)p)); }
INLINE vec load(const bf16* p, int n) { return widen(_mm256_maskz_loadu_epi16(first_lanes(n), p)); }

INLINE vec add(vec a, vec b) { return {_mm512_add_ps(a.v, b.v)}; }
INLINE vec sub(vec a, vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
INLINE vec mul(vec a, vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
INLINE vec div(vec a, vec b) { return {_mm512_div_ps(a.v, b.v)}; }
INLINE vec fma(vec a, vec b, vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// The greater of two; a NaN in `b` stays, one in `a` is lost.
INLINE vec max(vec a, vec b) { return {_mm512_max_ps(a.v, b.v)}; }
INLINE vec min(vec a, vec b) { return {_mm512_min_ps(a.v, b.v)}; }
INLINE vec root(vec a) { return {_mm512_sqrt_ps(a.v)}; }
INLINE vec abs(vec a) { return {_mm512_abs_ps(a.v)}; }
INLINE vec round(vec a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// a · 2^n for whole n; overflows to infinity and underflows to 0.
INLINE vec scale2(vec a, vec n) { return {_mm512_scalef_ps(a.v, n.v)}; }
// Per lane: `a` where x is less than y, else `b`.  False for NaN.
INLINE vec if_less(vec x, vec y, vec a, vec b) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(x.v, y.v, _CMP_LT_OQ), b.v, a.v)};
}
INLINE bool any_greater(vec x, vec y) { return _mm512_cmp_ps_mask(x.v, y.v, _CMP_GT_OQ) != 0; }
// `a` in the first n lanes, `b` in the others.
INLINE vec first(int n, vec a, vec b) { return {_mm512_mask_blend_ps(first_lanes(n), b.v, a.v)}; }

INLINE ivec iload(const void* p) { return {_mm512_loadu_si512(p)}; }
INLINE ivec iload(const void* p, int n) { return {_mm512_maskz_loadu_epi32(first_lanes(n), p)}; }
INLINE void istore(void* p, ivec a) { _mm512_storeu_si512(p, a.v); }
INLINE ivec iset1(int32_t x) { return {_mm512_set1_epi32(x)}; }
INLINE ivec izero() { return {_mm512_setzero_si512()}; }
INLINE ivec iadd(ivec a, ivec b) { return {_mm512_add_epi32(a.v, b.v)}; }
INLINE ivec low_nibbles(ivec a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(15))}; }
INLINE ivec high_nibbles(ivec a) { return {_mm512_and_si512(_mm512_srli_epi16(a.v, 4), _mm512_set1_epi8(15))}; }
INLINE ivec join_nibbles(ivec low, ivec high) { return {_mm512_or_si512(low.v, _mm512_slli_epi16(high.v, 4))}; }
INLINE ivec join_bytes(ivec a, ivec b, ivec c, ivec d) {
    __m512i low = _mm512_or_si512(a.v, _mm512_slli_epi32(b.v, 8));
    return {_mm512_or_si512(low, _mm512_or_si512(_mm512_slli_epi32(c.v, 16), _mm512_slli_epi32(d.v, 24)))};
}
INLINE ivec spread_int8(const int8_t* p) {
    __m512i x = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p));
    return {_mm512_or_si512(_mm512_and_si512(x, _mm512_set1_epi32(0xffff)), _mm512_slli_epi32(x, 16))};
}
INLINE ivec offsets_of(ivec factor) {
    return {_mm512_sub_epi16(_mm512_set1_epi16(128), _mm512_slli_epi16(factor.v, 3))};
}
INLINE ivec scale_bytes(ivec nibbles, ivec factor, ivec offset) {
    __m512i low = _mm512_set1_epi16(0xff);
    __m512i even = _mm512_mullo_epi16(_mm512_and_si512(nibbles.v, low), factor.v);
    __m512i odd = _mm512_mullo_epi16(_mm512_srli_epi16(nibbles.v, 8), factor.v);
    even = _mm512_and_si512(_mm512_add_epi16(even, offset.v), low);
    odd = _mm512_slli_epi16(_mm512_add_epi16(odd, offset.v), 8);
    return {_mm512_or_si512(even, odd)};
}
INLINE vec to_float(ivec a) { return {_mm512_cvtepi32_ps(a.v)}; }
INLINE ivec to_int(vec a) { return {_mm512_cvtps_epi32(a.v)}; }
INLINE vec as_float(ivec a) { return {_mm512_castsi512_ps(a.v)}; }
// 16 integers, saturated to 8 bits.
INLINE void store_int8(int8_t* p, ivec a) { _mm_storeu_si128((__m128i*)p, _mm512_cvtsepi32_epi8(a.v)); }
INLINE vec load_int8(const int8_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)))};
}
// Per lane: acc + the dot product of four unsigned and four signed bytes.
INLINE ivec dot_bytes(ivec acc, ivec unsigned_, ivec signed_) {
    // not the intrinsic: around it gcc 12 copies the sums from register to register, for a quarter of the time
    asm("vpdpbusd %2, %1, %0" : "+v"(acc.v) : "v"(unsigned_.v), "v"(signed_.v));
    return acc;
}

#if defined(VARIANT_BF16)
INLINE __m256i narrow(vec a) { return (__m256i)_mm512_cvtneps_pbh(a.v); }
INLINE void store(bf16* p, vec a, vec b) { _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(b.v, a.v)); }
// Per lane: acc + the dot product of two pairs of bfloat16.
INLINE vec dot_pairs(vec acc, ivec a, ivec b) {
    return {_mm512_dpbf16_ps(acc.v, (__m512bh)a.v, (__m512bh)b.v)};
}
#else
INLINE __m256i narrow(vec a) {  // round to nearest even; a NaN stays one
    __m512i bits = _mm512_castps_si512(a.v);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}
INLINE void store(bf16* p, vec a, vec b) {
    _mm256_storeu_si256((__m256i*)p, narrow(a)), _mm256_storeu_si256((__m256i*)(p + LANES), narrow(b));
}
INLINE vec dot_pairs(vec acc, ivec a, ivec b) {
    __m512i high = _mm512_set1_epi32((int)0xffff0000);
    __m512 a0 = _mm512_castsi512_ps(_mm512_slli_epi32(a.v, 16)), a1 = _mm512_castsi512_ps(_mm512_and_si512(a.v, high));
    __m512 b0 = _mm512_castsi512_ps(_mm512_slli_epi32(b.v, 16)), b1 = _mm512_castsi512_ps(_mm512_and_si512(b.v, high));
    return {_mm512_fmadd_ps(a0, b0, _mm512_fmadd_ps(a1, b1, acc.v))};
}
#endif
INLINE vec round_to_bf16(vec a) { return widen(narrow(a)); }
INLINE void store(float* p, vec a, vec b) { store(p, a), store(p + LANES, b); }
INLINE void store(bf16* p, vec a) { _mm256_storeu_si256((__m256i*)p, narrow(a)); }
INLINE void store(bf16* p, vec a, int n) { _mm256_mask_storeu_epi16(p, first_lanes(n), narrow(a)); }

INLINE void unzip(vec& a, vec& b) {
    __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    vec evens = {_mm512_permutex2var_ps(a.v, even, b.v)};
    b.v = _mm512_permutex2var_ps(a.v, _mm512_add_epi32(even, _mm512_set1_epi32(1)), b.v);
    a = evens;
}
INLINE void zip(vec& a, vec& b) {
    __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    vec lows = {_mm512_permutex2var_ps(a.v, low, b.v)};
    b.v = _mm512_permutex2var_ps(a.v, _mm512_add_epi32(low, _mm512_set1_epi32(8)), b.v);
    a = lows;
}

INLINE float sum(vec a) { return _mm512_reduce_add_ps(a.v); }
INLINE int32_t sum(ivec a) { return _mm512_reduce_add_epi32(a.v); }
INLINE float greatest(vec a) { return _mm512_reduce_max_ps(a.v); }

INLINE void prefetch(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }
INLINE void prefetch_far(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T1); }

// Turn 16 rows of 16 words into 16 columns, in place.
INLINE void transpose(ivec* r) {
    __m512i t[16], u[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i].v, r[2 * i + 1].v);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i].v, r[2 * i + 1].v);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        u[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        u[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        u[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        u[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {  // u[i], u[4+i], u[8+i], u[12+i] hold column i of each quarter
        __m512i a = _mm512_shuffle_i32x4(u[i], u[4 + i], 0x88), b = _mm512_shuffle_i32x4(u[8 + i], u[12 + i], 0x88);
        __m512i c = _mm512_shuffle_i32x4(u[i], u[4 + i], 0xdd), d = _mm512_shuffle_i32x4(u[8 + i], u[12 + i], 0xdd);
        r[i].v = _mm512_shuffle_i32x4(a, b, 0x88);
        r[8 + i].v = _mm512_shuffle_i32x4(a, b, 0xdd);
        r[4 + i].v = _mm512_shuffle_i32x4(c, d, 0x88);
        r[12 + i].v = _mm512_shuffle_i32x4(c, d, 0xdd);
    }
}
