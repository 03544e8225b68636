// Products with weight matrices: y = x Wᵀ.
//
// Weights stay where they lie, row after row as in the checkpoint (or, quantized, in words of four values as below), and
// a result is summed up word by word along its row in one lane, always in the same order.  There are two ways to fill
// the lanes, with the same result to the last bit:
//
//   few rows of x:    lane = row of W.  A tile of 16 rows x 16 words is transposed in registers as it comes from memory.
//   many rows of x:   lane = row of x.  x is transposed once, into panels; words of W are broadcast from where they are.

INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// ---- what a word is ----

struct Floats {
    static constexpr int SIZE = 4;
    INLINE vec dot(vec acc, ivec w, ivec x) { return fma(as_float(w), as_float(x), acc); }
};

struct Pairs {
    static constexpr int SIZE = 2;
    INLINE vec dot(vec acc, ivec w, ivec x) { return dot_pairs(acc, w, x); }
};

// ---- the end of a product: 16 neighbouring columns of some rows ----

template <class T>
INLINE void add_rows(const LinearArgs& a, int64_t first, int count, const Group& g, vec* v) {
    const T* from = (const T*)a.residual + first * a.residual_stride + g.column;
    for (int i = 0; i < count; i++) v[i] = add(v[i], load(from + i * a.residual_stride, g.count));
}

template <class T>
INLINE void store_rows(const LinearArgs& a, int64_t first, int count, const Group& g, const vec* v) {
    T* y = (T*)a.y + first * a.y_stride + g.column;
    if (g.count == LANES)
        for (int i = 0; i < count; i++) store(y + i * a.y_stride, v[i]);
    else
        for (int i = 0; i < count; i++) store(y + i * a.y_stride, v[i], g.count);
}

// Rows [first, first + count) of x with a group: their sums, and those of the group that it is the gate of, become results.
// What is to be done is asked once for all of them: row by row it took a fifth of the time of a product of width 384.
NOINLINE void finish(const LinearArgs& a, int64_t first, int count, int64_t group, vec* v, const vec* up) {
    const Group& g = a.groups[group];
    if (a.bias) {
        vec bias = load(a.bias + group * LANES);
        for (int i = 0; i < count; i++) v[i] = add(v[i], bias);
    }
    activate_all(a.activation, v, count);
    if (a.gated) {
        vec bias = a.bias ? load(a.bias + (group + a.num_groups / 2) * LANES) : zero();
        for (int i = 0; i < count; i++) v[i] = mul(v[i], a.bias ? add(up[i], bias) : up[i]);
    }
    if (a.residual) a.x_type == BFLOAT16 ? add_rows<bf16>(a, first, count, g, v) : add_rows<float>(a, first, count, g, v);
    a.y_type == BFLOAT16 ? store_rows<bf16>(a, first, count, g, v) : store_rows<float>(a, first, count, g, v);
}

// ---- few rows ----

// 16 words of each of the group's rows, as columns; `words` of them are there.
INLINE void load_columns(ivec* w, const Group& g, int64_t at, int words) {
UNROLL(16)
    for (int i = 0; i < LANES; i++) {
        const char* p = g.rows + (i < g.count ? i : 0) * g.stride + at;
        w[i] = words == LANES ? iload(p) : iload(p, words);
    }
    transpose(w);
}

template <class Word, int ROWS>
NOINLINE void few_sum(vec* sum, const Group& g, const char* const* x, int64_t words, int64_t ahead) {
UNROLL(12)
    for (int r = 0; r < ROWS; r++) sum[r] = zero();
    for (int64_t at = 0; at + LANES <= words; at += LANES) {
        ivec w[LANES];
        const char* p = g.rows + at * 4;
        if (g.count == LANES) {
UNROLL(16)
            for (int i = 0; i < LANES; i++) {
                w[i] = iload(p + i * g.stride);
                prefetch_far(p + i * g.stride + ahead);
            }
            transpose(w);
        } else {
            load_columns(w, g, at * 4, LANES);
        }
UNROLL(16)
        for (int j = 0; j < LANES; j++) {
UNROLL(12)
            for (int r = 0; r < ROWS; r++)
                sum[r] = Word::dot(sum[r], w[j], iset1(*(const int32_t*)(x[r] + (at + j) * 4)));
        }
    }
    if (int rest = words % LANES) {
        int64_t at = words - rest;
        ivec w[LANES];
        load_columns(w, g, at * 4, rest);
        for (int j = 0; j < rest; j++)
            for (int r = 0; r < ROWS; r++)
                sum[r] = Word::dot(sum[r], w[j], iset1(*(const int32_t*)(x[r] + (at + j) * 4)));
    }
}

