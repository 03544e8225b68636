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

INLINE vec sigmoid(vec x) { return div(set1(1.f), add(set1(1.f), exp(sub(zero(), x)))); }

INLINE vec activate(int32_t kind, vec x) {
    switch (kind) {
        case SILU: return div(x, add(set1(1.f), exp(sub(zero(), x))));
        case QUICK_GELU: return div(x, add(set1(1.f), exp(mul(set1(-1.702f), x))));
        case RELU: return max(zero(), x);
        case SIGMOID: return sigmoid(x);
        default: return x;
    }
}
