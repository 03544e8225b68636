// Layers that remember in a state: convolutions over the last tokens, state spaces, delta nets.
//
// A state is a matrix whose rows are read and written whole: 16 neighbours of a row are the lanes of a vector, and a sum over
// rows is taken lane by lane, from the first row to the last.  An item is a run of lanes of a row of the step; its tokens are
// gone through in order, so that it does not matter where a step begins or who computes what beside it.
//
// Where several tokens are at hand, some are taken together: an element of the state is then loaded and stored once for all of
// them, and treated as if they came one by one.

constexpr int64_t CONV_RUN = 256;             // channels of an item
constexpr int64_t VECTORS = 4;                // of an item's lanes
constexpr int64_t STATE_LANES = VECTORS * LANES;
constexpr int64_t TOGETHER = 4;               // tokens

template <class T>
INLINE vec some(const T* p, int n) { return n == LANES ? load(p) : load(p, n); }
template <class T>
INLINE void put(T* p, vec x, int n) { n == LANES ? store(p, x) : store(p, x, n); }

// log(1 + e^x), relative error about 1e-7.
INLINE vec softplus(vec x) {
    vec u = exp(sub(zero(), abs(x)));                   // in (0, 1]
    vec s = div(u, add(set1(2.f), u)), z = mul(s, s);  // log(1 + u) = 2 artanh(s), s at most 1/3
    vec p = set1(1.f / 15);
    p = fma(p, z, set1(1.f / 13));
    p = fma(p, z, set1(1.f / 11));
    p = fma(p, z, set1(1.f / 9));
    p = fma(p, z, set1(1.f / 7));
    p = fma(p, z, set1(1.f / 5));
    p = fma(p, z, set1(1.f / 3));
    p = fma(p, z, set1(1.f));
    return fma(add(s, s), p, max(zero(), x));
}

// A row of a step, and where its states are.
struct Run {
    int64_t first, start, count, size;
    const int32_t* table;

    Run(const AttentionPlan& plan, int64_t row)
        : first(plan.first[row]), start(plan.start[row]), count(plan.count[row]), size(plan.block_size),
          table(plan.blocks + row * plan.table_width) {}

    // The block of the state before the row; 0 where a sequence begins.
    int64_t reads() const { return start ? table[(start - 1) / size] : 0; }
    // How many of the tokens stand before the end of the block that token t is in, or of the row.
    int64_t border(int64_t t) const { return std::min(count, ((start + t) / size + 1) * size - start); }
    // The block that gets the state behind the last token of such a run of tokens; 0: none.
    int64_t leaves(int64_t border) const { return table[(start + border - 1) / size]; }
};

// ---- convolution ----

template <class T, class Y>
INLINE void conv_item(const ConvArgs& a, const Run& run, int64_t begin, int64_t end, T* old) {
    int64_t before = a.kernel - 1, width = end - begin, block = before * a.channels;
    const T *x = (const T*)a.x + run.first * a.x_stride + begin, *weight = (const T*)a.weight + begin;
    const T* bias = a.bias ? (const T*)a.bias + begin : nullptr;
    T* memory = (T*)a.memory + begin;
    int64_t reads = run.reads();
    for (int64_t k = 0; k < before; k++)
        if (reads)
            memcpy(old + k * CONV_RUN, memory + reads * block + k * a.channels, width * sizeof(T));
        else
            memset((void*)(old + k * CONV_RUN), 0, width * sizeof(T));
    auto at = [&](int64_t t) INLINE_LAMBDA { return t < 0 ? old + (t + before) * CONV_RUN : x + t * a.x_stride; };
    auto weigh = [&](int64_t t, Y* y, int64_t i, int n) INLINE_LAMBDA {
        vec s = mul(some(at(t - before) + i, n), some(weight + i, n));
        for (int64_t k = 1; k <= before; k++)
            s = fma(some(at(t - before + k) + i, n), some(weight + k * a.channels + i, n), s);
        if (bias) s = add(s, some(bias + i, n));
        put(y + i, activate(a.activation, s), n);
    };
    for (int64_t t = 0; t < run.count;) {
        int64_t border = run.border(t);
        for (; t < border; t++) {
            Y* y = (Y*)a.y + (run.first + t) * a.y_stride + begin;
            int64_t i = 0;
            for (; i + LANES <= width; i += LANES) weigh(t, y, i, LANES);
            if (i < width) weigh(t, y, i, (int)(width - i));
        }
        if (int64_t leaves = run.leaves(border))
            for (int64_t k = 0; k < before; k++)
                memcpy(memory + leaves * block + k * a.channels, at(t - before + k), width * sizeof(T));
    }
}

