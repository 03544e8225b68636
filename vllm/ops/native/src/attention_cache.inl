// The paged cache: where a token's keys and values are, and how they get there.
//
// A block holds its tokens in pages of 16: [blocks][kv heads][pages].  A page holds keys, behind them values, in an order
// that needs no sums across lanes:
//
//   keys     [words of a key][16 tokens]             a word: one float, or two bfloat16
//   values   [16 / PER][padded width][PER tokens]    PER = 1 for float, 2 for bfloat16
//
// An INT8 page has the same order of elements, a byte each, and behind them 16 scales of keys and 16 of values.  The width
// of values is padded to a multiple of 16 with elements that stay zero.  (Keys and values lie together because memory is
// translated in pages of 4 kB: apart, decoding 32 sequences from a large cache took a third longer.)

constexpr int PAGE = 16;
constexpr int64_t MAX_WIDTH = 1024;  // of a head

template <class T>
struct Of;
template <>
struct Of<float> {
    using Word = Floats;
    static constexpr int PER = 1;
};
template <>
struct Of<bf16> {
    using Word = Pairs;
    static constexpr int PER = 2;
};

// The shape of a page.
struct Pages {
    int64_t key_size, value_size;  // elements
    int64_t value_words;           // padded width
    int64_t values, scales, bytes;  // where values and scales begin, and how long a page is, in bytes
    uint32_t per_block;

    INLINE Pages of(const AttentionArgs& a) {
        int64_t padded = round_up(a.value_width, LANES), size = a.quantized ? 1 : a.type == BFLOAT16 ? 2 : 4;
        int64_t values = a.width * PAGE * size, scales = values + padded * PAGE * size;
        return {a.width * PAGE, padded * PAGE, padded, values, scales, scales + (a.quantized ? 2 * PAGE * 4 : 0),
                (uint32_t)(a.plan->block_size / PAGE)};
    }
    // A sequence's page of one kv head.
    char* find(const AttentionArgs& a, int64_t row, int64_t head, int64_t page) const {
        uint32_t entry = (uint32_t)page / per_block, inside = (uint32_t)page % per_block;
        int64_t block = a.plan->blocks[row * a.plan->table_width + entry];
        return (char*)a.cache + ((block * a.kv_heads + head) * per_block + inside) * bytes;
    }
};

// ---- writing: 16 tokens at a time where a step has them, else each by itself ----

template <class T>
INLINE void write_key(const T* x, T* page, int64_t width, int token) {
    constexpr int PER = Of<T>::PER;
    for (int64_t i = 0; i < width / PER; i++) memcpy(page + (i * PAGE + token) * PER, x + i * PER, 4);
}

template <class T>
INLINE void write_keys(const T* x, int64_t stride, T* page, int64_t width) {
    constexpr int PER = Of<T>::PER;
    int64_t words = width / PER;
    for (int64_t at = 0; at < words; at += LANES) {
        int count = (int)std::min<int64_t>(LANES, words - at);
        ivec w[LANES];
        for (int i = 0; i < LANES; i++) w[i] = iload(x + i * stride + at * PER, count);
        transpose(w);
        for (int j = 0; j < count; j++) istore(page + (at + j) * PAGE * PER, w[j]);
    }
}

template <class T>
INLINE void write_value(const T* x, T* page, int64_t width, int64_t padded, int token) {
    constexpr int PER = Of<T>::PER;
    T* out = page + token / PER * padded * PER + token % PER;
    for (int64_t i = 0; i < width; i++) out[i * PER] = x[i];
}

// x as bytes and a scale: x ≈ bytes · scale.  What is not finite makes the scale so.
template <class T>
INLINE float quantize(const T* x, int64_t width, int8_t* bytes) {
    vec most = zero(), spoilt = zero();
    for (int64_t i = 0; i < width; i += LANES) {
        vec v = load(x + i, (int)std::min<int64_t>(LANES, width - i));
        most = max(most, abs(v));
        spoilt = fma(v, zero(), spoilt);
    }
    float scale = greatest(most) / 127.f + sum(spoilt);
    vec by = set1(scale > 0 ? scale : 1.f);
    for (int64_t i = 0; i < width; i += LANES)
        store_int8(bytes + i, to_int(div(load(x + i, (int)std::min<int64_t>(LANES, width - i)), by)));
    return scale;
}

// One token's key or value as bytes: element i goes to out[i / PER * step + i % PER].
template <class T>
INLINE float write_bytes(const T* x, int64_t width, int8_t* out, int per, int64_t step) {
    int8_t bytes[MAX_WIDTH];
    float scale = quantize(x, width, bytes);
    for (int64_t i = 0; i < width; i++) out[i / per * step + i % per] = bytes[i];
    return scale;
}

// Write the tokens [from, to) of one page; the first of them is the step's `token`.
template <class T>
NOINLINE void write_page(const AttentionArgs& a, const Pages& pages, char* page, int64_t head, int64_t token, int from,
                         int to) {
    constexpr int PER = Of<T>::PER;
    const T* k = (const T*)a.k + token * a.k_stride + head * a.width;
    const T* v = (const T*)a.v + token * a.v_stride + head * a.value_width;
    if (a.quantized) {
        int8_t *keys = (int8_t*)page, *values = (int8_t*)page + pages.values;
        float* scales = (float*)(page + pages.scales);
        for (int t = from; t < to; t++, k += a.k_stride, v += a.v_stride) {
            scales[t] = write_bytes(k, a.width, keys + t * PER, PER, PAGE * PER);
            int8_t* out = values + t / PER * pages.value_words * PER + t % PER;
            scales[PAGE + t] = write_bytes(v, a.value_width, out, 1, PER);
        }
        return;
    }
    T *keys = (T*)page, *values = (T*)(page + pages.values);
    if (to - from == PAGE) write_keys(k, a.k_stride, keys, a.width);
    for (int t = from; t < to; t++, k += a.k_stride, v += a.v_stride) {
        if (to - from < PAGE) write_key(k, keys, a.width, t);
        write_value(v, values, a.value_width, pages.value_words, t);
    }
}

// A page's tokens are written by one thread: neighbours share words.
template <class T>
INLINE void write_all(const AttentionArgs& a, const Worker& me) {
    const AttentionPlan& plan = *a.plan;
    Pages pages = Pages::of(a);
    int64_t row = 0, before = 0, item = me.take(1);
    for (; row < plan.num_rows; row++) {
        int64_t start = plan.start[row], end = start + plan.count[row];
        int64_t first = start / PAGE, items = ((end + PAGE - 1) / PAGE - first) * a.kv_heads;
        for (; item < before + items; item = me.take(1)) {
            int64_t page = first + (item - before) / a.kv_heads, head = (item - before) % a.kv_heads;
            int64_t from = std::max(start, page * PAGE), to = std::min(end, (page + 1) * PAGE);
            write_page<T>(a, pages, pages.find(a, row, head, page), head, plan.first[row] + from - start,
                          (int)(from - page * PAGE), (int)(to - page * PAGE));
        }
        before += items;
    }
}
