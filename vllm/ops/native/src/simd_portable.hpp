// Vectors of 16 lanes as arrays: see simd.hpp.  The compiler turns the loops into what the processor has.

struct vec {
    float v[LANES];
};
struct ivec {
    int32_t v[LANES];
};

INLINE float bits_to_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
INLINE uint32_t float_to_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}
INLINE float widen(bf16 h) { return bits_to_float((uint32_t)h << 16); }
INLINE bf16 narrow(float x) {  // round to nearest even; a NaN stays one
    uint32_t bits = float_to_bits(x);
    if (x != x) return (bf16)(bits >> 16 | 0x40);
    return (bf16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

#define EACH(name, parameters, expression) \
    INLINE vec name parameters {           \
        vec r;                             \
        for (int i = 0; i < LANES; i++) r.v[i] = expression; \
        return r;                          \
    }
#define IEACH(name, parameters, expression) \
    INLINE ivec name parameters {           \
        ivec r;                             \
        for (int i = 0; i < LANES; i++) r.v[i] = expression; \
        return r;                           \
    }

// A fused multiplication and addition where it is an instruction; a function call per lane would be the alternative.
INLINE float multiply_add(float x, float y, float z) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    return __builtin_fmaf(x, y, z);
#else
    return x * y + z;
#endif
}

EACH(set1, (float x), x)
INLINE vec zero() { return set1(0); }
EACH(load, (const float* p), p[i])
EACH(load, (const float* p, int n), i < n ? p[i] : 0)
EACH(load, (const bf16* p), widen(p[i]))
EACH(load, (const bf16* p, int n), i < n ? widen(p[i]) : 0)
EACH(add, (vec x, vec y), x.v[i] + y.v[i])
EACH(sub, (vec x, vec y), x.v[i] - y.v[i])
EACH(mul, (vec x, vec y), x.v[i] * y.v[i])
EACH(div, (vec x, vec y), x.v[i] / y.v[i])
EACH(max, (vec x, vec y), x.v[i] > y.v[i] ? x.v[i] : y.v[i])
EACH(min, (vec x, vec y), x.v[i] < y.v[i] ? x.v[i] : y.v[i])
EACH(fma, (vec x, vec y, vec z), multiply_add(x.v[i], y.v[i], z.v[i]))
EACH(root, (vec x), __builtin_sqrtf(x.v[i]))
EACH(abs, (vec x), __builtin_fabsf(x.v[i]))
EACH(round, (vec x), __builtin_rintf(x.v[i]))
EACH(scale2, (vec x, vec n), __builtin_ldexpf(x.v[i], n.v[i] == n.v[i] ? (int)n.v[i] : 0))
EACH(if_less, (vec x, vec y, vec p, vec q), x.v[i] < y.v[i] ? p.v[i] : q.v[i])
EACH(round_to_bf16, (vec x), widen(narrow(x.v[i])))
EACH(first, (int n, vec p, vec q), i < n ? p.v[i] : q.v[i])
EACH(to_float, (ivec x), (float)x.v[i])
EACH(as_float, (ivec x), bits_to_float((uint32_t)x.v[i]))
EACH(load_int8, (const int8_t* p), (float)p[i])

INLINE bool any_greater(vec x, vec y) {
    bool any = false;
    for (int i = 0; i < LANES; i++) any |= x.v[i] > y.v[i];
    return any;
}

INLINE void store(float* p, vec x) { memcpy(p, x.v, sizeof x.v); }
INLINE void store(float* p, vec x, int n) { memcpy(p, x.v, 4 * n); }
INLINE void store(bf16* p, vec x, int n) {
    for (int i = 0; i < n; i++) p[i] = narrow(x.v[i]);
}
INLINE void store(bf16* p, vec x) { store(p, x, LANES); }
INLINE void store(float* p, vec x, vec y) { store(p, x), store(p + LANES, y); }
INLINE void store(bf16* p, vec x, vec y) { store(p, x), store(p + LANES, y); }
INLINE void zip(vec& x, vec& y) {
    vec both[2];
    for (int i = 0; i < LANES; i++) both[i / 8].v[2 * i % LANES] = x.v[i], both[i / 8].v[2 * i % LANES + 1] = y.v[i];
    x = both[0], y = both[1];
}
INLINE void unzip(vec& x, vec& y) {
    vec both[2] = {x, y};
    for (int i = 0; i < LANES; i++) x.v[i] = both[i / 8].v[2 * i % LANES], y.v[i] = both[i / 8].v[2 * i % LANES + 1];
}

INLINE ivec iload(const void* p) {
    ivec r;
    memcpy(r.v, p, sizeof r.v);
    return r;
}
INLINE ivec iload(const void* p, int n) {
    ivec r = {};
    memcpy(r.v, p, 4 * n);
    return r;
}
INLINE void istore(void* p, ivec x) { memcpy(p, x.v, sizeof x.v); }
IEACH(iset1, (int32_t x), x)
INLINE ivec izero() { return iset1(0); }
IEACH(iadd, (ivec x, ivec y), x.v[i] + y.v[i])
IEACH(low_nibbles, (ivec x), x.v[i] & 0x0f0f0f0f)
IEACH(high_nibbles, (ivec x), (int32_t)((uint32_t)x.v[i] >> 4) & 0x0f0f0f0f)
IEACH(join_nibbles, (ivec low, ivec high), low.v[i] | (int32_t)((uint32_t)high.v[i] << 4))
IEACH(join_bytes, (ivec a, ivec b, ivec c, ivec d),
      (int32_t)((uint32_t)a.v[i] | (uint32_t)b.v[i] << 8 | (uint32_t)c.v[i] << 16 | (uint32_t)d.v[i] << 24))
IEACH(spread_int8, (const int8_t* p), (int32_t)(((uint32_t)p[i] & 0xffff) | (uint32_t)p[i] << 16))
IEACH(offsets_of, (ivec factor), (int32_t)((uint32_t)(128 - 8 * (int16_t)factor.v[i]) & 0xffff))
INLINE int32_t scale_bytes(uint32_t nibbles, int16_t factor, int32_t offset) {
    uint32_t scaled = 0;
    for (int i = 0; i < 32; i += 8) scaled |= (((nibbles >> i & 0xff) * (uint32_t)factor + (uint32_t)offset) & 0xff) << i;
    return (int32_t)scaled;
}
IEACH(scale_bytes, (ivec nibbles, ivec factor, ivec offset),
      scale_bytes((uint32_t)nibbles.v[i], (int16_t)factor.v[i], offset.v[i]))
// As the processors' instruction: what does not fit, and NaN, becomes the least integer.
IEACH(to_int, (vec x), __builtin_fabsf(x.v[i]) < 2147483648.f ? (int32_t)__builtin_rintf(x.v[i]) : INT32_MIN)
INLINE void store_int8(int8_t* p, ivec x) {
    for (int i = 0; i < LANES; i++) p[i] = (int8_t)(x.v[i] < -128 ? -128 : x.v[i] > 127 ? 127 : x.v[i]);
}
INLINE int32_t dot_bytes(int32_t acc, uint32_t u, uint32_t s) {
    for (int i = 0; i < 32; i += 8) acc += (int32_t)(u >> i & 0xff) * (int8_t)(s >> i & 0xff);
    return acc;
}
IEACH(dot_bytes, (ivec acc, ivec u, ivec s), dot_bytes(acc.v[i], (uint32_t)u.v[i], (uint32_t)s.v[i]))
EACH(dot_pairs, (vec acc, ivec x, ivec y),
     multiply_add(bits_to_float((uint32_t)x.v[i] << 16), bits_to_float((uint32_t)y.v[i] << 16),
                  multiply_add(bits_to_float((uint32_t)x.v[i] & 0xffff0000), bits_to_float((uint32_t)y.v[i] & 0xffff0000),
                               acc.v[i])))

INLINE float sum(vec x) {
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) x.v[i] += x.v[i + half];
    return x.v[0];
}
INLINE float greatest(vec x) {
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) x.v[i] = x.v[i] > x.v[i + half] ? x.v[i] : x.v[i + half];
    return x.v[0];
}
INLINE int32_t sum(ivec x) {
    int32_t total = 0;
    for (int i = 0; i < LANES; i++) total += x.v[i];
    return total;
}

INLINE void prefetch(const void* p) { __builtin_prefetch(p); }
INLINE void prefetch_far(const void* p) { __builtin_prefetch(p, 0, 2); }

INLINE void transpose(ivec* r) {
    for (int i = 0; i < LANES; i++)
        for (int j = 0; j < i; j++) {
            int32_t kept = r[i].v[j];
            r[i].v[j] = r[j].v[i];
            r[j].v[i] = kept;
        }
}
#undef EACH
#undef IEACH
