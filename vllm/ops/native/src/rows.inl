// What happens to rows between products: norms, rotary embedding, lookups, sums.
//
// Elements are float32 or bfloat16; everything is computed in float32.  A row's sums are taken in one order, lane by lane,
// whatever stands beside it.

// Run f(row, begin, end) for pieces of all rows, cut evenly among the threads.
template <class F>
INLINE void each_piece(const Worker& me, int64_t width, F f) {
    constexpr int64_t PIECE = 1024;
    int64_t pieces = (width + PIECE - 1) / PIECE, items = me.rows * pieces;
    int64_t end = items * (me.thread + 1) / me.threads;
    for (int64_t i = items * me.thread / me.threads; i < end; i++) {
        int64_t begin = i % pieces * PIECE;
        f(i / pieces, begin, std::min(width, begin + PIECE));
    }
}

INLINE int lanes(int64_t left) { return (int)std::min<int64_t>(LANES, left); }

INLINE vec rounded(vec x, float) { return x; }
INLINE vec rounded(vec x, bf16) { return round_to_bf16(x); }

// ---- norms: [rows, heads, width], each head by itself ----

// Sum of f(x) over a row, in four chains.
template <class T, class F>
INLINE float sum_row(const T* x, int64_t width, F f) {
    vec s[4] = {zero(), zero(), zero(), zero()};
    int64_t i = 0;
    for (; i + 4 * LANES <= width; i += 4 * LANES)
        for (int j = 0; j < 4; j++) s[j] = f(s[j], load(x + i + j * LANES), LANES);
    for (; i < width; i += LANES) s[0] = f(s[0], load(x + i, lanes(width - i)), lanes(width - i));
    return sum(add(add(s[0], s[1]), add(s[2], s[3])));
}

template <class T>
INLINE void rms_row(const NormArgs& a, const T* x, const T* residual, T* y) {
    const T* weight = (const T*)a.weight;
    float squares = sum_row(x, a.width, [](vec s, vec v, int) INLINE_LAMBDA { return fma(v, v, s); });
    vec scale = set1(1.f / __builtin_sqrtf(squares / (float)a.width + a.eps));
    for (int64_t i = 0; i < a.width; i += LANES) {
        int n = lanes(a.width - i);
        vec v = mul(load(x + i, n), scale), w = load(weight + i, n);
        // where half precision is rounded differs with the offset, as in vllm/ops/norms.py
        v = a.offset != 0 ? mul(v, add(set1(a.offset), w)) : mul(w, rounded(v, T()));
        if (residual) v = add(load(residual + i, n), rounded(v, T()));
        store(y + i, v, n);
    }
}

template <class T>
INLINE void layer_row(const NormArgs& a, const T* x, const T* residual, T* y) {
    const T *weight = (const T*)a.weight, *bias = (const T*)a.bias;
    float mean = sum_row(x, a.width, [](vec s, vec v, int) INLINE_LAMBDA { return add(s, v); }) / (float)a.width;
    vec middle = set1(mean);
    float squares = sum_row(x, a.width, [middle](vec s, vec v, int n) INLINE_LAMBDA {
        v = first(n, sub(v, middle), zero());
        return fma(v, v, s);
    });
    vec scale = set1(1.f / __builtin_sqrtf(squares / (float)a.width + a.eps));
    for (int64_t i = 0; i < a.width; i += LANES) {
        int n = lanes(a.width - i);
        vec v = mul(sub(load(x + i, n), middle), scale);
        if (weight) v = mul(v, load(weight + i, n));
        if (bias) v = add(v, load(bias + i, n));
        if (residual) v = add(load(residual + i, n), rounded(v, T()));
        store(y + i, v, n);
    }
}

template <class T, class F>
INLINE void each_norm(const NormArgs& a, const Worker& me, F f) {
    int64_t items = me.rows * a.heads, end = items * (me.thread + 1) / me.threads;
    for (int64_t i = items * me.thread / me.threads; i < end; i++) {
        int64_t row = i / a.heads, at = i % a.heads * a.width;
        const T* residual = a.residual ? (const T*)a.residual + row * a.residual_stride + at : nullptr;
        f(a, (const T*)a.x + row * a.x_stride + at, residual, (T*)a.y + row * a.y_stride + at);
    }
}

void rms_norm(const Args& args, const Worker& me) {
    const NormArgs& a = args.norm;
    a.type == BFLOAT16 ? each_norm<bf16>(a, me, rms_row<bf16>) : each_norm<float>(a, me, rms_row<float>);
}

void layer_norm(const Args& args, const Worker& me) {
    const NormArgs& a = args.norm;
    a.type == BFLOAT16 ? each_norm<bf16>(a, me, layer_row<bf16>) : each_norm<float>(a, me, layer_row<float>);
}

// ---- rotary embedding, in place ----

template <class T>
INLINE void turn_halves(T* x, const float* cos, const float* sin, int64_t half) {
    for (int64_t i = 0; i < half; i += LANES) {
        int n = lanes(half - i);
        vec a = load(x + i, n), b = load(x + half + i, n), c = load(cos + i, n), s = load(sin + i, n);
        store(x + i, sub(mul(a, c), mul(b, s)), n);
        store(x + half + i, fma(b, c, mul(a, s)), n);
    }
}

