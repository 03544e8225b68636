// Attention over the paged cache: softmax(q kᵀ · scale) v for the tokens of a step.
//
// A row is one head of one token.  The heads that share a kv head, times neighbouring tokens of a sequence, are the rows
// of an item; an item walks over its keys in chunks of 64 at absolute positions, with a running maximum and sum:
//
//   keys     0         64        128       192
//            ├─────────┼─────────┼─────────┤
//   row a    ███████████████████████░░░░░░░      ░ masked
//   row b              ░░░███████████░░░░░░      (a window: the walk starts at the first visible chunk)
//
// Rows go through registers in tiles of at most 12, which is all that decoding, prompts and mixtures of them differ in.
// A row meets the same chunks in the same order whatever stands beside it, and a chunk that is masked for it changes not
// a bit of it.  Every 1024 keys (a segment) the maximum and the sum begin anew, and segments are joined in their order:
// so segments of few, long rows can be computed by several threads, with the bits that one thread gets.

constexpr int CHUNK = 64, CHUNK_PAGES = CHUNK / PAGE;
constexpr int64_t SEGMENT = 1024;
constexpr int TILE = 12, TILES = 4, MOST_ROWS = TILE * TILES;
constexpr int COLUMNS = 2 * LANES;  // of the output, that a tile has in registers
constexpr float LOG2E = 1.44269504f, LN2 = 0.69314718f;
constexpr float LOWEST = -1e30f;  // the maximum before the first key; finite, so that -inf minus it is -inf

// Some rows of one sequence and one kv head.  Row i is head i % group of token i / group.
struct Item {
    int64_t row;          // of the plan
    int64_t head;         // kv head
    int64_t first_row;
    int rows, per_tile, tiles;

    void cut(int64_t first, int count) {
        first_row = first;
        rows = count;
        tiles = (count + TILE - 1) / TILE;
        per_tile = (count + tiles - 1) / tiles;
    }
};

// What some keys come to for each row of an item: sums of weights and of weighted values, relative to a maximum.
struct Partial {
    float highest[MOST_ROWS], total[MOST_ROWS];
    // Behind them lies the output: [tiles][blocks of columns][TILE][COLUMNS].

    INLINE int64_t blocks(int64_t width) { return (width + COLUMNS - 1) / COLUMNS; }
    INLINE int64_t bytes(int64_t width, int64_t tiles) {
        return (int64_t)sizeof(Partial) + tiles * blocks(width) * TILE * COLUMNS * 4;
    }
    float* tile(int64_t width, int tile) {
        return (float*)(this + 1) + tile * blocks(width) * TILE * COLUMNS;
    }
    float* at(int64_t width, const Item& item, int row, int64_t column) {
        int64_t block = column / COLUMNS;
        return tile(width, row / item.per_tile) + (block * TILE + row % item.per_tile) * COLUMNS + column % COLUMNS;
    }
    void clear(int64_t width, int tiles) {
        for (int i = 0; i < MOST_ROWS; i++) highest[i] = LOWEST;
        memset((void*)tile(width, 0), 0, bytes(width, tiles) - sizeof(Partial));
    }
};

// The keys that an item sees in a segment, and what all of its tiles read.
template <class T>
struct Walk {
    int64_t low, high;          // seen by some row: [low, high)
    int64_t low_all, high_all;  // seen by every row
    int64_t position[MOST_ROWS];
    float base2;   // from a score as it stands before the softmax to a power of 2
    float *scores, *sums;       // [TILE][CHUNK], [rows][LANES]
    T* weights;                 // [TILE][CHUNK]
    char* queries;              // [tiles][words][LANES] words
    T *key_room, *value_room;   // CHUNK_PAGES pages each, for what can't be read where it lies
    const char *pages[2 * CHUNK_PAGES], *next[2 * CHUNK_PAGES];  // of this chunk and the next: keys, values, keys, …
    int64_t scale_at[CHUNK_PAGES];                               // this chunk's scales
    bool adjusted;  // something but a scale stands between a product and the softmax
};

// ---- products ----

