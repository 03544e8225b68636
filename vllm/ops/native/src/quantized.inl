// Products with quantized weights, and quantizing.
//
//   INT8   group of 16 rows: [width / 4][16] words of four values + 128; a float scale per row
//   INT4   group of 16 rows: [width / 32][4][16] words of eight values + 8; the low nibbles of word j are elements
//          4 j … 4 j + 3 of the 32, the high ones elements 16 + 4 j …; struct Int4Scales per 128 elements
//
// Widths are padded to whole blocks of 128 elements.  Rows of x are quantized as they come, block by block: a float
// scale, and -offset times the sum of the values, from which a product starts so that the weights' offset cancels out.
// Within a block integers are added, exactly; blocks are added as floats in their order.

constexpr int64_t BLOCK = 128, FINE = 32;
constexpr int WORDS = BLOCK / 4;

// A weight of INT4 is scale · factor · (nibble - 8).  With whole factors of at most 15, factor · (nibble - 8) is an
// 8-bit integer: for many rows of x, INT4 becomes INT8, and no sum is rounded before the block is whole.
struct Int4Scales {
    bf16 scale[LANES];
    int8_t factor[BLOCK / FINE][LANES];
};

struct Int8 {
    static constexpr int PARTS = 1;  // sums of x that few rows need per block
    static constexpr int OFFSET = 128;
    static constexpr bool UNPACKED = false;  // for many rows
    static constexpr int64_t WORD_BYTES = 64;  // of a group
};

