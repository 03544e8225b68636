// What attention does with a tile, up to 12 rows at once, and a chunk of 64 keys: scores, weights, weighted values.

constexpr int CHUNK = 64, CHUNK_PAGES = CHUNK / PAGE;
constexpr int64_t SEGMENT = 1024;
constexpr int TILE = 12, TILES = 4, MOST_ROWS = TILE * TILES;
constexpr int COLUMNS = 2 * LANES;  // of the output, that a tile has in registers
constexpr float LOG2E = 1.44269504f, LN2 = 0.69314718f;
constexpr float LOWEST = -1e30f;  // the maximum before the first key; finite, so that -inf minus it is -inf

// The keys that a query sees: [low, high).
struct Seen {
    int64_t low, high;

    // By its row of the plan and its position, in a row that has keys up to `end`.
    INLINE Seen of(const AttentionArgs& a, int64_t row, int64_t position, int64_t end) {
        int64_t low = a.window ? std::max<int64_t>(0, position - a.window + 1) : 0;
        if (a.causal && a.plan->media) {
            const int64_t* run = a.plan->media + 2 * (a.plan->first[row] + position - a.plan->start[row]);
            return {std::min(low, run[0]), std::max(position + 1, run[1])};
        }
        if (a.causal) return {low, position + 1};
        return {low, a.window ? std::min(end, position + a.window) : end};
    }
};

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
    int64_t end;                // of the sequence's keys
    int64_t row;                // of the plan
    int64_t position[MOST_ROWS];
    float base2;   // from a score as it stands before the softmax to a power of 2
    float slack;   // by how much a score may pass the maximum before the maximum follows
    float *scores, *sums;       // [TILE][CHUNK], [rows][LANES]
    T* weights;                 // [TILE][CHUNK]
    char* queries;              // [tiles][words][LANES] words
    T *key_room, *value_room;   // CHUNK_PAGES pages each, for what can't be read where it lies
    const char* found[SEGMENT / PAGE + CHUNK_PAGES];             // the segment's pages, the last one repeated
    const char *pages[2 * CHUNK_PAGES], *next[2 * CHUNK_PAGES];  // of this chunk and the next: keys, values, keys, …
    const float* scales[CHUNK_PAGES];                            // this chunk's, of keys and then of values
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
        const char *key[V], *soon[V];
UNROLL(4)
        for (int i = 0; i < V; i++) key[i] = pages[2 * (first + i)], soon[i] = next[2 * (first + i)];
        vec sum[R][V];
UNROLL(12)
        for (int r = 0; r < R; r++)