// Scores of one tile with a chunk's keys.  -> [TILE][CHUNK]
template <class T, int R>
NOINLINE void score(const char* queries, const char* const* pages, const char* const* next, int64_t words, float* out) {
    using Word = typename Of<T>::Word;
    constexpr int V = R <= 6 ? 4 : 2;  // pages at a time
UNROLL(2)
    for (int first = 0; first < CHUNK_PAGES; first += V) {
        const char *key[V], *soon[2 * V];
UNROLL(8)
        for (int i = 0; i < V; i++) {
            key[i] = pages[2 * (first + i)];
            soon[2 * i] = next[2 * (first + i)], soon[2 * i + 1] = next[2 * (first + i) + 1];
        }
        vec sum[R][V];
UNROLL(12)
        for (int r = 0; r < R; r++)
UNROLL(4)
            for (int i = 0; i < V; i++) sum[r][i] = zero();
        for (int64_t w = 0; w < words * 64; w += 64) {
            ivec k[V];
UNROLL(4)
            for (int i = 0; i < V; i++) k[i] = iload(key[i] + w);
UNROLL(8)
            for (int i = 0; i < 2 * V; i++) prefetch_far(soon[i] + w);
UNROLL(12)
            for (int r = 0; r < R; r++) {
                ivec q = iset1(*(const int32_t*)(queries + w + r * 4));
UNROLL(4)
                for (int i = 0; i < V; i++) sum[r][i] = Word::dot(sum[r][i], k[i], q);
            }
        }
UNROLL(12)
        for (int r = 0; r < R; r++)
UNROLL(4)
            for (int i = 0; i < V; i++) store(out + r * CHUNK + (first + i) * PAGE, sum[r][i]);
    }
}

// Add the weighted values of pages to C x 16 columns of one tile's output.  [TILE][CHUNK] -> [TILE][COLUMNS]
template <class T, int R, int C>
INLINE void mix_columns(const T* weights, const char* const* pages, int num_pages, int64_t at, int64_t stride, float* out) {
    using Word = typename Of<T>::Word;
    constexpr int PER = Of<T>::PER;
    vec sum[R][C];
UNROLL(12)
    for (int r = 0; r < R; r++)
UNROLL(2)
        for (int c = 0; c < C; c++) sum[r][c] = load(out + r * COLUMNS + c * LANES);
    for (int p = 0; p < num_pages; p++) {
        const char* value = pages[2 * p] + at;
        const T* weight = weights + p * PAGE;
        for (int j = 0; j < PAGE; j += PER, value += stride) {
            ivec v[C];
UNROLL(2)
            for (int c = 0; c < C; c++) v[c] = iload(value + c * 64);
UNROLL(12)
            for (int r = 0; r < R; r++) {
                ivec w = iset1(*(const int32_t*)(weight + r * CHUNK + j));
UNROLL(2)
                for (int c = 0; c < C; c++) sum[r][c] = Word::dot(sum[r][c], v[c], w);
            }
        }
    }
UNROLL(12)
    for (int r = 0; r < R; r++)
UNROLL(2)
        for (int c = 0; c < C; c++) store(out + r * COLUMNS + c * LANES, sum[r][c]);
}

template <class T, int R>
NOINLINE void mix(const T* weights, const char* const* pages, int num_pages, int64_t words, float* out) {
    for (int64_t at = 0; at < words; at += COLUMNS, out += TILE * COLUMNS) {
        if (words - at >= COLUMNS)
            mix_columns<T, R, 2>(weights, pages, num_pages, at * 4, words * 4, out);
        else
            mix_columns<T, R, 1>(weights, pages, num_pages, at * 4, words * 4, out);
    }
}

template <class T>
struct Products {
    using Score = void (*)(const char*, const char* const*, const char* const*, int64_t, float*);
    using Mix = void (*)(const T*, const char* const*, int, int64_t, float*);
    static const Score score_rows[TILE + 1];
    static const Mix mix_rows[TILE + 1];
};
template <class T>
const typename Products<T>::Score Products<T>::score_rows[TILE + 1] = {
    nullptr,     score<T, 1>, score<T, 2>, score<T, 3>, score<T, 4>,  score<T, 5>,  score<T, 6>,
    score<T, 7>, score<T, 8>, score<T, 9>, score<T, 10>, score<T, 11>, score<T, 12>};