template <class T>
INLINE void turn_neighbours(T* x, const float* cos, const float* sin, int64_t half) {
    for (int64_t i = 0; i < half; i += LANES) {
        int n = lanes(half - i), low = std::min(LANES, 2 * n), high = 2 * n - low;
        T* at = x + 2 * i;
        vec a = load(at, low), b = load(at + LANES, high), c = load(cos + i, n), s = load(sin + i, n);
        unzip(a, b);
        vec turned = sub(mul(a, c), mul(b, s)), other = fma(b, c, mul(a, s));
        zip(turned, other);
        store(at, turned, low);
        store(at + LANES, other, high);
    }
}

template <class T>
INLINE void rotate(const RotaryArgs& a, const Worker& me) {
    int64_t end = me.rows * (me.thread + 1) / me.threads, half = a.rotary_width / 2;
    for (int64_t row = me.rows * me.thread / me.threads; row < end; row++) {
        const float* cos = a.cos_sin + a.positions[row] * a.rotary_width;
        for (int64_t i = 0; i < a.heads + a.kv_heads; i++) {
            T* x = i < a.heads ? (T*)a.q + row * a.q_stride + i * a.width
                               : (T*)a.k + row * a.k_stride + (i - a.heads) * a.width;
            a.interleaved ? turn_neighbours(x, cos, cos + half, half) : turn_halves(x, cos, cos + half, half);
        }
    }
}

void rotary(const Args& args, const Worker& me) {
    const RotaryArgs& a = args.rotary;
    a.type == BFLOAT16 ? rotate<bf16>(a, me) : rotate<float>(a, me);
}

// ---- element by element ----

template <class T, class F>
INLINE void pair_rows(const ElementArgs& a, const Worker& me, F join) {
    each_piece(me, a.width, [&](int64_t row, int64_t begin, int64_t end) INLINE_LAMBDA {
        const T *x = (const T*)a.x + row * a.x_stride, *other = (const T*)a.other + row * a.other_stride;
        T* y = (T*)a.y + row * a.y_stride;
        for (int64_t i = begin; i < end; i += LANES) {
            int n = lanes(end - i);
            store(y + i, join(load(x + i, n), load(other + i, n)), n);
        }
    });
}

template <class T>
INLINE void copy_rows(const ElementArgs& a, const Worker& me) {
    each_piece(me, a.width, [&](int64_t row, int64_t begin, int64_t end) INLINE_LAMBDA {
        memcpy((T*)a.y + row * a.y_stride + begin, (const T*)a.x + row * a.x_stride + begin, (end - begin) * sizeof(T));
    });
}

template <class T>
INLINE void softcap_rows(const ElementArgs& a, const Worker& me) {
    each_piece(me, a.width, [&](int64_t row, int64_t begin, int64_t end) INLINE_LAMBDA {
        const T* x = (const T*)a.x + row * a.x_stride;
        T* y = (T*)a.y + row * a.y_stride;
        for (int64_t i = begin; i < end; i += LANES) {
            int n = lanes(end - i);
            store(y + i, mul(set1(a.scale), tanh(div(load(x + i, n), set1(a.scale)))), n);
        }
    });
}

template <class T>
INLINE void gather_rows(const ElementArgs& a, const Worker& me) {
    each_piece(me, a.width, [&](int64_t row, int64_t begin, int64_t end) INLINE_LAMBDA {
        const T* x = (const T*)a.x + (a.ids[row] + a.id_offset) * a.x_stride;
        T* y = (T*)a.y + row * a.y_stride;
        if (a.scale == 1) {
            memcpy(y + begin, x + begin, (end - begin) * sizeof(T));
            return;
        }
        for (int64_t i = begin; i < end; i += LANES) {
            int n = lanes(end - i);
            store(y + i, mul(load(x + i, n), set1(a.scale)), n);
        }
    });
}

void add_elements(const Args& args, const Worker& me) {
    const ElementArgs& a = args.element;
    auto join = [](vec x, vec y) INLINE_LAMBDA { return add(x, y); };
    a.type == BFLOAT16 ? pair_rows<bf16>(a, me, join) : pair_rows<float>(a, me, join);
}

void multiply_elements(const Args& args, const Worker& me) {
    const ElementArgs& a = args.element;
    auto join = [](vec x, vec y) INLINE_LAMBDA { return mul(x, y); };
    a.type == BFLOAT16 ? pair_rows<bf16>(a, me, join) : pair_rows<float>(a, me, join);
}

void copy_elements(const Args& args, const Worker& me) {
    const ElementArgs& a = args.element;
    a.type == BFLOAT16 ? copy_rows<bf16>(a, me) : copy_rows<float>(a, me);
}

void softcap(const Args& args, const Worker& me) {
    const ElementArgs& a = args.element;
    a.type == BFLOAT16 ? softcap_rows<bf16>(a, me) : softcap_rows<float>(a, me);
}

void gather(const Args& args, const Worker& me) {
    const ElementArgs& a = args.element;
    a.type == BFLOAT16 ? gather_rows<bf16>(a, me) : gather_rows<float>(a, me);
}