template <class Word, int ROWS>
NOINLINE void few_dense(const LinearArgs& a, const Worker&, int64_t group) {
    const char* x[ROWS];
    for (int r = 0; r < ROWS; r++) x[r] = (const char*)a.x + r * a.x_stride * Word::SIZE;
    int64_t words = a.width * Word::SIZE / 4;
    vec sum[ROWS], up[ROWS];
    const Group& g = a.groups[group];
    few_sum<Word, ROWS>(sum, g, x, words, g.stride * LANES);
    if (a.gated) few_sum<Word, ROWS>(up, a.groups[group + a.num_groups / 2], x, words, g.stride * LANES);
    finish(a, 0, ROWS, group, sum, up);
}

using FewRows = void (*)(const LinearArgs&, const Worker&, int64_t group);

#if defined(VARIANT_AVX512)
constexpr int FEW_ROWS = 12;
#define BY_ROWS(F, W)                                                                                          \
    {nullptr, F<W, 1>, F<W, 2>, F<W, 3>, F<W, 4>, F<W, 5>, F<W, 6>, F<W, 7>, F<W, 8>, F<W, 9>, F<W, 10>, F<W, 11>, \
     F<W, 12>}
#else  // with fewer registers more rows gain nothing
constexpr int FEW_ROWS = 4;
#define BY_ROWS(F, W) {nullptr, F<W, 1>, F<W, 2>, F<W, 3>, F<W, 4>}
#endif

// Neighbouring groups in runs of about 256 KiB: shorter ones read from memory at two thirds of the speed (measured).
INLINE void few(const LinearArgs& a, const Worker& me, FewRows group, int64_t group_bytes) {
    int64_t items = a.gated ? a.num_groups / 2 : a.num_groups;
    int64_t chunk = std::max<int64_t>(1, std::min(items / (4 * me.threads), (256 << 10) / group_bytes));
    for (int64_t first; (first = me.take(chunk)) < items;)
        for (int64_t i = first; i < std::min(items, first + chunk); i++) group(a, me, i);
}

// ---- many rows ----

// x as panels of 16 rows: [panels][words][16]; rows that are not there are zero.
template <class Word>
INLINE void make_panels(const LinearArgs& a, const Worker& me) {
    int64_t words = a.width * Word::SIZE / 4, panels = (me.rows + LANES - 1) / LANES;
    int64_t tiles = (words + LANES - 1) / LANES;
    for (int64_t item = panels * tiles * me.thread / me.threads; item < panels * tiles * (me.thread + 1) / me.threads;
         item++) {
        int64_t panel = item / tiles, at = item % tiles * LANES;
        int count = (int)std::min<int64_t>(LANES, words - at);
        ivec w[LANES];
        for (int i = 0; i < LANES; i++) {
            int64_t row = panel * LANES + i;
            const char* p = (const char*)a.x + row * a.x_stride * Word::SIZE + at * 4;
            w[i] = row < me.rows ? iload(p, count) : izero();
        }
        transpose(w);
        char* out = me.shared + (panel * words + at) * 64;
        for (int j = 0; j < count; j++) istore(out + j * 64, w[j]);
    }
}

// ROWS rows of a group times PANELS panels of x -> out [PANELS][16 rows of the group][16 rows of x].
template <class Word, int ROWS, int PANELS>
INLINE void many_tile(const char* w, int64_t stride, const char* panel, int64_t words, int64_t ahead, float* out) {
    vec sum[ROWS][PANELS];
UNROLL(16)
    for (int n = 0; n < ROWS; n++)
UNROLL(3)
        for (int p = 0; p < PANELS; p++) sum[n][p] = zero();
    auto step = [&](int64_t at) INLINE_LAMBDA {
        ivec x[PANELS];
UNROLL(3)
        for (int p = 0; p < PANELS; p++) x[p] = iload(panel + (p * words + at) * 64);
UNROLL(16)
        for (int n = 0; n < ROWS; n++) {
            ivec word = iset1(*(const int32_t*)(w + n * stride + at * 4));
UNROLL(3)
            for (int p = 0; p < PANELS; p++) sum[n][p] = Word::dot(sum[n][p], word, x[p]);
        }
    };
    int64_t at = 0;
    for (; at + LANES <= words; at += LANES) {
        if (ahead) {
UNROLL(16)
            for (int n = 0; n < ROWS; n++) prefetch_far(w + n * stride + at * 4 + ahead);
        }
UNROLL(4)
        for (int j = 0; j < LANES; j++) step(at + j);
    }
    for (; at < words; at++) step(at);
UNROLL(16)
    for (int n = 0; n < ROWS; n++)
UNROLL(3)
        for (int p = 0; p < PANELS; p++) store(out + (p * LANES + n) * LANES, sum[n][p]);
}