UNROLL(4)
            for (int i = 0; i < V; i++) sum[r][i] = zero();
        for (int64_t w = 0; w < words * 64; w += 64) {
            ivec k[V];
UNROLL(4)
            for (int i = 0; i < V; i++) k[i] = iload(key[i] + w), prefetch(soon[i] + w);
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
INLINE void mix_columns(const T* weights, const char* const* pages, const char* const* next, int num_pages, int64_t at,
                        int64_t stride, float* out) {
    using Word = typename Of<T>::Word;
    constexpr int PER = Of<T>::PER;
    vec sum[R][C];
UNROLL(12)
    for (int r = 0; r < R; r++)
UNROLL(2)
        for (int c = 0; c < C; c++) sum[r][c] = load(out + r * COLUMNS + c * LANES);
    for (int p = 0; p < num_pages; p++) {
        const char *value = pages[2 * p] + at, *soon = next[2 * p] + at;
        const T* weight = weights + p * PAGE;
        for (int j = 0; j < PAGE; j += PER, value += stride, soon += stride) {
            ivec v[C];
UNROLL(2)
            for (int c = 0; c < C; c++) v[c] = iload(value + c * 64), prefetch(soon + c * 64);
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
NOINLINE void mix(const T* weights, const char* const* pages, const char* const* next, int num_pages, int64_t words,
                  float* out) {
    for (int64_t at = 0; at < words; at += COLUMNS, out += TILE * COLUMNS) {
        if (words - at >= COLUMNS)
            mix_columns<T, R, 2>(weights, pages, next, num_pages, at * 4, words * 4, out);
        else
            mix_columns<T, R, 1>(weights, pages, next, num_pages, at * 4, words * 4, out);
    }
}

template <class T>
struct Products {
    using Score = void (*)(const char*, const char* const*, const char* const*, int64_t, float*);
    using Mix = void (*)(const T*, const char* const*, const char* const*, int, int64_t, float*);
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

// Of 16 keys from `key` on, give those `other` that stand behind the query and take no part in its run; none of them beyond `end`.
INLINE vec mask_apart(vec x, const AttentionArgs& a, int64_t row, int64_t position, int64_t key, int64_t end, float other) {
    if (key + LANES <= position + 1) return x;
    const uint8_t* apart = a.plan->apart + a.plan->first[row] - a.plan->start[row];
    alignas(64) float each[LANES];
    store(each, x);
    for (int64_t i = std::max<int64_t>(0, position + 1 - key); i < LANES && key + i < end; i++)
        if (apart[position] || apart[key + i]) each[i] = other;
    return load(each);
}

// A head's bias for 16 keys of which the first is so far ahead of the query.
INLINE vec bias_of(const float* bias, int64_t reach, int64_t ahead) {
    if (ahead >= reach) return set1(bias[2 * reach]);
    if (ahead + LANES - 1 <= -reach) return set1(bias[0]);
    if (ahead >= -reach && ahead + LANES - 1 <= reach) return load(bias + reach + ahead);
    float x[LANES];
    for (int i = 0; i < LANES; i++) x[i] = bias[reach + std::min(reach, std::max(-reach, ahead + i))];
    return load(x);
}

// What stands between a product and the softmax when it is more than a scale.
template <class T>
INLINE void adjust(const AttentionArgs& a, const Walk<T>& walk, int64_t head, int64_t position, int64_t key, float* s) {
    alignas(64) static const float STEPS[LANES] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int i = 0; i < CHUNK_PAGES; i++, key += PAGE, s += PAGE) {
        vec x = mul(load(s), set1(a.scale));
        if (a.quantized) x = mul(x, load(walk.scales[i]));
        if (a.softcap) x = mul(set1(a.softcap), tanh(div(x, set1(a.softcap))));
        if (a.slopes) x = fma(set1(-a.slopes[head]), abs(add(load(STEPS), set1((float)(key - position)))), x);
        if (a.bias) x = add(x, bias_of(a.bias + head * (2 * a.reach + 1), a.reach, key - position));
        store(s, x);
    }
}

INLINE void fade(float* output, int64_t blocks, int row, vec by) {
    for (float* o = output + row * COLUMNS; blocks > 0; blocks--, o += TILE * COLUMNS)
        store(o, mul(load(o), by)), store(o + LANES, mul(load(o + LANES), by));
}

// Turn one row's scores into weights, having lowered what was summed so far if the maximum grew.  It follows when it is
// passed by a factor of 256 in the weights, no sooner: that is seldom after the first chunk, and harms nothing.
template <class T>
INLINE void soften(const AttentionArgs& a, const Walk<T>& walk, int64_t position, int64_t key, bool whole, int in_tile,
                   float& highest, float* sums, float* output) {
    const float* s = walk.scores + in_tile * CHUNK;
    T* weights = walk.weights + in_tile * CHUNK;
    Seen seen = Seen::of(a, walk.row, position, walk.end);
    vec x[CHUNK_PAGES], sum = load(sums);
UNROLL(4)
    for (int i = 0; i < CHUNK_PAGES; i++) x[i] = load(s + i * PAGE);
    if (!whole)
        for (int i = 0; i < CHUNK_PAGES; i++) x[i] = mask(x[i], key + i * PAGE, seen.low, seen.high, -__builtin_inff());
    if (!whole && a.plan->apart)
        for (int i = 0; i < CHUNK_PAGES; i++)
            x[i] = mask_apart(x[i], a, walk.row, position, key + i * PAGE, seen.high, -__builtin_inff());
    vec peak = max(max(x[0], x[1]), max(x[2], x[3]));
    if (any_greater(peak, set1(highest + walk.slack))) {
        float before = highest;
        highest = greatest(peak);
        if (before != LOWEST) {
            vec by = exp2(set1((before - highest) * walk.base2));
            fade(output, Partial::blocks(a.value_width), in_tile, by);
            sum = mul(sum, by);
        }
    }
    vec scale = set1(walk.base2), shift = set1(-highest * walk.base2);
UNROLL(4)
    for (int i = 0; i < CHUNK_PAGES; i++) x[i] = weigh(fma(x[i], scale, shift), T());
    if (a.quantized || sizeof(T) == 4) store(sums, add(sum, add(add(x[0], x[1]), add(x[2], x[3]))));
    else store(sums, sum);
    if (a.quantized)
        for (int i = 0; i < CHUNK_PAGES; i++) {
            x[i] = mul(x[i], load(walk.scales[i] + PAGE));
            if (!whole) x[i] = mask(x[i], key + i * PAGE, seen.low, seen.high, 0.f);
        }
UNROLL(4)
    for (int i = 0; i < CHUNK_PAGES; i++) store(weights + i * PAGE, x[i]);
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
    for (int64_t i = 0; i < count; i += 2 * LANES) {
        const int8_t* from = (const int8_t*)bytes + i;
        if (i % 64 == 0) prefetch(next + i);
        store(out + i, load_int8(from), load_int8(from + LANES));
    }
}

// Find the pages of all chunks.  Those that hold nothing visible may be anywhere: another stands for them.
template <class T>
INLINE void find_pages(const AttentionArgs& a, const Pages& pages, const Item& item, Walk<T>& walk, int64_t segment) {
    int64_t first = segment * (SEGMENT / PAGE), low = walk.low / PAGE - first, last = (walk.high - 1) / PAGE - first;
    int64_t end = std::min<int64_t>(SEGMENT / PAGE, round_up(last + 1, CHUNK_PAGES)) + CHUNK_PAGES;
    for (int64_t i = low; i <= last; i++) walk.found[i] = pages.find(a, item.row, item.head, first + i);
    for (int64_t i = low / CHUNK_PAGES * CHUNK_PAGES; i < low; i++) walk.found[i] = walk.found[low];
    for (int64_t i = last + 1; i < end; i++) walk.found[i] = walk.found[last];
}

// Choose a chunk's pages, and the next chunk's.  Values that no row sees may hold anything, and 0 · NaN is NaN: pages with
// such are copied without them.
template <class T>
INLINE void turn_to(const AttentionArgs& a, const Pages& pages, Walk<T>& walk, int64_t key) {
    const char* const* found = walk.found + (key % SEGMENT) / PAGE;
    for (int i = 0; i < CHUNK_PAGES; i++) {
        int64_t token = (key / PAGE + i) * PAGE;
        const char **here = walk.pages + 2 * i, **next = walk.next + 2 * i;
        here[0] = found[i], here[1] = found[i] + pages.values;
        next[0] = found[i + CHUNK_PAGES], next[1] = next[0] + pages.values;
        walk.scales[i] = (const float*)(found[i] + pages.scales);
        T *key_room = walk.key_room + i * pages.key_size, *value_room = walk.value_room + i * pages.value_size;
        bool seen = token < walk.high && token + PAGE > walk.low, edge = token < walk.low || token + PAGE > walk.high;
        if (a.quantized) {
            if (seen) widen_bytes(here[0], next[0], pages.key_size, key_room);
            if (seen) widen_bytes(here[1], next[1], pages.value_size, value_room);
            here[0] = next[0] = (const char*)key_room;
            here[1] = next[1] = (const char*)value_room;
        } else if (seen && edge) {
            for (int64_t j = 0; j < pages.value_size * (int64_t)sizeof(T); j += 64)
                istore((char*)value_room + j, iload(here[1] + j));
            clear_outside(value_room, pages.value_words, walk.low - token, walk.high - token);
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
    const char* const* next = tile ? walk.pages : walk.next;  // to be fetched once
    Products<T>::score_rows[rows](walk.queries + tile * words * 64, walk.pages, next, words, walk.scores);
    bool whole = key >= walk.low_all && key + CHUNK <= walk.high_all;
    for (int r = 0; r < rows; r++) {
        int i = begin + r;
        int64_t head = item.head * group + (item.first_row + i) % group;
        if (walk.adjusted) adjust(a, walk, head, walk.position[i], key, walk.scores + r * CHUNK);
        soften(a, walk, walk.position[i], key, whole, r, out.highest[i], walk.sums + i * LANES, output);
    }
    if (!a.quantized)
        for (int r = 0; r < rows; r++) add_rounded(walk.weights + r * CHUNK, walk.sums + (begin + r) * LANES);
    int from = (int)(std::max(walk.low, key) - key) / PAGE;
    int to = (int)(std::min(walk.high, key + CHUNK) - key + PAGE - 1) / PAGE;
    Products<T>::mix_rows[rows](walk.weights + from * PAGE, walk.pages + 2 * from + 1, next + 2 * from + 1, to - from,
                                pages.value_words, output);
}