struct Int4 {
    static constexpr int PARTS = BLOCK / FINE;
    static constexpr int OFFSET = 8;
    static constexpr bool UNPACKED = true;
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
        ivec q = to_int(max(mul(x[i], inverse), set1(-127)));  // a NaN becomes some value: the scale tells of it
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

INLINE void quantize_panels(const LinearArgs& a, const Worker& me) {
    using W = Int8;
    Quantized q = quantized<W>(a, me);
    int64_t items = (me.rows + LANES - 1) / LANES * q.blocks;
    for (int64_t item = items * me.thread / me.threads; item < items * (me.thread + 1) / me.threads; item++) {
        int64_t panel = item / q.blocks, block = item % q.blocks;
        alignas(64) int8_t values[LANES][BLOCK];
        for (int i = 0; i < LANES; i++) {
            float scale = 0;
            int32_t start = 0;
            if (panel * LANES + i < me.rows)
                quantize_block<W>(a, panel * LANES + i, block, values[i], scale, &start);
            else
                memset(values[i], 0, BLOCK);
            q.scales[item * LANES + i] = scale;
            q.starts[item * LANES + i] = start;
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
    auto* scales = (const Int4Scales*)g.scales;
    for (int64_t b = 0; b < q.blocks; b++) {
        vec block[ROWS];
UNROLL(12)
        for (int r = 0; r < ROWS; r++) block[r] = zero();
        prefetch(scales + b + 16);
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
            vec factor = load_int8(scales[b].factor[part]);
UNROLL(12)
            for (int r = 0; r < ROWS; r++) {
                int64_t at = r * q.blocks + b;
                ivec s = iset1(q.starts[at * 4 + part]), odd = izero();
UNROLL(4)
                for (int j = 0; j < 4; j++) {
                    s = dot_bytes(s, w[j], word_of(q.values, at * WORDS + part * 8 + j));
                    odd = dot_bytes(odd, w[j + 4], word_of(q.values, at * WORDS + part * 8 + j + 4));
                }
                block[r] = fma(to_float(iadd(s, odd)), factor, block[r]);  // exact: integers below 2^24
            }
        }
        vec scale = load(scales[b].scale);
        for (int r = 0; r < ROWS; r++)
            sum[r] = fma(block[r], mul(scale, set1(q.scales[r * q.blocks + b])), sum[r]);
    }
}

template <class W, int ROWS>
NOINLINE void few_quantized(const LinearArgs& a, const Worker& me, int64_t group) {
    Quantized q = quantized<W>(a, me);
    vec sum[ROWS], up[ROWS];
    for (int r = 0; r < ROWS; r++) sum[r] = up[r] = zero();
    few_sum<ROWS>(W(), sum, a.groups[group], q);
    if (a.gated) few_sum<ROWS>(W(), up, a.groups[group + a.num_groups / 2], q);
    finish(a, 0, ROWS, group, sum, up);
}

// ---- many rows ----

// A group as the inner loop wants it: [words][16] of four values + 128, and INT4's scales, [blocks][16].
struct Unpacked {
    const char* words;
    const float* scales;
};

INLINE int64_t unpacked_bytes(int64_t width) { return blocks_of(width) * (WORDS * 64 + LANES * 4); }

INLINE void unpack(Int4, const Group& g, int64_t blocks, int64_t ahead, char* words, float* scales) {
    for (int64_t b = 0; b < blocks; b++) {
        const Int4Scales& s = ((const Int4Scales*)g.scales)[b];
        store(scales + b * LANES, load(s.scale));
        for (int part = 0; part < 4; part++) {
            ivec factor = spread_int8(s.factor[part]), offset = offsets_of(factor);
            for (int j = 0; j < 4; j++) {
                const char* p = g.rows + ((b * 4 + part) * 4 + j) * 64;
                ivec both = iload(p);
                prefetch_far(p + ahead);
                char* out = words + ((b * 4 + part) * 8 + j) * 64;
                istore(out, scale_bytes(low_nibbles(both), factor, offset));
                istore(out + 4 * 64, scale_bytes(high_nibbles(both), factor, offset));
            }
        }
    }
}

// ROWS of a group's rows from `n` on, times PANELS panels of x -> out [PANELS][16][16].
template <class W, int ROWS, int PANELS>
INLINE void many_tile(const Unpacked& u, int n, const Quantized& q, int64_t panel, int64_t ahead, float* out) {
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
        const int8_t* x = q.values + (panel * q.blocks + b) * WORDS * 64;
        if (!W::UNPACKED && panel == 0)  // each tile of rows fetches its share of a later group
            for (int j = n * WORDS / LANES; j < (n + ROWS) * WORDS / LANES; j++)
                prefetch_far(u.words + ahead + (b * WORDS + j) * 64);
UNROLL(4)
        for (int j = 0; j < WORDS; j++) {
            ivec v[PANELS];
UNROLL(3)
            for (int p = 0; p < PANELS; p++) v[p] = iload(x + (p * q.blocks * WORDS + j) * 64);
UNROLL(16)
            for (int r = 0; r < ROWS; r++) {
                ivec word = iset1(*(const int32_t*)(w + j * 64 + r * 4));
UNROLL(3)
                for (int p = 0; p < PANELS; p++) s[r][p] = dot_bytes(s[r][p], word, v[p]);
            }
        }
UNROLL(3)
        for (int p = 0; p < PANELS; p++) {
            vec scale = load(q.scales + ((panel + p) * q.blocks + b) * LANES);
UNROLL(16)
            for (int r = 0; r < ROWS; r++) {
                float* at = out + (p * LANES + n + r) * LANES;
                vec both = W::UNPACKED ? mul(set1(u.scales[b * LANES + n + r]), scale) : scale;
                store(at, fma(to_float(s[r][p]), both, load(at)));
            }
        }
    }
}

template <class W, int PANELS>
NOINLINE void many_quantized(const LinearArgs& a, const Worker& me, int64_t group, int64_t panel, int64_t skip) {
    constexpr int ROWS = PANELS == 1 ? 16 : 8;
    Quantized q = quantized<Int8>(a, me);
    int64_t ahead = q.blocks * WORDS * W::WORD_BYTES * skip;
    alignas(64) float sums[2][PANELS * LANES * LANES];
    for (int half = 0; half < (a.gated ? 2 : 1); half++) {
        const Group& g = a.groups[group + half * a.num_groups / 2];
        Unpacked u = {g.rows, nullptr};
        if constexpr (W::UNPACKED) {
            char* words = me.own + half * unpacked_bytes(a.width);
            auto* scales = (float*)(words + q.blocks * WORDS * 64);
            if (panel == 0) unpack(W(), g, q.blocks, ahead, words, scales);
            u = {words, scales};
        }
        for (int n = 0; n < LANES; n += ROWS) many_tile<W, ROWS, PANELS>(u, n, q, panel, ahead, sums[half]);
        if (!W::UNPACKED)
            for (int i = 0; i < PANELS * LANES; i++) {
                float* at = sums[half] + i * LANES;
                store(at, mul(load(at), set1(((const float*)g.scales)[i % LANES])));
            }
    }
    finish_panels<PANELS>(a, me, group, panel, sums[0], sums[1]);
}

// ---- quantizing weights ----


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

// 16 elements of each row, as columns: lane = row.
INLINE void load_block(const float* rows, int64_t padded, int64_t k, vec* columns) {
    ivec words[LANES];
    for (int i = 0; i < LANES; i++) words[i] = iload(rows + i * padded + k);
    transpose(words);
    for (int j = 0; j < LANES; j++) columns[j] = as_float(words[j]);
}

INLINE void pack_int8(const float* rows, int64_t padded, char* packed, float* scales) {
    vec peak = zero(), columns[LANES];
    for (int64_t k = 0; k < padded; k += LANES) {
        load_block(rows, padded, k, columns);
        for (int j = 0; j < LANES; j++) peak = max(peak, abs(columns[j]));
    }
    store(scales, div(peak, set1(127)));
    vec inverse = if_less(zero(), peak, div(set1(127), peak), zero()), offset = set1(128);
    for (int64_t k = 0; k < padded; k += LANES) {
        load_block(rows, padded, k, columns);
        ivec q[LANES];
        for (int j = 0; j < LANES; j++) q[j] = to_int(fma(columns[j], inverse, offset));
        for (int j = 0; j < LANES; j += 4)
            istore(packed + (k + j) / 4 * 64, join_bytes(q[j], q[j + 1], q[j + 2], q[j + 3]));
    }
}

// The nearest of 16 steps, as a number from 0 to 15.
INLINE vec nibble(vec x, vec inverse) { return min(set1(15), max(zero(), round(fma(x, inverse, set1(8))))); }

// The squared error of 32 columns with a scale per lane; 1 / 0 stands for a scale of 0.
INLINE vec error_of(const vec* columns, vec scale) {
    vec inverse = div(set1(1), scale), total = zero();
    for (int j = 0; j < FINE; j++) {
        vec e = sub(columns[j], mul(sub(nibble(columns[j], inverse), set1(8)), scale));
        total = fma(e, e, total);
    }
    return total;
}

// Per lane the scale, of a few, with the least error: the greatest value stands at -9 … -6.75 steps.
INLINE vec best_scale(const vec* columns) {
    vec high = columns[0], low = columns[0];
    for (int j = 1; j < FINE; j++) high = max(high, columns[j]), low = min(low, columns[j]);
    vec most = if_less(sub(zero(), low), high, high, low), best = zero(), least = set1(INFINITY);
    for (int i = 0; i < 4; i++) {
        vec scale = mul(most, set1(-1 / (9 - .75f * i))), error = error_of(columns, scale);
        best = if_less(error, least, scale, best), least = if_less(error, least, error, least);
    }
    return best;
}

INLINE void pack_int4_block(const vec* columns, char* packed, Int4Scales& scales) {
    vec found[4], largest = zero();
    for (int part = 0; part < 4; part++) {
        found[part] = best_scale(columns + part * FINE);
        largest = max(largest, abs(found[part]));
    }
    store(scales.scale, mul(largest, set1(1.f / 15)));
    vec scale = load(scales.scale);
    vec inverse = if_less(zero(), scale, div(set1(1), scale), zero());
    for (int part = 0; part < 4; part++) {
        vec factor = round(mul(found[part], inverse));
        factor = if_less(set1(15), factor, set1(15), if_less(factor, set1(-15), set1(-15), factor));
        store_int8(scales.factor[part], to_int(factor));
        vec step = mul(scale, factor);
        vec per_step = if_less(zero(), abs(step), div(set1(1), step), zero());
        ivec q[FINE], words[8];
        for (int j = 0; j < FINE; j++) q[j] = to_int(nibble(columns[part * FINE + j], per_step));
        for (int j = 0; j < 8; j++) words[j] = join_bytes(q[4 * j], q[4 * j + 1], q[4 * j + 2], q[4 * j + 3]);
        for (int j = 0; j < 4; j++) istore(packed + (part * 4 + j) * 64, join_nibbles(words[j], words[j + 4]));
    }
}

INLINE void pack_int4(const float* rows, int64_t padded, char* packed, Int4Scales* scales) {
    for (int64_t b = 0; b < padded / BLOCK; b++) {
        vec columns[BLOCK];
        for (int64_t k = 0; k < BLOCK; k += LANES) load_block(rows, padded, b * BLOCK + k, columns + k);
        pack_int4_block(columns, packed + b * WORDS * Int4::WORD_BYTES, scales[b]);
    }
}

int64_t quantize_own(const QuantizeArgs& a) { return LANES * blocks_of(a.width) * BLOCK * 4; }

void quantize(const Args& args, const Worker& me) {
    const QuantizeArgs& a = args.quantize;
    int64_t blocks = blocks_of(a.width), padded = blocks * BLOCK, groups = (me.rows + LANES - 1) / LANES;
    auto* rows = (float*)me.own;
    for (int64_t g; (g = me.take(1)) < groups;) {
        load_rows(a, g * LANES, me.rows, padded, rows);
        char* packed = (char*)a.packed + g * group_bytes(a.width, a.format);
        if (a.format == INT8)
            pack_int8(rows, padded, packed, (float*)a.scales + g * LANES);
        else
            pack_int4(rows, padded, packed, (Int4Scales*)a.scales + g * blocks);
    }
}
