// Products with quantized weights, and quantizing.
//
//   INT8   group of 16 rows: [width / 4][16] words of four values + 128; a float scale per row
//   INT4   group of 16 rows: [width / 32][4][16] words of eight values + 8; the low nibbles of word j are elements
//          4 j … 4 j + 3 of the 32, the high ones elements 16 + 4 j …; a bfloat16 scale per row and 32 elements
//
// Widths are padded to whole blocks of 128 elements.  Rows of x are quantized as they come, block by block: a float
// scale, and -offset times the sum of the values, from which a product starts so that the weights' offset cancels out.
// Within a block integers are added, exactly; blocks are added as floats in their order.

constexpr int64_t BLOCK = 128, FINE = 32;
constexpr int WORDS = BLOCK / 4;

struct Int8 {
    static constexpr int PARTS = 1;  // scales of the weights, or offsets, per block
    static constexpr int OFFSET = 128;
    static constexpr int64_t WORD_BYTES = 64;  // of a group
};

struct Int4 {
    static constexpr int PARTS = BLOCK / FINE;
    static constexpr int OFFSET = 8;
    static constexpr int64_t WORD_BYTES = 32;
};

INLINE int64_t blocks_of(int64_t width) { return (width + BLOCK - 1) / BLOCK; }

INLINE int64_t group_bytes(int64_t width, int32_t format) {
    return blocks_of(width) * WORDS * (format == INT8 ? Int8::WORD_BYTES : Int4::WORD_BYTES);
}

// Where the quantized rows of x lie in the shared scratch.  Few rows: [row][…]; many: [panel][…][16 rows].
struct Quantized {
    int8_t* values;   // [blocks][32 words of four]
    float* scales;    // [blocks]
    int32_t* starts;  // [blocks][PARTS]
    int64_t blocks;
};

template <class W>
INLINE Quantized quantized(const LinearArgs& a, const Worker& me) {
    int64_t blocks = blocks_of(a.width), rows = (me.rows + LANES - 1) / LANES * LANES;
    auto* values = (int8_t*)me.shared;
    auto* scales = (float*)(values + rows * blocks * BLOCK);
    return {values, scales, (int32_t*)(scales + rows * blocks), blocks};
}

template <class W>
INLINE int64_t quantized_bytes(int64_t width) {  // for 16 rows
    return LANES * blocks_of(width) * (BLOCK + 4 + 4 * W::PARTS);
}

INLINE vec load_as(int32_t type, const void* p, int64_t at, int count) {
    if (count <= 0) return zero();
    if (count < LANES) return type == BFLOAT16 ? load((const bf16*)p + at, count) : load((const float*)p + at, count);
    return type == BFLOAT16 ? load((const bf16*)p + at) : load((const float*)p + at);
}

// One block of a row.  A NaN or infinity makes the scale NaN, and so the results.
template <class W>
INLINE void quantize_block(const LinearArgs& a, int64_t row, int64_t block, int8_t* values, float& scale,
                           int32_t* starts) {
    vec x[8], peak = zero(), unsound = zero();
    for (int i = 0; i < 8; i++) {
        int64_t at = block * BLOCK + i * LANES;
        x[i] = load_as(a.x_type, a.x, row * a.x_stride + at, (int)std::min<int64_t>(LANES, a.width - at));
        peak = max(peak, abs(x[i]));
        unsound = fma(x[i], zero(), unsound);
    }
    float most = greatest(peak);
    vec inverse = set1(most > 0 ? 127.f / most : 0.f);
    scale = most / 127.f + sum(unsound);
    ivec total[W::PARTS];
    for (int i = 0; i < W::PARTS; i++) total[i] = izero();
    for (int i = 0; i < 8; i++) {
        ivec q = to_int(mul(x[i], inverse));
        store_int8(values + i * LANES, q);
        total[i * W::PARTS / 8] = iadd(total[i * W::PARTS / 8], q);
    }
    for (int i = 0; i < W::PARTS; i++) starts[i] = -W::OFFSET * sum(total[i]);
}

