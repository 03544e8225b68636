// Products in tiles of 16 rows by 64 bytes.
//
//   bfloat16     16 rows of W, where they lie     x  16 words of a panel of x         ->  [16 columns][16 rows of x]
//   INT8, INT4   16 rows of x, quantized          x  16 words of a group              ->  [16 rows of x][16 columns]
//
// Two groups meet two panels at a time: four products for four tiles that are loaded.  Integers are added exactly, so few
// rows, and all other kernels, have the same result.  Sums of bfloat16 are rounded tile by tile: a single row goes this way
// too, as a panel that is one row wide.

struct alignas(64) TileShapes {
    uint8_t palette = 1, start = 0, unused[14] = {};
    uint16_t bytes[16] = {};  // of a row
    uint8_t rows[16] = {};
};

// What was stored before is in memory when a tile is loaded behind: compilers don't see what the instruction reads.
INLINE void settle() { asm volatile("" ::: "memory"); }

// Tiles 0 … 3 are sums of `lanes` columns, 4 and 5 what is on the left, 6 and 7 what is on the right.
INLINE void shape_tiles(int lanes) {
    TileShapes shapes;
    for (int i = 0; i < 8; i++) {
        shapes.bytes[i] = (uint16_t)(i == 4 || i == 5 ? 64 : 4 * lanes);
        shapes.rows[i] = LANES;
    }
    settle();
    _tile_loadconfig(&shapes);
}

INLINE void zero_tiles() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

// Sum (group, panel) is tile 2 · group + panel.
template <int GROUPS, int PANELS>
INLINE void store_tiles(void* out) {
    char* at = (char*)out;
    _tile_stored(0, at, 64);
    if constexpr (PANELS == 2) _tile_stored(1, at + 1024, 64);
    if constexpr (GROUPS == 2) _tile_stored(2, at + PANELS * 1024, 64);
    if constexpr (GROUPS == 2 && PANELS == 2) _tile_stored(3, at + 3 * 1024, 64);
}

// ---- bfloat16 ----

INLINE int64_t tile_steps(int64_t width) { return (width * 2 + 63) / 64; }

// x as panels of 16 rows, or of fewer where there are fewer: [panels][words, in whole tiles][rows].
INLINE void make_tile_panels(const LinearArgs& a, const Worker& me) {
    int64_t words = a.width / 2, steps = tile_steps(a.width), panels = (me.rows + LANES - 1) / LANES;
    int64_t lanes = std::min<int64_t>(LANES, me.rows);
    for (int64_t item = panels * steps * me.thread / me.threads; item < panels * steps * (me.thread + 1) / me.threads;
         item++) {
        int64_t panel = item / steps, at = item % steps * LANES;
        int count = (int)std::min<int64_t>(LANES, words - at);
        char* out = me.shared + (panel * steps * LANES + at) * lanes * 4;
        ivec w[LANES];
        for (int i = 0; i < LANES; i++) {
            int64_t row = panel * LANES + i;
            w[i] = row < me.rows ? iload((const char*)a.x + row * a.x_stride * 2 + at * 4, count) : izero();
        }
        transpose(w);
        for (int j = 0; j < LANES; j++) {
            if (lanes == LANES)
                istore(out + j * 64, w[j]);
            else
                store((float*)(out + j * lanes * 4), as_float(w[j]), (int)lanes);
        }
    }
}

struct TileRows {
    const char* first;
    int64_t stride;
};

// Bytes [64 step, 64 step + 64) of a group's rows; what is not there is zero.
INLINE TileRows rows_of(const Group& g, int64_t step, int64_t row_bytes, char* spare) {
    int64_t count = std::min<int64_t>(64, row_bytes - step * 64);
    if (g.count == LANES && count == 64) return {g.rows + step * 64, g.stride};
    memset(spare, 0, 1024);
    for (int i = 0; i < g.count; i++) memcpy(spare + i * 64, g.rows + i * g.stride + step * 64, count);
    settle();
    return {spare, 64};
}

// -> out [GROUPS][PANELS][16][16]
template <int GROUPS, int PANELS>
NOINLINE void pair_tiles(const Group* const* g, int64_t width, const char* panel, int64_t lanes, int64_t ahead, float* out) {
    int64_t steps = tile_steps(width), line = lanes * 4, panel_bytes = steps * LANES * line;
    alignas(64) char spare[2][1024];
    zero_tiles();
    for (int64_t step = 0; step < steps; step++) {
        const char* x = panel + step * LANES * line;
        TileRows w = rows_of(*g[0], step, width * 2, spare[0]);
        _tile_loadd(4, w.first, w.stride);
        if (ahead)
            for (int i = 0; i < LANES; i++) prefetch_far(w.first + i * w.stride + ahead);
        _tile_loadd(6, x, line);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (PANELS == 2) {
            _tile_loadd(7, x + panel_bytes, line);
            _tile_dpbf16ps(1, 4, 7);
        }
        if constexpr (GROUPS == 2) {
            TileRows other = rows_of(*g[1], step, width * 2, spare[1]);
            _tile_loadd(5, other.first, other.stride);
            if (ahead)
                for (int i = 0; i < LANES; i++) prefetch_far(other.first + i * other.stride + ahead);
            _tile_dpbf16ps(2, 5, 6);
            if constexpr (PANELS == 2) _tile_dpbf16ps(3, 5, 7);
        }
    }
    store_tiles<GROUPS, PANELS>(out);
}

