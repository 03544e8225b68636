// Products, whatever the format: x is prepared, then it meets the groups.

void linear_prepare(const Args& args, const Worker& me) {
    const LinearArgs& a = args.linear;
#if defined(VARIANT_TILES)
    if (in_tiles(a, me.rows)) return prepare_tiles(a, me);
#endif
    bool few = me.rows <= FEW_ROWS;
    switch (a.format) {
        case FLOAT32: return few ? void() : make_panels<Floats>(a, me);
        case BFLOAT16: return few ? void() : make_panels<Pairs>(a, me);
        case INT8: return few ? quantize_rows<Int8>(a, me) : quantize_panels(a, me);
        case INT4: return few ? quantize_rows<Int4>(a, me) : quantize_panels(a, me);
    }
}

void linear_multiply(const Args& args, const Worker& me) {
    static const FewRows few_by_rows[4][FEW_ROWS + 1] = {BY_ROWS(few_dense, Floats), BY_ROWS(few_dense, Pairs),
                                                         BY_ROWS(few_quantized, Int8), BY_ROWS(few_quantized, Int4)};
    static const ManyRows many_by_panels[4][4] = {BY_PANELS(many_dense, Floats), BY_PANELS(many_dense, Pairs),
                                                  BY_PANELS(many_quantized, Int8), BY_PANELS(many_quantized, Int4)};
    const LinearArgs& a = args.linear;
#if defined(VARIANT_TILES)
    if (in_tiles(a, me.rows)) return multiply_tiles(a, me);
#endif
    if (me.rows > FEW_ROWS) return many(a, me, many_by_panels[a.format]);
    int64_t bytes = a.format == FLOAT32    ? a.width * 4 * LANES
                    : a.format == BFLOAT16 ? a.width * 2 * LANES
                                           : group_bytes(a.width, a.format);
    few(a, me, few_by_rows[a.format][me.rows], bytes);
}

int64_t linear_shared(const LinearArgs& a) {
    switch (a.format) {
        case FLOAT32: return a.width * 4 * LANES;
        case BFLOAT16: return round_up(a.width * 2, 64) * LANES;  // whole tiles
        case INT8: return quantized_bytes<Int8>(a.width);
        default: return quantized_bytes<Int4>(a.width);
    }
}

int64_t linear_own(const LinearArgs& a) { return a.format == INT4 ? 2 * unpacked_bytes(a.width) : 0; }
