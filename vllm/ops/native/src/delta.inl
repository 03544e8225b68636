// Delta nets: states as in recurrent.inl, of which a token overwrites a part.

// Of each token, in shared scratch: keys and queries of length 1, how much is corrected, what is left of a head's state; or of
// its rows, and what is left of them times the key.
struct DeltaScratch {
    int64_t keys, fades, stride;
    explicit DeltaScratch(const DeltaArgs& a)
        : keys(a.key_heads * a.key_width), fades(a.per_key ? a.heads * a.key_width : a.heads),
          stride(2 * keys + a.heads + 2 * fades) {}
};

INLINE void to_unit(const float* x, float* y, int64_t width, float factor) {
    float squares = sum_row(x, width, [](vec s, vec v, int) INLINE_LAMBDA { return fma(v, v, s); });
    vec scale = set1(factor / __builtin_sqrtf(squares + 1e-6f));
    for (int64_t i = 0; i < width; i += LANES) {
        int n = lanes(width - i);
        store(y + i, mul(load(x + i, n), scale), n);
    }
}

// What is left of each row of a head's state, and that times the key.
INLINE void fade_rows(const DeltaArgs& a, const float* dt, int64_t head, const float* key, float* to, float* faded_key) {
    int64_t at = head * a.key_width;
    for (int64_t i = 0; i < a.key_width; i += LANES) {
        int n = lanes(a.key_width - i);
        vec step = softplus(add(load(dt + at + i, n), load(a.dt_bias + at + i, n)));
        vec fade = exp(mul(step, set1(a.a[head])));
        store(to + at + i, fade, n), store(faded_key + at + i, mul(fade, load(key + i, n)), n);
    }
}

void delta_prepare(const Args& args, const Worker& me) {
    const DeltaArgs& a = args.delta;
    DeltaScratch size(a);
    float factor = 1.f / __builtin_sqrtf((float)a.key_width);
    int64_t end = me.rows * (me.thread + 1) / me.threads;
    for (int64_t t = me.rows * me.thread / me.threads; t < end; t++) {
        float *keys = (float*)me.shared + t * size.stride, *betas = keys + 2 * size.keys, *fades = betas + a.heads;
        const float *beta = a.beta + t * a.beta_stride, *dt = a.dt + t * a.dt_stride;
        for (int64_t head = 0; head < a.key_heads; head++) {
            int64_t at = head * a.key_width;
            to_unit(a.k + t * a.k_stride + at, keys + at, a.key_width, 1);
            to_unit(a.q + t * a.q_stride + at, keys + size.keys + at, a.key_width, factor);
        }
        for (int64_t i = 0; i < a.heads; i += LANES) {
            int n = lanes(a.heads - i);
            store(betas + i, mul(sigmoid(load(beta + i, n)), set1(a.strength)), n);
            if (a.per_key) continue;
            vec step = softplus(add(load(dt + i, n), load(a.dt_bias + i, n)));
            store(fades + i, exp(mul(step, load(a.a + i, n))), n);
        }
        if (!a.per_key) continue;
        for (int64_t head = 0; head < a.heads; head++)
            fade_rows(a, dt, head, keys + head / (a.heads / a.key_heads) * a.key_width, fades, fades + size.fades);
    }
}

// What a token does to a head's state: it fades, and gets what is corrected in the place of the key.
struct DeltaToken {
    const float *key, *query, *fades, *faded_key;
    float beta;
    DeltaToken(const DeltaArgs& a, const char* shared, int64_t token, int64_t head) {
        DeltaScratch size(a);
        const float* scratch = (const float*)shared + token * size.stride;
        key = scratch + head / (a.heads / a.key_heads) * a.key_width, query = key + size.keys;
        beta = scratch[2 * size.keys + head];
        fades = scratch + 2 * size.keys + a.heads + head * (a.per_key ? a.key_width : 1), faded_key = fades + size.fades;
    }
};