struct Pair {
    int64_t first;     // a group, or with a gate its gate
    const Group* groups[2];
    int count;         // 2, or 1 where a second is missing
    bool gated;        // the second is what the first is the gate of
};

INLINE Pair pair_of(const LinearArgs& a, int64_t item) {
    if (a.gated) return {item, {a.groups + item, a.groups + item + a.num_groups / 2}, 2, true};
    return {item, {a.groups + item, a.groups + item + 1}, item + 1 < a.num_groups ? 2 : 1, false};
}

template <int GROUPS, int PANELS>
INLINE void dense_tiles(const LinearArgs& a, const Worker& me, const Pair& pair, int64_t panel, int64_t ahead) {
    alignas(64) float sums[2][PANELS * LANES * LANES];
    int64_t lanes = std::min<int64_t>(LANES, me.rows);
    const char* x = me.shared + panel * tile_steps(a.width) * LANES * 64;
    pair_tiles<GROUPS, PANELS>(pair.groups, a.width, x, lanes, ahead, sums[0]);
    if (pair.gated) return finish_panels<PANELS>(a, me, pair.first, panel, sums[0], sums[1]);
    for (int i = 0; i < GROUPS; i++) finish_panels<PANELS>(a, me, pair.first + i, panel, sums[i], nullptr);
}

// ---- integers ----

// x quantized: [panels][blocks][2][16 rows][64 values]; scales and starts [panels][blocks][16 rows].
INLINE void quantize_tiles(const LinearArgs& a, const Worker& me) {
    Quantized q = quantized<Int8>(a, me);
    int64_t items = (me.rows + LANES - 1) / LANES * q.blocks;
    for (int64_t item = items * me.thread / me.threads; item < items * (me.thread + 1) / me.threads; item++) {
        int8_t* tiles = q.values + item * BLOCK * LANES;
        for (int i = 0; i < LANES; i++) {
            int64_t row = item / q.blocks * LANES + i;
            alignas(64) int8_t values[BLOCK] = {};
            float scale = 0;
            int32_t start = 0;
            if (row < me.rows) quantize_block<Int8>(a, row, item % q.blocks, values, scale, &start);
            q.scales[item * LANES + i] = scale;
            q.starts[item * LANES + i] = start;
            for (int half = 0; half < 2; half++) istore(tiles + (half * LANES + i) * 64, iload(values + half * 64));
        }
    }
}

// One block of each group and panel, added to `sums` [GROUPS][PANELS][16 rows of x][16 columns].
template <class W, int GROUPS, int PANELS>
INLINE void add_block(const Unpacked* u, const Quantized& q, int64_t panel, int64_t b, int32_t* block, float* sums) {
    zero_tiles();
    for (int half = 0; half < 2; half++) {
        const int8_t* x = q.values + ((panel * q.blocks + b) * 2 + half) * 1024;
        int64_t at = (b * 2 + half) * 1024;
        _tile_loadd(4, x, 64);
        _tile_loadd(6, u[0].words + at, 64);
        _tile_dpbsud(0, 4, 6);
        if constexpr (PANELS == 2) {
            _tile_loadd(5, x + q.blocks * 2048, 64);
            _tile_dpbsud(1, 5, 6);
        }
        if constexpr (GROUPS == 2) {
            _tile_loadd(7, u[1].words + at, 64);
            _tile_dpbsud(2, 4, 7);
            if constexpr (PANELS == 2) _tile_dpbsud(3, 5, 7);
        }
    }
    store_tiles<GROUPS, PANELS>(block);
    for (int g = 0; g < GROUPS; g++) {
        vec of_group = W::UNPACKED ? load(u[g].scales + b * LANES) : set1(1);
        for (int p = 0; p < PANELS; p++) {
            int64_t at = ((panel + p) * q.blocks + b) * LANES;
UNROLL(4)
            for (int i = 0; i < LANES; i++) {
                float* sum = sums + ((g * PANELS + p) * LANES + i) * LANES;
                ivec s = iadd(iload(block + ((g * PANELS + p) * LANES + i) * LANES), iset1(q.starts[at + i]));
                vec scale = set1(q.scales[at + i]);
                store(sum, fma(to_float(s), W::UNPACKED ? mul(of_group, scale) : scale, load(sum)));
            }
        }
    }
}