template <class T, class Y>
INLINE void convolve(const ConvArgs& a, const Worker& me) {
    int64_t runs = (a.channels + CONV_RUN - 1) / CONV_RUN;
    for (int64_t item; (item = me.take(1)) < a.plan->num_rows * runs;) {
        int64_t begin = item % runs * CONV_RUN;
        conv_item<T, Y>(a, Run(*a.plan, item / runs), begin, std::min(a.channels, begin + CONV_RUN), (T*)me.own);
    }
}

void causal_conv(const Args& args, const Worker& me) {
    const ConvArgs& a = args.conv;
    if (a.type == FLOAT32)
        convolve<float, float>(a, me);
    else
        a.y_type == FLOAT32 ? convolve<bf16, float>(a, me) : convolve<bf16, bf16>(a, me);
}

int64_t conv_own(const ConvArgs& a) { return a.kernel * CONV_RUN * 4; }

// ---- state spaces ----

// Of each token, in shared scratch: time steps, what they make of a head's state, input weights, output weights.
struct ScanScratch {
    int64_t steps, weights, stride;
    explicit ScanScratch(const ScanArgs& a)
        : steps(a.per_lane ? a.heads * a.width : a.heads), weights(a.groups * a.states), stride(2 * (steps + weights)) {}
};

template <class T, class D>
INLINE void prepare_scan(const ScanArgs& a, const Worker& me) {
    ScanScratch size(a);
    int64_t end = me.rows * (me.thread + 1) / me.threads;
    for (int64_t t = me.rows * me.thread / me.threads; t < end; t++) {
        float* to = (float*)me.shared + t * size.stride;
        const D* dt = (const D*)a.dt + t * a.dt_stride;
        for (int64_t i = 0; i < size.steps; i += LANES) {
            int n = lanes(size.steps - i);
            vec step = set1(1.f);
            if (a.dt) {
                step = load(dt + i, n);
                if (a.dt_bias) step = add(step, load(a.dt_bias + i, n));
                step = max(set1(a.least), min(set1(a.most), softplus(step)));
            }
            store(to + i, step, n);
            if (!a.per_lane) store(to + size.steps + i, exp(mul(step, load(a.a + i, n))), n);
        }
        to += 2 * size.steps;
        const T *b = (const T*)a.b + t * a.b_stride, *c = (const T*)a.c + t * a.c_stride;
        for (int64_t i = 0; i < size.weights; i += LANES) {
            int n = lanes(size.weights - i);
            store(to + i, load(b + i, n), n), store(to + size.weights + i, load(c + i, n), n);
        }
    }
}

void scan_prepare(const Args& args, const Worker& me) {
    const ScanArgs& a = args.scan;
    if (a.type == FLOAT32)
        prepare_scan<float, float>(a, me);
    else
        a.dt_type == FLOAT32 ? prepare_scan<bf16, float>(a, me) : prepare_scan<bf16, bf16>(a, me);
}

// Some rows of a state: `stride` floats apart.
struct Rows {
    float* p;
    int64_t stride;
};

// M tokens from `first` on, V vectors of lanes from `lane` on, of which the last has n lanes.
template <class T, int M, int V, bool PER_LANE>
INLINE void scan_some(const ScanArgs& a, const char* shared, int64_t first, int64_t head, int64_t lane, int n, Rows from, Rows to) {
    ScanScratch size(a);
    const float* scratch = (const float*)shared + first * size.stride;
    const float* b = scratch + 2 * size.steps + head / (a.heads / a.groups) * a.states;
    const float* c = b + size.weights;
    const T* x = (const T*)a.x + first * a.x_stride + head * a.width + lane;
    const float* decay = a.a + (PER_LANE ? head * a.states * a.width + lane : 0);
    vec step[M][V], in[M][V], y[M][V];
    float fade[M];
    UNROLL(4) for (int m = 0; m < M; m++) {
        const float* steps = scratch + m * size.stride;
        fade[m] = steps[size.steps + head];
        UNROLL(4) for (int v = 0; v < V; v++) {
            step[m][v] = PER_LANE ? some(steps + head * a.width + lane + v * LANES, n) : set1(steps[head]);
            in[m][v] = mul(some(x + m * a.x_stride + v * LANES, n), step[m][v]);
            y[m][v] = zero();
        }
    }
    for (int64_t i = 0; i < a.states; i++) {
        UNROLL(4) for (int v = 0; v < V; v++) {
            vec s = some(from.p + i * from.stride + v * LANES, n);
            vec rate = PER_LANE ? some(decay + i * a.width + v * LANES, n) : zero();
            UNROLL(4) for (int m = 0; m < M; m++) {
                vec f = PER_LANE ? exp(mul(step[m][v], rate)) : set1(fade[m]);
                s = fma(f, s, mul(in[m][v], set1(b[m * size.stride + i])));
                y[m][v] = fma(s, set1(c[m * size.stride + i]), y[m][v]);
            }
            put(to.p + i * to.stride + v * LANES, s, n);
        }
    }
    UNROLL(4) for (int m = 0; m < M; m++) {
        UNROLL(4) for (int v = 0; v < V; v++) {
            int64_t at = head * a.width + lane + v * LANES;
            vec skip = a.skip_per_lane ? some(a.skip + at, n) : set1(a.skip[head]);
            vec out = fma(some(x + m * a.x_stride + v * LANES, n), skip, y[m][v]);
            put(a.y + (first + m) * a.heads * a.width + at, out, n);
        }
    }
}