template <class W>
INLINE void quantize_rows(const LinearArgs& a, const Worker& me) {
    Quantized q = quantized<W>(a, me);
    int64_t items = me.rows * q.blocks;
    for (int64_t item = items * me.thread / me.threads; item < items * (me.thread + 1) / me.threads; item++)
        quantize_block<W>(a, item / q.blocks, item % q.blocks, q.values + item * BLOCK, q.scales[item],
                          q.starts + item * W::PARTS);
}

template <class W>
INLINE void quantize_panels(const LinearArgs& a, const Worker& me) {
    Quantized q = quantized<W>(a, me);
    int64_t items = (me.rows + LANES - 1) / LANES * q.blocks;
    for (int64_t item = items * me.thread / me.threads; item < items * (me.thread + 1) / me.threads; item++) {
        int64_t panel = item / q.blocks, block = item % q.blocks;
        alignas(64) int8_t values[LANES][BLOCK];
        for (int i = 0; i < LANES; i++) {
            float scale = 0;
            int32_t starts[W::PARTS] = {};
            if (panel * LANES + i < me.rows)
                quantize_block<W>(a, panel * LANES + i, block, values[i], scale, starts);
            else
                memset(values[i], 0, BLOCK);
            q.scales[item * LANES + i] = scale;
            for (int part = 0; part < W::PARTS; part++) q.starts[(item * W::PARTS + part) * LANES + i] = starts[part];
        }
        for (int half = 0; half < 2; half++) {
            ivec words[LANES];
            for (int i = 0; i < LANES; i++) words[i] = iload(values[i] + half * 64);
            transpose(words);
            for (int j = 0; j < LANES; j++) istore(q.values + (item * WORDS + half * LANES + j) * 64, words[j]);
        }
    }
}

// ---- few rows ----

INLINE ivec word_of(const int8_t* values, int64_t word) { return iset1(*(const int32_t*)(values + word * 4)); }

template <int ROWS>
NOINLINE void few_sum(Int8, vec* sum, const Group& g, const Quantized& q) {
    for (int64_t b = 0; b < q.blocks; b++) {
        const char* p = g.rows + b * WORDS * 64;
        ivec s[ROWS], odd = izero();
UNROLL(12)
        for (int r = 0; r < ROWS; r++) s[r] = iset1(q.starts[r * q.blocks + b]);
UNROLL(8)
        for (int j = 0; j < WORDS; j++) {
            ivec w = iload(p + j * 64);
            prefetch(p + j * 64 + 4096);
            if (ROWS == 1 && j % 2) {  // integers: their order is free, and one chain would wait for itself
                odd = dot_bytes(odd, w, word_of(q.values, b * WORDS + j));
                continue;
            }
UNROLL(12)
            for (int r = 0; r < ROWS; r++)
                s[r] = dot_bytes(s[r], w, word_of(q.values, (r * q.blocks + b) * WORDS + j));
        }
        if (ROWS == 1) s[0] = iadd(s[0], odd);
        for (int r = 0; r < ROWS; r++) sum[r] = fma(to_float(s[r]), set1(q.scales[r * q.blocks + b]), sum[r]);
    }
    for (int r = 0; r < ROWS; r++) sum[r] = mul(sum[r], load((const float*)g.scales));
}