template <class T>
const typename Products<T>::Mix Products<T>::mix_rows[TILE + 1] = {
    nullptr,   mix<T, 1>, mix<T, 2>, mix<T, 3>, mix<T, 4>,  mix<T, 5>,  mix<T, 6>,
    mix<T, 7>, mix<T, 8>, mix<T, 9>, mix<T, 10>, mix<T, 11>, mix<T, 12>};

// ---- from scores to weights ----

INLINE vec weigh(vec x, float) { return exp2(x); }
INLINE vec weigh(vec x, bf16) { return exp2_coarse(x); }

// Keep x where the key is seen, else `other`; the 16 keys begin at `key`, seen are [low, high).
INLINE vec mask(vec x, int64_t key, int64_t low, int64_t high, float other) {
    if (high < key + LANES) x = first((int)std::max<int64_t>(0, high - key), x, set1(other));
    if (low > key) x = first((int)std::min<int64_t>(LANES, low - key), set1(other), x);
    return x;
}

// What stands between a product and the softmax when it is more than a scale.
template <class T>
INLINE void adjust(const AttentionArgs& a, const Walk<T>& walk, int64_t head, int64_t position, int64_t key, float* s) {
    alignas(64) static const float STEPS[LANES] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int i = 0; i < CHUNK_PAGES; i++, key += PAGE, s += PAGE) {
        vec x = mul(load(s), set1(a.scale));
        if (a.key_scales) x = mul(x, load(a.key_scales + walk.scale_at[i]));
        if (a.softcap) x = mul(set1(a.softcap), tanh(div(x, set1(a.softcap))));
        if (a.slopes) x = fma(set1(a.slopes[head]), add(load(STEPS), set1((float)(key - position))), x);
        store(s, x);
    }
}

INLINE void fade(float* output, int64_t blocks, int row, vec by) {
    for (float* o = output + row * COLUMNS; blocks > 0; blocks--, o += TILE * COLUMNS)
        store(o, mul(load(o), by)), store(o + LANES, mul(load(o + LANES), by));
}

// Turn one row's scores into weights, having lowered what was summed so far if the maximum grew.
template <class T>
INLINE void soften(const AttentionArgs& a, const Walk<T>& walk, int64_t position, int64_t key, bool whole, int in_tile,
                   float& highest, float* sums, float* output) {
    const float* s = walk.scores + in_tile * CHUNK;
    T* weights = walk.weights + in_tile * CHUNK;
    int64_t low = a.window ? position - a.window + 1 : 0, high = position + 1;
    vec x[CHUNK_PAGES];
    for (int i = 0; i < CHUNK_PAGES; i++) {
        x[i] = load(s + i * PAGE);
        if (!whole) x[i] = mask(x[i], key + i * PAGE, low, high, -__builtin_inff());
    }
    vec peak = max(max(x[0], x[1]), max(x[2], x[3])), sum = load(sums);
    if (any_greater(peak, set1(highest))) {
        float before = highest;
        highest = greatest(peak);
        vec by = exp2(set1((before - highest) * walk.base2));
        fade(output, Partial::blocks(a.value_width), in_tile, by);
        sum = mul(sum, by);
    }
    vec scale = set1(walk.base2), shift = set1(-highest * walk.base2);
    for (int i = 0; i < CHUNK_PAGES; i++) {
        vec w = weigh(fma(x[i], scale, shift), T());
        if (a.value_scales || sizeof(T) == 4) sum = add(sum, w);
        if (a.value_scales) {
            w = mul(w, load(a.value_scales + walk.scale_at[i]));
            if (!whole) w = mask(w, key + i * PAGE, low, high, 0.f);
        }
        store(weights + i * PAGE, w);
    }
    store(sums, sum);
}

// Sums of rounded weights, so that the weights that values are multiplied with add up to 1.
INLINE void add_rounded(const bf16* weights, float* sums) {
    ivec ones = iset1(0x3f803f80);
    vec sum = dot_pairs(load(sums), iload(weights), ones);
    store(sums, dot_pairs(sum, iload(weights + CHUNK / 2), ones));
}
INLINE void add_rounded(const float*, float*) {}

// ---- the walk ----