// M tokens, all lanes of an item, V vectors at a time.
template <class T, int M, int V, bool PER_LANE>
INLINE void scan_tokens(const ScanArgs& a, const char* shared, int64_t first, int64_t head, int64_t begin, int64_t end, Rows from, Rows to) {
    int64_t lane = begin;
    for (; lane + V * LANES <= end; lane += V * LANES)
        scan_some<T, M, V, PER_LANE>(a, shared, first, head, lane, LANES, {from.p + lane - begin, from.stride}, {to.p + lane - begin, to.stride});
    for (; lane < end; lane += LANES)
        scan_some<T, M, 1, PER_LANE>(a, shared, first, head, lane, lanes(end - lane), {from.p + lane - begin, from.stride}, {to.p + lane - begin, to.stride});
}

// Where an item's states are: in the blocks of memory, and between them in scratch.
struct Places {
    float* memory;      // of the item's first lane, in block 0
    int64_t block;      // floats from block to block
    int64_t stride;     // from row to row
    int64_t rows, width;
    float* scratch;     // [rows, STATE_LANES]

    Rows at(int64_t block_) const { return {memory + block_ * block, stride}; }
    Rows own() const { return {scratch, STATE_LANES}; }
    Rows begin(int64_t reads) const {
        if (reads) return at(reads);
        memset((void*)scratch, 0, rows * STATE_LANES * 4);
        return own();
    }
    void keep(int64_t leaves) const {
        Rows to = at(leaves);
        for (int64_t i = 0; i < rows; i++) memcpy(to.p + i * to.stride, scratch + i * STATE_LANES, width * 4);
    }
};

template <class T, bool PER_LANE>
INLINE void scan_item(const ScanArgs& a, const Worker& me, const Run& run, int64_t head, int64_t begin, int64_t end) {
    float* memory = a.memory + head * a.states * a.width + begin;
    Places places{memory, a.heads * a.states * a.width, a.width, a.states, end - begin, (float*)me.own};
    Rows from = places.begin(run.reads());
    for (int64_t t = 0; t < run.count;) {
        int64_t border = run.border(t), leaves = run.leaves(border);
        for (int64_t m; t < border; t += m) {
            m = border - t >= TOGETHER ? TOGETHER : 1;
            bool is_last = t + m == run.count && leaves;
            Rows to = is_last ? places.at(leaves) : places.own();
            if (m == TOGETHER)
                scan_tokens<T, TOGETHER, 2, PER_LANE>(a, me.shared, run.first + t, head, begin, end, from, to);
            else
                scan_tokens<T, 1, VECTORS, PER_LANE>(a, me.shared, run.first + t, head, begin, end, from, to);
            from = to;
        }
        if (leaves && t < run.count) places.keep(leaves);
    }
}

template <class T, bool PER_LANE>
INLINE void scan(const ScanArgs& a, const Worker& me) {
    int64_t tiles = (a.width + STATE_LANES - 1) / STATE_LANES, items = a.heads * tiles;
    for (int64_t item; (item = me.take(1)) < a.plan->num_rows * items;) {
        int64_t head = item % items / tiles, begin = item % tiles * STATE_LANES;
        scan_item<T, PER_LANE>(a, me, Run(*a.plan, item / items), head, begin, std::min(a.width, begin + STATE_LANES));
    }
}

void scan_run(const Args& args, const Worker& me) {
    const ScanArgs& a = args.scan;
    if (a.type == FLOAT32)
        a.per_lane ? scan<float, true>(a, me) : scan<float, false>(a, me);
    else
        a.per_lane ? scan<bf16, true>(a, me) : scan<bf16, false>(a, me);
}