// The tokens of a row, V vectors of lanes from `lane` on, of which the last has n lanes.
template <int V, bool PER_KEY>
INLINE void delta_lanes(const DeltaArgs& a, const Worker& me, const Run& run, int64_t head, int64_t lane, int n) {
    int64_t matrix = a.key_width * a.width;
    Places places{a.memory + head * matrix + lane, a.heads * matrix, a.width, a.key_width, (V - 1) * LANES + n, (float*)me.own};
    Rows from = places.begin(run.reads());
    DeltaToken now(a, me.shared, run.first, head);
    vec known[V], y[V], change[V];
    UNROLL(4) for (int v = 0; v < V; v++) known[v] = zero();
    for (int64_t i = 0; i < a.key_width; i++)
        UNROLL(4) for (int v = 0; v < V; v++) {
            vec s = some(from.p + i * from.stride + v * LANES, n);
            known[v] = fma(s, set1(PER_KEY ? now.faded_key[i] : now.key[i]), known[v]);
        }
    for (int64_t t = 0; t < run.count;) {
        int64_t border = run.border(t), leaves = run.leaves(border);
        for (; t < border; t++) {
            bool is_last = t + 1 == run.count;
            Rows to = is_last && leaves ? places.at(leaves) : places.own();
            DeltaToken next(a, me.shared, run.first + (is_last ? t : t + 1), head);
            const float* v_ = a.v + (run.first + t) * a.v_stride + head * a.width + lane;
            vec fade = set1(now.fades[0]);
            UNROLL(4) for (int v = 0; v < V; v++) {
                vec faded = PER_KEY ? known[v] : mul(fade, known[v]);
                change[v] = mul(sub(some(v_ + v * LANES, n), faded), set1(now.beta));
                known[v] = y[v] = zero();
            }
            for (int64_t i = 0; i < a.key_width; i++)  // what the next token finds is added up on the way
                UNROLL(4) for (int v = 0; v < V; v++) {
                    vec s = some(from.p + i * from.stride + v * LANES, n);
                    s = fma(change[v], set1(now.key[i]), mul(PER_KEY ? set1(now.fades[i]) : fade, s));
                    y[v] = fma(s, set1(now.query[i]), y[v]);
                    known[v] = fma(s, set1(PER_KEY ? next.faded_key[i] : next.key[i]), known[v]);
                    put(to.p + i * to.stride + v * LANES, s, n);
                }
            float* out = a.y + ((run.first + t) * a.heads + head) * a.width + lane;
            UNROLL(4) for (int v = 0; v < V; v++) put(out + v * LANES, y[v], n);
            now = next, from = to;
        }
        if (leaves && t < run.count) places.keep(leaves);
    }
}

template <bool PER_KEY>
INLINE void delta(const DeltaArgs& a, const Worker& me) {
    int64_t tiles = (a.width + STATE_LANES - 1) / STATE_LANES, items = a.heads * tiles;
    for (int64_t item; (item = me.take(1)) < a.plan->num_rows * items;) {
        int64_t head = item % items / tiles, lane = item % tiles * STATE_LANES, end = std::min(a.width, lane + STATE_LANES);
        Run run(*a.plan, item / items);
        if (lane + STATE_LANES <= end) {
            delta_lanes<VECTORS, PER_KEY>(a, me, run, head, lane, LANES);
            continue;
        }
        for (; lane < end; lane += LANES) delta_lanes<1, PER_KEY>(a, me, run, head, lane, lanes(end - lane));
    }
}

void delta_run(const Args& args, const Worker& me) {
    const DeltaArgs& a = args.delta;
    a.per_key ? delta<true>(a, me) : delta<false>(a, me);
}

int64_t delta_shared(const DeltaArgs& a) { return DeltaScratch(a).stride * 16 * 4; }
int64_t delta_own(const DeltaArgs& a) { return a.key_width * STATE_LANES * 4; }