template <class Word, int PANELS>
INLINE void many_group(const Group& g, const char* panel, int64_t words, int64_t ahead, float* out) {
    constexpr int ROWS = PANELS == 1 ? 16 : 8;
    if (g.count == LANES) {
        for (int n = 0; n < LANES; n += ROWS)
            many_tile<Word, ROWS, PANELS>(g.rows + n * g.stride, g.stride, panel, words, ahead, out + n * LANES);
    } else {
        for (int n = 0; n < g.count; n++)
            many_tile<Word, 1, PANELS>(g.rows + n * g.stride, g.stride, panel, words, 0, out + n * LANES);
    }
}

INLINE void load_transposed(const float* sums, vec* out) {
    ivec v[LANES];
    for (int i = 0; i < LANES; i++) v[i] = iload(sums + i * LANES);
    transpose(v);
    for (int i = 0; i < LANES; i++) out[i] = as_float(v[i]);
}

// The sums of a tile, [PANELS][16 columns][16 rows], become results.
template <int PANELS>
INLINE void finish_panels(const LinearArgs& a, const Worker& me, int64_t group, int64_t panel, const float* sums,
                          const float* ups) {
    for (int p = 0; p < PANELS; p++) {
        vec v[LANES], up[LANES];
        load_transposed(sums + p * LANES * LANES, v);
        if (a.gated) load_transposed(ups + p * LANES * LANES, up);
        int64_t first = (panel + p) * LANES;
        finish(a, first, (int)std::min<int64_t>(LANES, me.rows - first), group, v, up);
    }
}

template <class Word, int PANELS>
NOINLINE void many_dense(const LinearArgs& a, const Worker& me, int64_t group, int64_t panel, int64_t skip) {
    int64_t words = a.width * Word::SIZE / 4, ahead = panel ? 0 : a.groups[group].stride * LANES * skip;
    alignas(64) float sums[2][PANELS * LANES * LANES];
    const char* x = me.shared + panel * words * 64;
    for (int half = 0; half < (a.gated ? 2 : 1); half++)
        many_group<Word, PANELS>(a.groups[group + half * a.num_groups / 2], x, words, ahead, sums[half]);
    finish_panels<PANELS>(a, me, group, panel, sums[0], sums[1]);
}

// `skip`: so many groups on is the one that this thread will most likely compute next.
using ManyRows = void (*)(const LinearArgs&, const Worker&, int64_t group, int64_t panel, int64_t skip);

#define BY_PANELS(F, W) {nullptr, F<W, 1>, F<W, 2>, F<W, 3>}
#define BY_TWO_PANELS(F, W) {nullptr, F<W, 1>, F<W, 2>, nullptr}  // three would leave too few registers

// A group meets all panels before the next group's turn, so that it is read from memory once.  Groups are taken in pairs:
// in bfloat16 two are a cache line of y, and two threads that write to one line wait for each other (a fifth of the time).
INLINE void many(const LinearArgs& a, const Worker& me, const ManyRows* by_panels) {
    constexpr int64_t RUN = 2;
    int64_t items = a.gated ? a.num_groups / 2 : a.num_groups, panels = (me.rows + LANES - 1) / LANES;
    for (int64_t first; (first = me.take(RUN)) < items;)
        for (int64_t group = first, end = std::min(items, first + RUN); group < end; group++)
            for (int64_t panel = 0; panel < panels;) {
                int64_t left = panels - panel, count = by_panels[3] && left >= 3 && left != 4 ? 3 : left >= 2 ? 2 : 1;
                by_panels[count](a, me, group, panel, group + 1 < end ? 1 : 1 + RUN * (me.threads - 1));
                panel += count;
            }
}