int64_t scan_shared(const ScanArgs& a) { return ScanScratch(a).stride * 16 * 4; }
int64_t scan_own(const ScanArgs& a) { return a.states * STATE_LANES * 4; }

// ---- linear recurrences ----

// Lanes [lane, lane + n) of a row's tokens.
template <class T>
INLINE void lru_lanes(const LruArgs& a, const Run& run, int64_t lane, int n) {
    vec rate = some(a.rates + lane, n), state = zero();
    if (int64_t reads = run.reads()) state = some(a.memory + reads * a.width + lane, n);
    for (int64_t t = 0; t < run.count;) {
        int64_t border = run.border(t), leaves = run.leaves(border);
        for (; t < border; t++) {
            int64_t token = run.first + t;
            vec keep = some((const T*)a.keep + token * a.keep_stride + lane, n);
            vec open = some((const T*)a.open + token * a.open_stride + lane, n);
            vec in = mul(some((const T*)a.x + token * a.x_stride + lane, n), sigmoid(open));
            vec fade = exp(mul(rate, sigmoid(keep)));
            if (run.start + t) in = mul(in, root(max(zero(), sub(set1(1.f), mul(fade, fade)))));
            state = fma(fade, state, in);
            put(a.y + token * a.width + lane, state, n);
        }
        if (leaves) put(a.memory + leaves * a.width + lane, state, n);
    }
}

template <class T>
INLINE void lru(const LruArgs& a, const Worker& me) {
    int64_t tiles = (a.width + STATE_LANES - 1) / STATE_LANES;
    for (int64_t item; (item = me.take(1)) < a.plan->num_rows * tiles;) {
        Run run(*a.plan, item / tiles);
        int64_t lane = item % tiles * STATE_LANES, end = std::min(a.width, lane + STATE_LANES);
        for (; lane + LANES <= end; lane += LANES) lru_lanes<T>(a, run, lane, LANES);
        if (lane < end) lru_lanes<T>(a, run, lane, (int)(end - lane));
    }
}

void rg_lru(const Args& args, const Worker& me) {
    const LruArgs& a = args.lru;
    a.type == FLOAT32 ? lru<float>(a, me) : lru<bf16>(a, me);
}

// ---- what is done to their results ----

// y = x · activation(gate) in groups, normalised before or behind the gate, or not at all.
template <class X, class T>
INLINE void gate_group(const GateArgs& a, const X* x, const T* gate, const T* weight, T* y, float* gated) {
    auto opened = [&](int64_t i, int n) INLINE_LAMBDA { return mul(load(x + i, n), activate(a.activation, load(gate + i, n))); };
    if (!weight) {
        for (int64_t i = 0; i < a.width; i += LANES) store(y + i, opened(i, lanes(a.width - i)), lanes(a.width - i));
        return;
    }
    for (int64_t i = 0; i < a.width; i += LANES) {
        int n = lanes(a.width - i);
        store(gated + i, a.norm_first ? load(x + i, n) : opened(i, n), n);
    }
    float squares = sum_row((const float*)gated, a.width, [](vec s, vec v, int) INLINE_LAMBDA { return fma(v, v, s); });
    vec scale = set1(1.f / __builtin_sqrtf(squares / (float)a.width + a.eps));
    for (int64_t i = 0; i < a.width; i += LANES) {
        int n = lanes(a.width - i);
        vec v = mul(mul(load(gated + i, n), scale), load(weight + i, n));
        store(y + i, a.norm_first ? mul(v, activate(a.activation, load(gate + i, n))) : v, n);
    }
}

template <class X, class T>
INLINE void gate_rows(const GateArgs& a, const Worker& me) {
    int64_t items = me.rows * a.groups, end = items * (me.thread + 1) / me.threads;
    for (int64_t item = items * me.thread / me.threads; item < end; item++) {
        int64_t row = item / a.groups, group = item % a.groups, at = group * a.width;
        const T* weight = a.weight ? (const T*)a.weight + (a.shared_weight ? 0 : at) : nullptr;
        gate_group(a, (const X*)a.x + row * a.x_stride + at, (const T*)a.gate + row * a.gate_stride + at, weight,
                   (T*)a.y + row * a.y_stride + at, (float*)me.own);
    }
}

void gate(const Args& args, const Worker& me) {
    const GateArgs& a = args.gate;
    if (a.type == FLOAT32)
        gate_rows<float, float>(a, me);
    else
        a.x_type == FLOAT32 ? gate_rows<float, bf16>(a, me) : gate_rows<bf16, bf16>(a, me);
}

int64_t gate_own(const GateArgs& a) { return a.weight ? a.width * 4 : 0; }
