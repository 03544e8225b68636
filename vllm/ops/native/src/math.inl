// Functions of 16 lanes at a time.  Polynomials are evaluated the same way for every lane: no special cases, no tails.

// e^x, relative error about 1e-7; 0 below -88, infinity above 89, NaN for NaN.
INLINE vec exp(vec x) {
    x = max(set1(-105.f), min(set1(90.f), x));  // a NaN stays: it is the second operand
    vec n = round(mul(x, set1(1.44269504f)));
    vec r = fma(n, set1(-0.693359375f), x);
    r = fma(n, set1(2.12194440e-4f), r);
    vec p = set1(1.f / 5040);
    p = fma(p, r, set1(1.f / 720));
    p = fma(p, r, set1(1.f / 120));
    p = fma(p, r, set1(1.f / 24));
    p = fma(p, r, set1(1.f / 6));
    p = fma(p, r, set1(.5f));
    p = fma(p, r, set1(1.f));
    p = fma(p, r, set1(1.f));
    return scale2(p, n);
}

// 2^x, relative error about 1e-7, exactly 1 for 0; 0 below -150, infinity from 128 on, NaN for NaN.
INLINE vec exp2(vec x) {
    x = max(set1(-200.f), min(set1(200.f), x));
    vec n = round(x), r = sub(x, n);
    vec p = set1(1.55946775e-4f);
    p = fma(p, r, set1(1.34066439e-3f));
    p = fma(p, r, set1(9.61769297e-3f));
    p = fma(p, r, set1(5.55031055e-2f));
    p = fma(p, r, set1(2.40226528e-1f));
    p = fma(p, r, set1(6.93147215e-1f));
    return scale2(fma(p, r, set1(1.f)), n);
}

// The same for x ≤ 128 with a relative error of 8e-5, for results that become bfloat16.
INLINE vec exp2_coarse(vec x) {
    x = max(set1(-200.f), x);
    vec n = round(x), r = sub(x, n);
    vec p = set1(5.51716691e-2f);
    p = fma(p, r, set1(2.42611122e-1f));
    p = fma(p, r, set1(6.93260985e-1f));
    return scale2(fma(p, r, set1(9.99928074e-1f)), n);
}

INLINE vec sigmoid(vec x) { return div(set1(1.f), add(set1(1.f), exp(sub(zero(), x)))); }

// Error below 3e-7, relative too.
INLINE vec tanh(vec x) {
    vec size = abs(x), z = mul(x, x);
    vec p = set1(-5.71704451e-3f);
    p = fma(p, z, set1(2.06505868e-2f));
    p = fma(p, z, set1(-5.37434979e-2f));
    p = fma(p, z, set1(1.33314913e-1f));
    p = fma(p, z, set1(-3.33332839e-1f));
    vec near = fma(mul(p, z), x, x);
    vec far = sub(set1(1.f), div(set1(2.f), add(exp(add(size, size)), set1(1.f))));
    return if_less(size, set1(.625f), near, if_less(x, zero(), sub(zero(), far), far));
}

// A quotient of polynomials in x², fitted where the function is not yet 1; 4e-7 off at most.
INLINE vec erf(vec x) {
    vec end = set1(3.92f), one = set1(1.f);
    vec z = mul(x, x);
    vec p = set1(2.03477134e-6f);
    p = fma(p, z, set1(2.87477946e-4f));
    p = fma(p, z, set1(3.86820920e-3f));
    p = fma(p, z, set1(5.30601144e-2f));
    p = fma(p, z, set1(1.92761138e-1f));
    p = fma(p, z, set1(1.12837899f));
    vec q = set1(3.80709462e-5f);
    q = fma(q, z, set1(1.18808891e-3f));
    q = fma(q, z, set1(1.51720559e-2f));
    q = fma(q, z, set1(1.15083426e-1f));
    q = fma(q, z, set1(5.04161775e-1f));
    q = fma(q, z, one);
    vec y = div(mul(x, p), q);
    return if_less(x, sub(zero(), end), sub(zero(), one), if_less(end, x, one, y));
}

INLINE vec gelu(vec x) { return mul(mul(x, set1(.5f)), add(set1(1.f), erf(mul(x, set1(.70710678f))))); }

INLINE vec gelu_tanh(vec x) {
    vec inner = mul(set1(.79788456f), fma(mul(mul(x, x), x), set1(.044715f), x));
    return mul(mul(x, set1(.5f)), add(set1(1.f), tanh(inner)));
}

INLINE vec activate(int32_t kind, vec x) {
    switch (kind) {
        case SILU: return div(x, add(set1(1.f), exp(sub(zero(), x))));
        case GELU: return gelu(x);
        case GELU_TANH: return gelu_tanh(x);
        case QUICK_GELU: return div(x, add(set1(1.f), exp(mul(set1(-1.702f), x))));
        case RELU: return max(zero(), x);
        case RELU_SQUARED: return mul(max(zero(), x), max(zero(), x));
        case SIGMOID: return sigmoid(x);
        case TANH: return tanh(x);
        default: return x;
    }
}

template <int KIND>
INLINE void activate_each(vec* x, int count) {
    for (int i = 0; i < count; i++) x[i] = activate(KIND, x[i]);
}

INLINE void activate_all(int32_t kind, vec* x, int count) {
    switch (kind) {
        case SILU: return activate_each<SILU>(x, count);
        case GELU: return activate_each<GELU>(x, count);
        case GELU_TANH: return activate_each<GELU_TANH>(x, count);
        case QUICK_GELU: return activate_each<QUICK_GELU>(x, count);
        case RELU: return activate_each<RELU>(x, count);
        case RELU_SQUARED: return activate_each<RELU_SQUARED>(x, count);
        case SIGMOID: return activate_each<SIGMOID>(x, count);
        case TANH: return activate_each<TANH>(x, count);
    }
}
