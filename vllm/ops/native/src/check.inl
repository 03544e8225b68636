// Is every value finite?  A row is a run of CHECK_RUN values; `found` becomes 1 if one of them isn't.

constexpr int64_t CHECK_RUN = 32768;

template <class T>
INLINE bool all_finite(const T* p, int64_t count) {
    vec unsound[4] = {zero(), zero(), zero(), zero()};  // x · 0 is NaN for a NaN and for an infinity
    int64_t i = 0;
    for (; i + 4 * LANES <= count; i += 4 * LANES)
        for (int j = 0; j < 4; j++) unsound[j] = fma(load(p + i + j * LANES), zero(), unsound[j]);
    for (; i < count; i += LANES)
        unsound[0] = fma(load(p + i, (int)std::min<int64_t>(LANES, count - i)), zero(), unsound[0]);
    float total = sum(add(add(unsound[0], unsound[1]), add(unsound[2], unsound[3])));
    return total == 0;
}

void check_finite(const Args& args, const Worker& me) {
    const CheckArgs& a = args.check;
    for (int64_t run; (run = me.take(1)) < me.rows;) {
        int64_t first = run * CHECK_RUN, count = std::min(CHECK_RUN, a.count - first);
        bool finite = a.type == BFLOAT16 ? all_finite((const bf16*)a.x + first, count)
                                         : all_finite((const float*)a.x + first, count);
        if (!finite) __atomic_store_n(a.found, 1, __ATOMIC_RELAXED);
    }
}