// Set the values of a page's tokens outside [from, to) to zero.
template <class T>
INLINE void clear_outside(T* page, int64_t words, int64_t from, int64_t to) {
    constexpr int PER = Of<T>::PER;
    for (int64_t t = 0; t < PAGE; t += PER) {
        bool none = t + PER <= from || t >= to;
        if (none) memset(page + t * words, 0, words * 4);
        if (none || (t >= from && t + PER <= to)) continue;
        for (int64_t i = 0; i < words; i++) page[t * words + i * PER + (t < from ? 0 : PER - 1)] = 0;
    }
}

template <class T>
INLINE void widen_bytes(const char* bytes, const char* next, int64_t count, T* out) {
    for (int64_t i = 0; i < count; i += LANES) store(out + i, load_int8((const int8_t*)bytes + i));
    for (int64_t i = 0; i < count; i += 64) prefetch_far(next + i);
}

// Find a chunk's pages, and those of the next.  Values that no row sees may hold anything, and 0 · NaN is NaN: pages with
// such are copied without them.
template <class T>
INLINE void turn_to(const AttentionArgs& a, const Pages& pages, const Item& item, Walk<T>& walk, int64_t key) {
    int64_t last = (walk.high - 1) / PAGE, size = a.key_scales ? 1 : (int64_t)sizeof(T);
    for (int i = 0; i < CHUNK_PAGES; i++) {
        int64_t page = std::min(last, std::max(walk.low / PAGE, key / PAGE + i));
        int64_t found = pages.find(a, item.row, item.head, page);
        int64_t after = pages.find(a, item.row, item.head, std::min(last, page + CHUNK_PAGES));
        const char **here = walk.pages + 2 * i, **next = walk.next + 2 * i;
        here[0] = (const char*)a.keys + found * pages.key_size * size;
        here[1] = (const char*)a.values + found * pages.value_size * size;
        next[0] = (const char*)a.keys + after * pages.key_size * size;
        next[1] = (const char*)a.values + after * pages.value_size * size;
        walk.scale_at[i] = found * PAGE;
        T *key_room = walk.key_room + i * pages.key_size, *value_room = walk.value_room + i * pages.value_size;
        if (a.key_scales) {
            widen_bytes(here[0], next[0], pages.key_size, key_room);
            widen_bytes(here[1], next[1], pages.value_size, value_room);
            here[0] = next[0] = (const char*)key_room;
            here[1] = next[1] = (const char*)value_room;
        } else if (page * PAGE < walk.low || (page + 1) * PAGE > walk.high) {
            memcpy(value_room, here[1], pages.value_size * sizeof(T));
            clear_outside(value_room, pages.value_words, walk.low - page * PAGE, walk.high - page * PAGE);
            here[1] = (const char*)value_room;
        }
    }
}

// One tile, one chunk.
template <class T>
INLINE void step(const AttentionArgs& a, const Pages& pages, const Item& item, const Walk<T>& walk, int tile, int64_t key,
                 Partial& out) {
    int begin = tile * item.per_tile, rows = std::min(item.per_tile, item.rows - begin);
    int64_t words = a.width / Of<T>::PER, group = a.heads / a.kv_heads;
    float* output = out.tile(a.value_width, tile);
    Products<T>::score_rows[rows](walk.queries + tile * words * 64, walk.pages, tile ? walk.pages : walk.next, words,
                                  walk.scores);
    bool whole = key >= walk.low_all && key + CHUNK <= walk.high_all;
    for (int r = 0; r < rows; r++) {
        int i = begin + r;
        int64_t head = item.head * group + (item.first_row + i) % group;
        if (walk.adjusted) adjust(a, walk, head, walk.position[i], key, walk.scores + r * CHUNK);
        soften(a, walk, walk.position[i], key, whole, r, out.highest[i], walk.sums + i * LANES, output);
    }
    if (!a.value_scales)
        for (int r = 0; r < rows; r++) add_rounded(walk.weights + r * CHUNK, walk.sums + (begin + r) * LANES);
    int from = (int)(std::max(walk.low, key) - key) / PAGE;
    int to = (int)(std::min(walk.high, key + CHUNK) - key + PAGE - 1) / PAGE;
    Products<T>::mix_rows[rows](walk.weights + from * PAGE, walk.pages + 2 * from + 1, to - from, pages.value_words, output);
}