template <int ROWS>
NOINLINE void few_sum(Int4, vec* sum, const Group& g, const Quantized& q) {
    for (int64_t b = 0; b < q.blocks; b++) {
        vec block[ROWS];
UNROLL(12)
        for (int r = 0; r < ROWS; r++) block[r] = zero();
UNROLL(4)
        for (int part = 0; part < 4; part++) {
            const char* p = g.rows + (b * 4 + part) * 256;
            ivec w[8];
UNROLL(4)
            for (int j = 0; j < 4; j++) {
                ivec both = iload(p + j * 64);
                prefetch(p + j * 64 + 2048);
                w[j] = low_nibbles(both), w[j + 4] = high_nibbles(both);
            }
            vec scale = load((const bf16*)g.scales + (b * 4 + part) * LANES);
UNROLL(12)
            for (int r = 0; r < ROWS; r++) {
                int64_t at = r * q.blocks + b;
                ivec s = iset1(q.starts[at * 4 + part]), odd = izero();
UNROLL(4)
                for (int j = 0; j < 4; j++) {
                    s = dot_bytes(s, w[j], word_of(q.values, at * WORDS + part * 8 + j));
                    odd = dot_bytes(odd, w[j + 4], word_of(q.values, at * WORDS + part * 8 + j + 4));
                }
                block[r] = fma(to_float(iadd(s, odd)), scale, block[r]);
            }
        }
        for (int r = 0; r < ROWS; r++) sum[r] = fma(block[r], set1(q.scales[r * q.blocks + b]), sum[r]);
    }
}

template <class W, int ROWS>
NOINLINE void few_quantized(const LinearArgs& a, const Worker& me, int64_t group) {
    Quantized q = quantized<W>(a, me);
    vec sum[ROWS], up[ROWS];
    for (int r = 0; r < ROWS; r++) sum[r] = up[r] = zero();
    few_sum<ROWS>(W(), sum, a.groups[group], q);
    if (a.gated) few_sum<ROWS>(W(), up, a.groups[group + a.num_groups / 2], q);
    for (int r = 0; r < ROWS; r++) finish(a, r, group, sum[r], up[r]);
}

// ---- many rows ----

// Words of a group as the inner loop wants them, [words][16] of four values, and the scales per part as floats.
struct Unpacked {
    const char* words;
    const float* scales;
};

INLINE Unpacked unpack(Int8, const Group& g, int64_t, const Worker&) { return {g.rows, nullptr}; }

INLINE Unpacked unpack(Int4, const Group& g, int64_t blocks, const Worker& me) {
    char* words = me.own;
    auto* scales = (float*)(words + blocks * WORDS * 64);
    for (int64_t part = 0; part < blocks * 4; part++) {
        for (int j = 0; j < 4; j++) {
            const char* p = g.rows + (part * 4 + j) * 64;
            ivec both = iload(p);
            prefetch_far(p + blocks * WORDS * Int4::WORD_BYTES);
            istore(words + (part * 8 + j) * 64, low_nibbles(both));
            istore(words + (part * 8 + j + 4) * 64, high_nibbles(both));
        }
        store(scales + part * LANES, load((const bf16*)g.scales + part * LANES));
    }
    return {words, scales};
}

template <int ROWS, int PANELS>
INLINE void add_words(ivec (*s)[PANELS], const char* w, const int8_t* x, int64_t panel_bytes, int words) {
UNROLL(4)
    for (int j = 0; j < words; j++) {
        ivec v[PANELS];
UNROLL(3)
        for (int p = 0; p < PANELS; p++) v[p] = iload(x + p * panel_bytes + j * 64);
UNROLL(16)
        for (int n = 0; n < ROWS; n++) {
            ivec word = iset1(*(const int32_t*)(w + j * 64 + n * 4));
UNROLL(3)
            for (int p = 0; p < PANELS; p++) s[n][p] = dot_bytes(s[n][p], word, v[p]);
        }
    }
}

