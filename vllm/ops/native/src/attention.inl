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
// What a row sees is one run of keys in any case, from its window's beginning to itself, or to the window's other end, or
// to the sequence's: Seen::of decides, and everything else follows from what an item's first and last token see.
//
// Rows go through registers in tiles of at most 12, which is all that decoding, prompts and mixtures of them differ in.
// A row meets the same chunks in the same order whatever stands beside it, and a chunk that is masked for it changes not
// a bit of it.  Every 1024 keys (a segment) the maximum and the sum begin anew, and segments are joined in their order:
// so segments of few, long rows can be computed by several threads, with the bits that one thread gets.

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
    int64_t token = item.first_row / group, head = item.first_row % group;
    for (int i = 0; i < item.rows; i++) {
        walk.position[i] = a.plan->start[item.row] + token;
        const T* q = (const T*)a.q + (a.plan->first[item.row] + token) * a.q_stride + (item.head * group + head) * a.width;
        for (int64_t at = 0; at < words * 4; at += 64) prefetch((const char*)q + at);
        if (++head == group) head = 0, token++;
    }
    walk.end = a.plan->start[item.row] + a.plan->count[item.row];
    walk.row = item.row;
    Seen one = Seen::of(a, item.row, walk.position[0], walk.end);
    Seen other = Seen::of(a, item.row, walk.position[item.rows - 1], walk.end);
    walk.low = std::max(segment * SEGMENT, one.low);
    walk.high = std::min((segment + 1) * SEGMENT, other.high);
    walk.low_all = other.low;
    walk.high_all = a.plan->apart ? std::min(one.high, walk.position[0] + 1) : one.high;
    walk.adjusted = a.quantized || a.softcap || a.slopes || a.bias;
    walk.base2 = walk.adjusted ? LOG2E : a.scale * LOG2E;
    walk.slack = 8.f / walk.base2;
    walk.scores = (float*)room.take(TILE * CHUNK * 4);
    walk.weights = (T*)room.take(TILE * CHUNK * sizeof(T));
    walk.sums = (float*)room.take(MOST_ROWS * LANES * 4);
    walk.queries = room.take(item.tiles * words * 64);
    walk.value_room = (T*)room.take(CHUNK_PAGES * pages.value_size * sizeof(T));
    walk.key_room = (T*)room.take(CHUNK_PAGES * pages.key_size * sizeof(T));
    memset(walk.sums, 0, item.rows * LANES * 4);
    out.clear(a.value_width, item.tiles);
    if (walk.low < walk.high) find_pages(a, pages, item, walk, segment);
    for (int tile = 0; tile < item.tiles; tile++) pack_queries<T>(a, item, tile, walk.queries + tile * words * 64);
    for (int64_t key = walk.low / CHUNK * CHUNK; key < walk.high; key += CHUNK) {
        turn_to(a, pages, walk, key);
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

constexpr int ITEMS_TO_SHARE = 4;       // per thread: when there are as many, each is one thread's
constexpr int SEGMENTS_TO_SHARE = 128;  // of each of them, on average

// How a step is cut into items, the same for all threads.
struct Cuts {
    int64_t group, num_items, partial_bytes;
    bool by_segment;  // several threads share an item's segments

    INLINE Cuts of(const AttentionArgs& a, int threads) {
        Cuts c{a.heads / a.kv_heads, 0, 0, false};
        int64_t num_partials = 0, tiles = 1;
        for (int64_t row = 0; row < a.plan->num_rows; row++) {
            c.num_items += c.items(a, row);
            num_partials += c.items(a, row) * c.segments(a, row);
            tiles = std::max(tiles, std::min<int64_t>(TILES, (a.plan->count[row] * c.group + TILE - 1) / TILE));
        }
        c.partial_bytes = Partial::bytes(a.value_width, tiles);
        int64_t room = round_up(4 * c.num_items, 64) + num_partials * c.partial_bytes;
        c.by_segment = c.num_items < ITEMS_TO_SHARE * threads && num_partials > c.num_items && room <= a.shared_bytes;
        return c;
    }
    int64_t items(const AttentionArgs& a, int64_t row) const {
        return (a.plan->count[row] * group + MOST_ROWS - 1) / MOST_ROWS * a.kv_heads;
    }
    int64_t first_segment(const AttentionArgs& a, int64_t row) const {
        return Seen::of(a, row, a.plan->start[row], a.plan->start[row] + a.plan->count[row]).low / SEGMENT;
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
    int64_t start = a.plan->start[item.row], end = start + a.plan->count[item.row];
    int64_t first_token = start + item.first_row / cuts.group;
    int64_t last_token = start + (item.first_row + item.rows - 1) / cuts.group;
    int64_t segment = Seen::of(a, item.row, first_token, end).low / SEGMENT;
    int64_t last = (Seen::of(a, item.row, last_token, end).high - 1) / SEGMENT;
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

// Scratch for segments of 128 k keys; what is longer isn't shared.
int64_t attention_shared(const AttentionArgs& a, int threads) {
    return threads > 1 ? ITEMS_TO_SHARE * threads * (64 + SEGMENTS_TO_SHARE * Partial::bytes(a.value_width, 1)) : 0;
}

int64_t attention_own(const AttentionArgs& a) {
    int64_t padded = round_up(a.value_width, LANES);
    return 3 * Partial::bytes(a.value_width, TILES) + TILE * CHUNK * 8 + MOST_ROWS * LANES * 4 + TILES * a.width * 64 +
           CHUNK * (a.width + padded) * 4 + 16 * 64;
}

void attention_write(const Args& args, const Worker& me) {
    const AttentionArgs& a = args.attention;
    if (me.thread == 0 && a.shared_bytes)  // no part is done
        memset(me.shared, 0, std::min<int64_t>(a.shared_bytes, ITEMS_TO_SHARE * me.threads * 4));
    if (!a.k) return;
    a.type == BFLOAT16 ? write_all<bf16>(a, me) : write_all<float>(a, me);
}

void attention_attend(const Args& args, const Worker& me) {
    const AttentionArgs& a = args.attention;
    if (!a.q) return;
    a.type == BFLOAT16 ? attend_all<bf16>(a, me) : attend_all<float>(a, me);
}