// Queries of a tile as columns: [words][LANES].
template <class T>
INLINE void pack_queries(const AttentionArgs& a, const Item& item, int tile, char* out) {
    int64_t words = a.width / Of<T>::PER, group = a.heads / a.kv_heads, first = a.plan->first[item.row];
    int begin = tile * item.per_tile, rows = std::min(item.per_tile, item.rows - begin);
    for (int64_t at = 0; at < words; at += LANES) {
        int count = (int)std::min<int64_t>(LANES, words - at);
        ivec w[LANES];
        for (int r = 0; r < LANES; r++) {
            int64_t i = item.first_row + begin + r;
            const T* q = (const T*)a.q + (first + i / group) * a.q_stride + (item.head * group + i % group) * a.width;
            w[r] = r < rows ? iload(q + at * Of<T>::PER, count) : izero();
        }
        transpose(w);
        for (int j = 0; j < count; j++) istore(out + (at + j) * 64, w[j]);
    }
}

// Pieces of a thread's scratch, one after another.
struct Room {
    char* at;
    char* take(int64_t bytes) {
        char* p = at;
        at += round_up(bytes, 64);
        return p;
    }
};

// All of an item's rows with the keys of one segment.
template <class T>
NOINLINE void walk_segment(const AttentionArgs& a, Room room, const Item& item, int64_t segment, Partial& out) {
    Pages pages = Pages::of(a);
    int64_t words = a.width / Of<T>::PER, group = a.heads / a.kv_heads;
    Walk<T> walk;
    for (int i = 0; i < item.rows; i++) walk.position[i] = a.plan->start[item.row] + (item.first_row + i) / group;
    int64_t one = walk.position[0], other = walk.position[item.rows - 1];
    walk.low = std::max(segment * SEGMENT, a.window ? one - a.window + 1 : 0);
    walk.high = std::min((segment + 1) * SEGMENT, other + 1);
    walk.low_all = a.window ? other - a.window + 1 : 0;
    walk.high_all = one + 1;
    walk.adjusted = a.key_scales || a.softcap || a.slopes;
    walk.base2 = walk.adjusted ? LOG2E : a.scale * LOG2E;
    walk.scores = (float*)room.take(TILE * CHUNK * 4);
    walk.weights = (T*)room.take(TILE * CHUNK * sizeof(T));
    walk.sums = (float*)room.take(MOST_ROWS * LANES * 4);
    walk.queries = room.take(item.tiles * words * 64);
    walk.value_room = (T*)room.take(CHUNK_PAGES * pages.value_size * sizeof(T));
    walk.key_room = (T*)room.take(CHUNK_PAGES * pages.key_size * sizeof(T));
    memset(walk.sums, 0, item.rows * LANES * 4);
    out.clear(a.value_width, item.tiles);
    for (int tile = 0; tile < item.tiles; tile++) pack_queries<T>(a, item, tile, walk.queries + tile * words * 64);
    for (int64_t key = walk.low / CHUNK * CHUNK; key < walk.high; key += CHUNK) {
        turn_to(a, pages, item, walk, key);
        for (int tile = 0; tile < item.tiles; tile++) step(a, pages, item, walk, tile, key, out);
    }
    for (int i = 0; i < item.rows; i++) {
        out.highest[i] *= walk.base2;
        out.total[i] = sum(load(walk.sums + i * LANES));
    }
}

// ---- partial results: judged, joined, finished ----

INLINE bool all_finite(const AttentionArgs& a, const Item& item, Partial& p) {
    vec spoilt = zero();
    for (int i = 0; i < item.rows; i++) {
        spoilt = fma(set1(p.total[i]), zero(), spoilt);
        for (int64_t at = 0; at < a.value_width; at += LANES)
            spoilt = fma(load(p.at(a.value_width, item, i, at)), zero(), spoilt);
    }
    return sum(spoilt) == 0;
}