// ROWS of a group's rows from `n` on, times PANELS panels.
template <int ROWS, int PANELS>
INLINE void many_tile(Int8, const Unpacked& u, int n, const Quantized& q, int64_t panel, float* out) {
    for (int i = 0; i < PANELS * ROWS; i++) store(out + (i / ROWS * LANES + n + i % ROWS) * LANES, zero());
    for (int64_t b = 0; b < q.blocks; b++) {
        ivec s[ROWS][PANELS];
UNROLL(3)
        for (int p = 0; p < PANELS; p++) {
            ivec start = iload(q.starts + ((panel + p) * q.blocks + b) * LANES);
UNROLL(16)
            for (int r = 0; r < ROWS; r++) s[r][p] = start;
        }
        const char* w = u.words + b * WORDS * 64 + n * 4;
        for (int i = n; i < n + ROWS; i += 4)  // the next group, 1/4 of a block per tile of four
            for (int j = 0; j < WORDS / 4; j++) prefetch_far(w + (q.blocks * WORDS + i / 4 * WORDS / 4 + j) * 64);
        add_words<ROWS, PANELS>(s, w, q.values + (panel * q.blocks + b) * WORDS * 64, q.blocks * WORDS * 64, WORDS);
UNROLL(3)
        for (int p = 0; p < PANELS; p++) {
            vec scale = load(q.scales + ((panel + p) * q.blocks + b) * LANES);
UNROLL(16)
            for (int r = 0; r < ROWS; r++) {
                float* at = out + (p * LANES + n + r) * LANES;
                store(at, fma(to_float(s[r][p]), scale, load(at)));
            }
        }
    }
}

template <int ROWS, int PANELS>
INLINE void many_tile(Int4, const Unpacked& u, int n, const Quantized& q, int64_t panel, float* out) {
    for (int i = 0; i < PANELS * ROWS; i++) store(out + (i / ROWS * LANES + n + i % ROWS) * LANES, zero());
    for (int64_t b = 0; b < q.blocks; b++) {
        vec block[ROWS][PANELS];
UNROLL(16)
        for (int r = 0; r < ROWS; r++)
UNROLL(3)
            for (int p = 0; p < PANELS; p++) block[r][p] = zero();
        for (int part = 0; part < 4; part++) {
            int64_t fine = b * 4 + part;
            ivec s[ROWS][PANELS];
UNROLL(3)
            for (int p = 0; p < PANELS; p++) {
                ivec start = iload(q.starts + ((panel + p) * q.blocks * 4 + fine) * LANES);
UNROLL(16)
                for (int r = 0; r < ROWS; r++) s[r][p] = start;
            }
            add_words<ROWS, PANELS>(s, u.words + fine * 8 * 64 + n * 4,
                                    q.values + (panel * q.blocks * WORDS + fine * 8) * 64, q.blocks * WORDS * 64, 8);
UNROLL(16)
            for (int r = 0; r < ROWS; r++) {
                vec scale = set1(u.scales[fine * LANES + n + r]);
UNROLL(3)
                for (int p = 0; p < PANELS; p++) block[r][p] = fma(to_float(s[r][p]), scale, block[r][p]);
            }
        }
UNROLL(3)
        for (int p = 0; p < PANELS; p++) {
            vec scale = load(q.scales + ((panel + p) * q.blocks + b) * LANES);
UNROLL(16)
            for (int r = 0; r < ROWS; r++) {
                float* at = out + (p * LANES + n + r) * LANES;
                store(at, fma(block[r][p], scale, load(at)));
            }
        }
    }
}

template <int PANELS>
INLINE void many_group(Int8 w, const Unpacked& u, const Quantized& q, int64_t panel, float* out) {
    constexpr int ROWS = PANELS == 1 ? 16 : 8;
    for (int n = 0; n < LANES; n += ROWS) many_tile<ROWS, PANELS>(w, u, n, q, panel, out);
}

template <int PANELS>
INLINE void many_group(Int4 w, const Unpacked& u, const Quantized& q, int64_t panel, float* out) {
    constexpr int ROWS = PANELS == 1 ? 8 : 4;
    for (int n = 0; n < LANES; n += ROWS) many_tile<ROWS, PANELS>(w, u, n, q, panel, out);
}

INLINE void scale_rows(Int4, const Group&, float*, int) {}

INLINE void scale_rows(Int8, const Group& g, float* sums, int panels) {
    for (int i = 0; i < panels * LANES; i++) {
        float* at = sums + i * LANES;
        store(at, mul(load(at), set1(((const float*)g.scales)[i % LANES])));
    }
}

