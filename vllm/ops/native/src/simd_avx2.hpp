// Vectors of 16 lanes in two registers of AVX2, with FMA: see simd.hpp.

struct vec {
    __m256 a, b;
};
struct ivec {
    __m256i a, b;
};

INLINE __m256i lanes_below(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

INLINE vec zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
INLINE vec set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
INLINE vec load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
INLINE vec load(const float* p, int n) {
    return {_mm256_maskload_ps(p, lanes_below(n)), _mm256_maskload_ps(p + 8, lanes_below(n - 8))};
}
INLINE void store(float* p, vec x) { _mm256_storeu_ps(p, x.a), _mm256_storeu_ps(p + 8, x.b); }
INLINE void store(float* p, vec x, int n) {
    _mm256_maskstore_ps(p, lanes_below(n), x.a), _mm256_maskstore_ps(p + 8, lanes_below(n - 8), x.b);
}
INLINE __m256 widen(__m128i h) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16)); }
INLINE vec load(const bf16* p) {
    return {widen(_mm_loadu_si128((const __m128i*)p)), widen(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
INLINE vec load(const bf16* p, int n) {
    bf16 copy[LANES] = {};
    memcpy(copy, p, 2 * n);
    return load(copy);
}

#define EACH(name, instruction) \
    INLINE vec name(vec x, vec y) { return {instruction(x.a, y.a), instruction(x.b, y.b)}; }
EACH(add, _mm256_add_ps)
EACH(sub, _mm256_sub_ps)
EACH(mul, _mm256_mul_ps)
EACH(div, _mm256_div_ps)
EACH(max, _mm256_max_ps)
EACH(min, _mm256_min_ps)
#undef EACH
INLINE vec fma(vec x, vec y, vec z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
INLINE vec root(vec x) { return {_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)}; }
INLINE vec abs(vec x) {
    __m256 sign = _mm256_set1_ps(-0.f);
    return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
INLINE vec round(vec x) {
    return {_mm256_round_ps(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
            _mm256_round_ps(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// In two halves, each of which is a normal number's exponent for |n| up to 250.
INLINE __m256 scale2(__m256 x, __m256 n) {
    __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1), rest = _mm256_sub_epi32(whole, half);
    __m256i bias = _mm256_set1_epi32(127);
    __m256 one = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
    __m256 other = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
    return _mm256_mul_ps(_mm256_mul_ps(x, one), other);
}
INLINE vec scale2(vec x, vec n) { return {scale2(x.a, n.a), scale2(x.b, n.b)}; }
INLINE vec if_less(vec x, vec y, vec p, vec q) {
    return {_mm256_blendv_ps(q.a, p.a, _mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ)),
            _mm256_blendv_ps(q.b, p.b, _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ))};
}
INLINE bool any_greater(vec x, vec y) {
    __m256 a = _mm256_cmp_ps(x.a, y.a, _CMP_GT_OQ), b = _mm256_cmp_ps(x.b, y.b, _CMP_GT_OQ);
    return _mm256_movemask_ps(_mm256_or_ps(a, b)) != 0;
}
INLINE vec first(int n, vec p, vec q) {
    return {_mm256_blendv_ps(q.a, p.a, _mm256_castsi256_ps(lanes_below(n))),
            _mm256_blendv_ps(q.b, p.b, _mm256_castsi256_ps(lanes_below(n - 8)))};
}

INLINE ivec iload(const void* p) {
    return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)p + 1)};
}
INLINE ivec iload(const void* p, int n) {
    return {_mm256_maskload_epi32((const int*)p, lanes_below(n)),
            _mm256_maskload_epi32((const int*)p + 8, lanes_below(n - 8))};
}
INLINE void istore(void* p, ivec x) {
    _mm256_storeu_si256((__m256i*)p, x.a), _mm256_storeu_si256((__m256i*)p + 1, x.b);
}
INLINE ivec iset1(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
INLINE ivec izero() { return iset1(0); }
INLINE ivec iadd(ivec x, ivec y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
INLINE ivec low_nibbles(ivec x) {
    __m256i mask = _mm256_set1_epi8(15);
    return {_mm256_and_si256(x.a, mask), _mm256_and_si256(x.b, mask)};
}
INLINE ivec high_nibbles(ivec x) { return low_nibbles({_mm256_srli_epi16(x.a, 4), _mm256_srli_epi16(x.b, 4)}); }
INLINE ivec join_nibbles(ivec low, ivec high) {
    return {_mm256_or_si256(low.a, _mm256_slli_epi16(high.a, 4)), _mm256_or_si256(low.b, _mm256_slli_epi16(high.b, 4))};
}
INLINE __m256i join_bytes(__m256i a, __m256i b, __m256i c, __m256i d) {
    __m256i low = _mm256_or_si256(a, _mm256_slli_epi32(b, 8));
    return _mm256_or_si256(low, _mm256_or_si256(_mm256_slli_epi32(c, 16), _mm256_slli_epi32(d, 24)));
}
INLINE ivec join_bytes(ivec a, ivec b, ivec c, ivec d) {
    return {join_bytes(a.a, b.a, c.a, d.a), join_bytes(a.b, b.b, c.b, d.b)};
}
INLINE __m256i spread_int8(__m128i bytes) {
    __m256i x = _mm256_cvtepi8_epi32(bytes);
    return _mm256_or_si256(_mm256_and_si256(x, _mm256_set1_epi32(0xffff)), _mm256_slli_epi32(x, 16));
}
INLINE ivec spread_int8(const int8_t* p) {
    __m128i bytes = _mm_loadu_si128((const __m128i*)p);
    return {spread_int8(bytes), spread_int8(_mm_srli_si128(bytes, 8))};
}
INLINE ivec offsets_of(ivec factor) {
    __m256i middle = _mm256_set1_epi16(128);
    return {_mm256_sub_epi16(middle, _mm256_slli_epi16(factor.a, 3)),
            _mm256_sub_epi16(middle, _mm256_slli_epi16(factor.b, 3))};
}
INLINE __m256i scale_bytes(__m256i nibbles, __m256i factor, __m256i offset) {
    __m256i low = _mm256_set1_epi16(0xff);
    __m256i even = _mm256_mullo_epi16(_mm256_and_si256(nibbles, low), factor);
    __m256i odd = _mm256_mullo_epi16(_mm256_srli_epi16(nibbles, 8), factor);
    even = _mm256_and_si256(_mm256_add_epi16(even, offset), low);
    return _mm256_or_si256(even, _mm256_slli_epi16(_mm256_add_epi16(odd, offset), 8));
}
INLINE ivec scale_bytes(ivec nibbles, ivec factor, ivec offset) {
    return {scale_bytes(nibbles.a, factor.a, offset.a), scale_bytes(nibbles.b, factor.b, offset.b)};
}
INLINE vec to_float(ivec x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
INLINE ivec to_int(vec x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
INLINE vec as_float(ivec x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
INLINE void store_int8(int8_t* p, ivec x) {
    __m128i low = _mm_packs_epi32(_mm256_castsi256_si128(x.a), _mm256_extracti128_si256(x.a, 1));
    __m128i high = _mm_packs_epi32(_mm256_castsi256_si128(x.b), _mm256_extracti128_si256(x.b, 1));
    _mm_storeu_si128((__m128i*)p, _mm_packs_epi16(low, high));
}
INLINE vec load_int8(const int8_t* p) {
    __m128i bytes = _mm_loadu_si128((const __m128i*)p);
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
}
// Even and odd bytes apart, as 16-bit numbers: the sums of a pair's products always fit into 32 bits.
INLINE __m256i dot_bytes(__m256i acc, __m256i u, __m256i s) {
    __m256i low = _mm256_set1_epi16(0xff);
    __m256i even = _mm256_madd_epi16(_mm256_and_si256(u, low), _mm256_srai_epi16(_mm256_slli_epi16(s, 8), 8));
    __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(u, 8), _mm256_srai_epi16(s, 8));
    return _mm256_add_epi32(acc, _mm256_add_epi32(even, odd));
}
INLINE ivec dot_bytes(ivec acc, ivec u, ivec s) { return {dot_bytes(acc.a, u.a, s.a), dot_bytes(acc.b, u.b, s.b)}; }
INLINE __m256 dot_pairs(__m256 acc, __m256i x, __m256i y) {
    __m256i high = _mm256_set1_epi32((int)0xffff0000);
    __m256 x0 = _mm256_castsi256_ps(_mm256_slli_epi32(x, 16)), x1 = _mm256_castsi256_ps(_mm256_and_si256(x, high));
    __m256 y0 = _mm256_castsi256_ps(_mm256_slli_epi32(y, 16)), y1 = _mm256_castsi256_ps(_mm256_and_si256(y, high));
    return _mm256_fmadd_ps(x0, y0, _mm256_fmadd_ps(x1, y1, acc));
}
INLINE vec dot_pairs(vec acc, ivec x, ivec y) { return {dot_pairs(acc.a, x.a, y.a), dot_pairs(acc.b, x.b, y.b)}; }

INLINE __m128i narrow(__m256 x) {  // round to nearest even; a NaN stays one
    __m256i bits = _mm256_castps_si256(x);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    __m256 nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    rounded = _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(quiet), nan));
    rounded = _mm256_srli_epi32(rounded, 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
}
INLINE void store(bf16* p, vec x) {
    _mm_storeu_si128((__m128i*)p, narrow(x.a)), _mm_storeu_si128((__m128i*)(p + 8), narrow(x.b));
}
INLINE void store(bf16* p, vec x, int n) {
    bf16 copy[LANES];
    store(copy, x);
    memcpy(p, copy, 2 * n);
}

INLINE vec round_to_bf16(vec x) { return {widen(narrow(x.a)), widen(narrow(x.b))}; }
INLINE void store(float* p, vec x, vec y) { store(p, x), store(p + LANES, y); }
INLINE void store(bf16* p, vec x, vec y) { store(p, x), store(p + LANES, y); }

INLINE void zip(__m256& x, __m256& y) {  // 8 of each
    __m256 low = _mm256_unpacklo_ps(x, y), high = _mm256_unpackhi_ps(x, y);
    x = _mm256_permute2f128_ps(low, high, 0x20), y = _mm256_permute2f128_ps(low, high, 0x31);
}
INLINE void unzip(__m256& x, __m256& y) {
    __m256 low = _mm256_permute2f128_ps(x, y, 0x20), high = _mm256_permute2f128_ps(x, y, 0x31);
    x = _mm256_shuffle_ps(low, high, 0x88), y = _mm256_shuffle_ps(low, high, 0xdd);
}
INLINE void zip(vec& x, vec& y) {
    zip(x.a, y.a), zip(x.b, y.b);
    __m256 kept = y.a;
    y.a = x.b, x.b = kept;
}
INLINE void unzip(vec& x, vec& y) {
    __m256 kept = y.a;
    y.a = x.b, x.b = kept;
    unzip(x.a, y.a), unzip(x.b, y.b);
}

template <class Join>
INLINE float join_lanes(vec x, Join join) {
    float v[LANES];
    store(v, x);
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) v[i] = join(v[i], v[i + half]);
    return v[0];
}
INLINE float sum(vec x) {
    return join_lanes(x, [](float p, float q) __attribute__((always_inline)) { return p + q; });
}
INLINE float greatest(vec x) {
    return join_lanes(x, [](float p, float q) __attribute__((always_inline)) { return p > q ? p : q; });
}
INLINE int32_t sum(ivec x) {
    int32_t v[LANES], total = 0;
    istore(v, x);
    for (int i = 0; i < LANES; i++) total += v[i];
    return total;
}

INLINE void prefetch(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }
INLINE void prefetch_far(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T1); }

INLINE void transpose(__m256i* r) {  // 8 rows of 8 words
    __m256i t[8], u[8];
    for (int i = 0; i < 4; i++) {
        t[2 * i] = _mm256_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        u[4 * i] = _mm256_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        u[4 * i + 1] = _mm256_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        u[4 * i + 2] = _mm256_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        u[4 * i + 3] = _mm256_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm256_permute2x128_si256(u[i], u[4 + i], 0x20);
        r[4 + i] = _mm256_permute2x128_si256(u[i], u[4 + i], 0x31);
    }
}
INLINE void transpose(ivec* r) {
    __m256i quarter[4][8];
    for (int i = 0; i < 8; i++) {
        quarter[0][i] = r[i].a, quarter[1][i] = r[i].b;
        quarter[2][i] = r[8 + i].a, quarter[3][i] = r[8 + i].b;
    }
    for (int i = 0; i < 4; i++) transpose(quarter[i]);
    for (int i = 0; i < 8; i++) {
        r[i] = {quarter[0][i], quarter[2][i]};
        r[8 + i] = {quarter[1][i], quarter[3][i]};
    }
}