// Where a token's values aren't finite, 0 times them is not 0: rows that may not see it must not walk over it together
// with rows that may.  So each token of the item walks alone, with the same bits where all is well.
template <class T>
NOINLINE void walk_alone(const AttentionArgs& a, Room room, const Item& item, int64_t segment, Partial& out) {
    int64_t group = a.heads / a.kv_heads;
    Partial& alone = *(Partial*)room.take(Partial::bytes(a.value_width, TILES));
    for (int begin = 0, end; begin < item.rows; begin = end) {
        int64_t token = (item.first_row + begin) / group;
        end = (int)std::min<int64_t>(item.rows, (token + 1) * group - item.first_row);
        Item part = item;
        part.cut(item.first_row + begin, end - begin);
        walk_segment<T>(a, room, part, segment, alone);
        for (int i = 0; i < part.rows; i++) {
            out.highest[begin + i] = alone.highest[i];
            out.total[begin + i] = alone.total[i];
            for (int64_t at = 0; at < a.value_width; at += LANES)
                store(out.at(a.value_width, item, begin + i, at), load(alone.at(a.value_width, part, i, at)));
        }
    }
}

template <class T>
INLINE void attend_segment(const AttentionArgs& a, Room room, const Item& item, int64_t segment, Partial& out) {
    walk_segment<T>(a, room, item, segment, out);
    int64_t group = a.heads / a.kv_heads;
    bool one_token = item.first_row / group == (item.first_row + item.rows - 1) / group;
    if (!one_token && !all_finite(a, item, out)) walk_alone<T>(a, room, item, segment, out);
}

// Join the sums of later keys to those of earlier ones.
INLINE void join(const AttentionArgs& a, const Item& item, Partial& p, Partial& later) {
    for (int i = 0; i < item.rows; i++) {
        float highest = std::max(p.highest[i], later.highest[i]);
        vec x = exp2(set1(p.highest[i] - highest)), y = exp2(set1(later.highest[i] - highest));
        p.highest[i] = highest;
        p.total[i] = sum(first(1, fma(set1(later.total[i]), y, mul(set1(p.total[i]), x)), zero()));
        for (int64_t at = 0; at < a.value_width; at += LANES) {
            float* out = p.at(a.value_width, item, i, at);
            store(out, fma(load(later.at(a.value_width, item, i, at)), y, mul(load(out), x)));
        }
    }
}

// Divide by the sum of weights and round.
template <class T>
INLINE void finish(const AttentionArgs& a, const Item& item, Partial& p) {
    int64_t group = a.heads / a.kv_heads;
    for (int i = 0; i < item.rows; i++) {
        int64_t token = a.plan->first[item.row] + (item.first_row + i) / group;
        int64_t head = item.head * group + (item.first_row + i) % group;
        vec total = set1(p.total[i]), by = set1(1.f);
        if (a.sinks) {
            float sink = a.sinks[head] * LOG2E, highest = std::max(p.highest[i], sink);
            by = exp2(set1(p.highest[i] - highest));
            total = fma(total, by, exp2(set1(sink - highest)));
        }
        by = div(by, total);
        T* out = (T*)a.out + token * a.out_stride + head * a.value_width;
        for (int64_t at = 0; at < a.value_width; at += LANES)  // + 0: a masked chunk may have made a zero of -0
            store(out + at, fma(load(p.at(a.value_width, item, i, at)), by, zero()),
                  (int)std::min<int64_t>(LANES, a.value_width - at));
    }
}

// ---- sharing the work ----

// How a step is cut into items, the same for all threads.
struct Cuts {
    int64_t group, num_items, partial_bytes;
    bool by_segment;  // several threads share an item's segments