template <class W, int PANELS>
NOINLINE void many_quantized(const LinearArgs& a, const Worker& me, int64_t group, int64_t panel) {
    Quantized q = quantized<W>(a, me);
    alignas(64) float sums[2][PANELS * LANES * LANES];
    for (int half = 0; half < (a.gated ? 2 : 1); half++) {
        const Group& g = a.groups[group + half * a.num_groups / 2];
        many_group<PANELS>(W(), unpack(W(), g, q.blocks, me), q, panel, sums[half]);
        scale_rows(W(), g, sums[half], PANELS);
    }
    finish_panels<PANELS>(a, me, group, panel, sums[0], sums[1]);
}

// ---- quantizing weights ----


// The scale for 32 values that makes the least squared error of a few: the greatest value at -9 … -6 steps.
INLINE float best_scale(vec a, vec b) {
    float high = greatest(max(a, b)), low = -greatest(max(sub(zero(), a), sub(zero(), b)));
    float most = high > -low ? high : low, best = 0, least = INFINITY;
    if (most == 0) return 0;
    for (int i = 0; i < 8; i++) {
        float scale;
        bf16 rounded[LANES];
        store(rounded, set1(most / (-9.f + .375f * i)));
        store(&scale, load(rounded), 1);
        vec inverse = set1(1 / scale), low_ = set1(-8), high_ = set1(7), step = set1(scale);
        vec qa = min(high_, max(low_, round(mul(a, inverse)))), qb = min(high_, max(low_, round(mul(b, inverse))));
        vec ea = fma(sub(zero(), qa), step, a), eb = fma(sub(zero(), qb), step, b);
        float error = sum(fma(ea, ea, mul(eb, eb)));
        if (error < least) least = error, best = scale;
    }
    return best;
}

// 16 rows as floats [16][padded width]; what is not there is zero.
INLINE void load_rows(const QuantizeArgs& a, int64_t first, int64_t rows, int64_t padded, float* out) {
    for (int64_t i = 0; i < LANES; i++)
        for (int64_t k = 0; k < padded; k += LANES) {
            int64_t count = first + i < rows ? std::min<int64_t>(LANES, a.width - k) : 0;
            int64_t at = (first + i) * a.row_stride + k * a.column_stride;
            vec v = zero();
            if (a.column_stride == 1) {
                v = load_as(a.type, a.w, at, (int)count);
            } else {
                alignas(64) float lanes[LANES] = {};
                for (int64_t j = 0; j < count; j++) {
                    int64_t from = at + j * a.column_stride;
                    uint32_t bits;
                    if (a.type == BFLOAT16) bits = (uint32_t)((const bf16*)a.w)[from] << 16;
                    else memcpy(&bits, (const float*)a.w + from, 4);
                    memcpy(lanes + j, &bits, 4);
                }
                v = load(lanes);
            }
            store(out + i * padded + k, v);
        }
}

INLINE void pack_int8(const float* rows, int64_t padded, char* packed, float* scales, int8_t* values) {
    for (int i = 0; i < LANES; i++) {
        vec peak = zero();
        for (int64_t k = 0; k < padded; k += LANES) peak = max(peak, abs(load(rows + i * padded + k)));
        float most = greatest(peak);
        scales[i] = most / 127;
        vec inverse = set1(most > 0 ? 127 / most : 0);
        for (int64_t k = 0; k < padded; k += LANES)
            store_int8(values + i * padded + k, to_int(mul(load(rows + i * padded + k), inverse)));
    }
    for (int64_t k = 0; k < padded; k += 64) {
        ivec words[LANES];
        for (int i = 0; i < LANES; i++) words[i] = flip_signs(iload(values + i * padded + k));
        transpose(words);
        for (int j = 0; j < LANES; j++) istore(packed + (k / 4 + j) * 64, words[j]);
    }
}