template <class W, int GROUPS, int PANELS>
INLINE void integer_tiles(const LinearArgs& a, const Worker& me, const Pair& pair, int64_t panel, int64_t ahead) {
    Quantized q = quantized<Int8>(a, me);
    Unpacked u[2];
    for (int i = 0; i < GROUPS; i++) {
        const Group& g = *pair.groups[i];
        u[i] = {g.rows, nullptr};
        if constexpr (W::UNPACKED) {
            char* words = me.own + i * unpacked_bytes(a.width);
            auto* scales = (float*)(words + q.blocks * WORDS * 64);
            if (panel == 0) unpack(W(), g, q.blocks, ahead, words, scales);
            u[i] = {words, scales};
        }
    }
    settle();
    alignas(64) float sums[GROUPS][PANELS][LANES][LANES] = {};
    alignas(64) int32_t block[2][GROUPS * PANELS * LANES * LANES];
    for (int64_t b = 0; b < q.blocks; b++) {
        if (!W::UNPACKED && ahead)
            for (int i = 0; i < GROUPS; i++)
                for (int j = 0; j < WORDS; j++) prefetch_far(u[i].words + ahead + (b * WORDS + j) * 64);
        add_block<W, GROUPS, PANELS>(u, q, panel, b, block[b % 2], sums[0][0][0]);
    }
    for (int p = 0; p < PANELS; p++) {
        int64_t first = (panel + p) * LANES;
        int count = (int)std::min<int64_t>(LANES, me.rows - first);
        vec v[GROUPS][LANES];
        for (int g = 0; g < GROUPS; g++)
            for (int i = 0; i < count; i++) {
                v[g][i] = load(sums[g][p][i]);
                if (!W::UNPACKED) v[g][i] = mul(v[g][i], load((const float*)pair.groups[g]->scales));
            }
        if (pair.gated)
            finish(a, first, count, pair.first, v[0], v[GROUPS - 1]);
        else
            for (int g = 0; g < GROUPS; g++) finish(a, first, count, pair.first + g, v[g], nullptr);
    }
}

// ---- both ----

INLINE bool in_tiles(const LinearArgs& a, int64_t rows) {
    return a.format == BFLOAT16 || (a.format != FLOAT32 && rows > FEW_ROWS);
}

INLINE void prepare_tiles(const LinearArgs& a, const Worker& me) {
    a.format == BFLOAT16 ? make_tile_panels(a, me) : quantize_tiles(a, me);
}

template <int32_t FORMAT, int GROUPS, int PANELS>
NOINLINE void tiles_of(const LinearArgs& a, const Worker& me, const Pair& pair, int64_t panel, int64_t ahead) {
    if constexpr (FORMAT == BFLOAT16) dense_tiles<GROUPS, PANELS>(a, me, pair, panel, ahead);
    if constexpr (FORMAT == INT8) integer_tiles<Int8, GROUPS, PANELS>(a, me, pair, panel, ahead);
    if constexpr (FORMAT == INT4) integer_tiles<Int4, GROUPS, PANELS>(a, me, pair, panel, ahead);
}

// A pair of groups meets all panels before the next pair's turn, so that it is read from memory once.
template <int32_t FORMAT>
INLINE void multiply_as(const LinearArgs& a, const Worker& me) {
    int64_t items = a.gated ? a.num_groups / 2 : a.num_groups, panels = (me.rows + LANES - 1) / LANES;
    int64_t bytes = FORMAT == BFLOAT16 ? a.width * 2 * LANES : group_bytes(a.width, FORMAT);
    int64_t pair = a.gated ? 1 : 2;
    int64_t run = me.rows > LANES ? 2 : std::max<int64_t>(2, std::min(items / (4 * me.threads), (256 << 10) / bytes) / 2 * 2);
    shape_tiles(FORMAT == BFLOAT16 ? (int)std::min<int64_t>(LANES, me.rows) : LANES);
    for (int64_t first; (first = me.take(run)) < items;)
        for (int64_t item = first, end = std::min(items, first + run); item < end; item += pair) {
            Pair now = pair_of(a, item);
            int64_t skip = item + pair < end ? pair : pair + run * (me.threads - 1);
            int64_t ahead = FORMAT == BFLOAT16 ? now.groups[0]->stride * LANES * skip : bytes * skip;
            for (int64_t panel = 0; panel < panels; panel += 2) {
                bool two = panel + 1 < panels;
                auto* compute = now.count == 2 ? (two ? tiles_of<FORMAT, 2, 2> : tiles_of<FORMAT, 2, 1>)
                                               : (two ? tiles_of<FORMAT, 1, 2> : tiles_of<FORMAT, 1, 1>);
                compute(a, me, now, panel, panel ? 0 : ahead);
            }
        }
    _tile_release();
}

INLINE void multiply_tiles(const LinearArgs& a, const Worker& me) {
    switch (a.format) {
        case BFLOAT16: return multiply_as<BFLOAT16>(a, me);
        case INT8: return multiply_as<INT8>(a, me);
        case INT4: return multiply_as<INT4>(a, me);
    }
}