    INLINE Cuts of(const AttentionArgs& a, int threads) {
        Cuts c{a.heads / a.kv_heads, 0, Partial::bytes(a.value_width, TILES), false};
        int64_t num_partials = 0;
        for (int64_t row = 0; row < a.plan->num_rows; row++) {
            c.num_items += c.items(a, row);
            num_partials += c.items(a, row) * c.segments(a, row);
        }
        int64_t room = round_up(4 * c.num_items, 64) + num_partials * c.partial_bytes;
        c.by_segment = c.num_items < 4 * threads && num_partials > c.num_items && room <= a.shared_bytes;
        return c;
    }
    int64_t items(const AttentionArgs& a, int64_t row) const {
        return (a.plan->count[row] * group + MOST_ROWS - 1) / MOST_ROWS * a.kv_heads;
    }
    int64_t first_segment(const AttentionArgs& a, int64_t row) const {
        return a.window ? std::max<int64_t>(0, a.plan->start[row] - a.window + 1) / SEGMENT : 0;
    }
    int64_t segments(const AttentionArgs& a, int64_t row) const {
        return (a.plan->start[row] + a.plan->count[row] - 1) / SEGMENT + 1 - first_segment(a, row);
    }
    // The row's items from the last tokens, which see most, to the first.
    Item item(const AttentionArgs& a, int64_t row, int64_t index) const {
        int64_t rows = a.plan->count[row] * group, cuts = items(a, row) / a.kv_heads;
        Item item{row, index / cuts, 0, 0, 0, 0};
        int64_t begin = (cuts - 1 - index % cuts) * MOST_ROWS;
        item.cut(begin, (int)std::min<int64_t>(MOST_ROWS, rows - begin));
        return item;
    }
};

template <class T>
INLINE void attend_whole(const AttentionArgs& a, Room room, const Cuts& cuts, const Item& item) {
    Partial &all = *(Partial*)room.take(cuts.partial_bytes), &later = *(Partial*)room.take(cuts.partial_bytes);
    int64_t group = cuts.group, start = a.plan->start[item.row];
    int64_t lowest = a.window ? std::max<int64_t>(0, start + item.first_row / group - a.window + 1) : 0;
    int64_t segment = lowest / SEGMENT, last = (start + (item.first_row + item.rows - 1) / group) / SEGMENT;
    attend_segment<T>(a, room, item, segment, all);
    while (segment++ < last) {
        attend_segment<T>(a, room, item, segment, later);
        join(a, item, all, later);
    }
    finish<T>(a, item, all);
}

// One of an item's segments; who computes the item's last one joins them all, in their order.
template <class T>
INLINE void attend_part(const AttentionArgs& a, const Worker& me, const Cuts& cuts, const Item& item, int64_t index,
                        int64_t part, int64_t before) {
    char* partials = me.shared + round_up(4 * cuts.num_items, 64) + before * cuts.partial_bytes;
    int64_t parts = cuts.segments(a, item.row);
    auto at = [&](int64_t i) INLINE_LAMBDA -> Partial& { return *(Partial*)(partials + i * cuts.partial_bytes); };
    attend_segment<T>(a, Room{me.own}, item, cuts.first_segment(a, item.row) + part, at(part));
    int32_t* done = (int32_t*)me.shared + index;
    if (__atomic_add_fetch(done, 1, __ATOMIC_ACQ_REL) < parts) return;
    for (int64_t i = 1; i < parts; i++) join(a, item, at(0), at(i));
    finish<T>(a, item, at(0));
}

template <class T>
INLINE void attend_all(const AttentionArgs& a, const Worker& me) {
    Cuts cuts = Cuts::of(a, me.threads);
    int64_t next = me.take(1), taken = 0, items = 0, partials = 0;
    for (int64_t row = 0; row < a.plan->num_rows; row++) {
        int64_t mine = cuts.items(a, row), parts = cuts.by_segment ? cuts.segments(a, row) : 1;
        for (; next < taken + mine * parts; next = me.take(1)) {
            int64_t index = (next - taken) / parts, part = (next - taken) % parts;
            Item item = cuts.item(a, row, index);
            if (cuts.by_segment)
                attend_part<T>(a, me, cuts, item, items + index, part, partials + index * parts);
            else
                attend_whole<T>(a, Room{me.own}, cuts, item);
        }
        taken += mine * parts;
        items += mine;
        partials += mine * parts;
    }
}

void attention_write(const Args& args, const Worker& me) {
    const AttentionArgs& a = args.attention;
    if (me.thread == 0 && a.shared_bytes) memset(me.shared, 0, std::min<int64_t>(a.shared_bytes, 4 * 4 * me.threads));
    a.type == BFLOAT16 ? write_all<bf16>(a, me) : write_all<float>(a, me);
}

void attention_attend(const Args& args, const Worker& me) {
    const AttentionArgs& a = args.attention;
    a.type == BFLOAT16 ? attend_all<bf16>(a, me) : attend_all<float>(a, me);
}