INLINE void pack_int4(const float* rows, int64_t padded, char* packed, bf16* scales, int8_t* values) {
    for (int64_t k = 0; k < padded; k += FINE) {
        alignas(64) float found[LANES];
        for (int i = 0; i < LANES; i++) {
            vec a = load(rows + i * padded + k), b = load(rows + i * padded + k + LANES);
            found[i] = best_scale(a, b);
            vec inverse = set1(found[i] ? 1 / found[i] : 0), offset = set1(8), low = zero(), high = set1(15);
            store_int8(values + i * padded + k, to_int(min(high, max(low, fma(a, inverse, offset)))));
            store_int8(values + i * padded + k + LANES, to_int(min(high, max(low, fma(b, inverse, offset)))));
        }
        store(scales + k / FINE * LANES, load(found));
    }
    for (int64_t k = 0; k < padded; k += 64) {
        ivec words[LANES];
        for (int i = 0; i < LANES; i++) words[i] = iload(values + i * padded + k);
        transpose(words);
        for (int part = 0; part < 2; part++)
            for (int j = 0; j < 4; j++)
                istore(packed + ((k / FINE + part) * 4 + j) * 64,
                       join_nibbles(words[part * 8 + j], words[part * 8 + j + 4]));
    }
}

int64_t quantize_own(const QuantizeArgs& a) { return LANES * blocks_of(a.width) * BLOCK * 5; }

void quantize(const Args& args, const Worker& me) {
    const QuantizeArgs& a = args.quantize;
    int64_t blocks = blocks_of(a.width), padded = blocks * BLOCK, groups = (me.rows + LANES - 1) / LANES;
    auto* rows = (float*)me.own;
    auto* values = (int8_t*)(rows + LANES * padded);
    for (int64_t g; (g = me.take(1)) < groups;) {
        load_rows(a, g * LANES, me.rows, padded, rows);
        char* packed = (char*)a.packed + g * group_bytes(a.width, a.format);
        if (a.format == INT8)
            pack_int8(rows, padded, packed, (float*)a.scales + g * LANES, values);
        else
            pack_int4(rows, padded, packed, (bf16*)a.scales + g * blocks * 4 * LANES, values);
    }
}

// ---- the operation, whatever the format ----

void linear_prepare(const Args& args, const Worker& me) {
    const LinearArgs& a = args.linear;
    bool few = me.rows <= FEW_ROWS;
    switch (a.format) {
        case FLOAT32: return few ? void() : make_panels<Floats>(a, me);
        case BFLOAT16: return few ? void() : make_panels<Pairs>(a, me);
        case INT8: return few ? quantize_rows<Int8>(a, me) : quantize_panels<Int8>(a, me);
        case INT4: return few ? quantize_rows<Int4>(a, me) : quantize_panels<Int4>(a, me);
    }
}

void linear_multiply(const Args& args, const Worker& me) {
    static const FewRows few_by_rows[4][FEW_ROWS + 1] = {BY_ROWS(few_dense, Floats), BY_ROWS(few_dense, Pairs),
                                                         BY_ROWS(few_quantized, Int8), BY_ROWS(few_quantized, Int4)};
    static const ManyRows many_by_panels[4][4] = {BY_PANELS(many_dense, Floats), BY_PANELS(many_dense, Pairs),
                                                  BY_PANELS(many_quantized, Int8), BY_PANELS(many_quantized, Int4)};
    const LinearArgs& a = args.linear;
    if (me.rows > FEW_ROWS) return many(a, me, many_by_panels[a.format]);
    int64_t bytes = a.format == FLOAT32    ? a.width * 4 * LANES
                    : a.format == BFLOAT16 ? a.width * 2 * LANES
                                           : group_bytes(a.width, a.format);
    few(a, me, few_by_rows[a.format][me.rows], bytes);
}

int64_t linear_shared(const LinearArgs& a) {
    switch (a.format) {
        case FLOAT32: return a.width * 4 * LANES;
        case BFLOAT16: return a.width * 2 * LANES;
        case INT8: return quantized_bytes<Int8>(a.width);
        default: return quantized_bytes<Int4>(a.width);
    }
}

int64_t linear_own(const LinearArgs& a) {
    return a.format == INT4 ? blocks_of(a.width) * (WORDS * 64 + 4 * LANES * 4) : 0;
}
