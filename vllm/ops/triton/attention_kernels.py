"""The kernels of paged attention: write keys and values, attend, and join what the splits of a walk found."""

from __future__ import annotations

import triton
import triton.language as tl

from vllm.ops.triton.early import let_next_start, wait_for_last


@triton.jit
def write_kernel(
    k, v, keys, values, places, k_token, k_head, v_token, v_head,
    VALUE: tl.constexpr, S: tl.constexpr, G: tl.constexpr, G_PADDED: tl.constexpr,
    E: tl.constexpr, E_PADDED: tl.constexpr, EV: tl.constexpr, EV_PADDED: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    let_next_start(EARLY)
    wait_for_last(EARLY)
    token = tl.program_id(0).to(tl.int64)
    place = tl.load(places + token).to(tl.int64)
    if place < 0:
        return
    head = tl.arange(0, G_PADDED)[:, None]
    target = (place // S * G + head) * S + place % S
    e = tl.arange(0, E_PADDED)[None, :]
    mask = (head < G) & (e < E)
    tl.store(keys + target * E + e, tl.load(k + token * k_token + head * k_head + e, mask), mask)
    e = tl.arange(0, EV_PADDED)[None, :]
    mask = (head < G) & (e < EV)
    tl.store(values + target * VALUE + e, tl.load(v + token * v_token + head * v_head + e, mask), mask)


@triton.jit
def attend_kernel(
    q, k, v, keys, values, out, parts, width, rows, table, tile_rows, tile_firsts, media, slopes, bias, sinks,
    max_rows, scale, softcap, inner_scale,
    q_token, q_head, k_token, k_head, v_token, v_head, out_token, out_head,
    VALUE: tl.constexpr, G: tl.constexpr, GROUP: tl.constexpr, HEADS: tl.constexpr, TOKENS: tl.constexpr,
    LONG: tl.constexpr, S: tl.constexpr, E: tl.constexpr, E_PADDED: tl.constexpr, EV: tl.constexpr, EV_PADDED: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, WINDOW: tl.constexpr, CAUSAL: tl.constexpr, MEDIA: tl.constexpr,
    SOFTCAP: tl.constexpr, SLOPES: tl.constexpr, BIAS: tl.constexpr, REACH: tl.constexpr, SINKS: tl.constexpr,
    SPLITS: tl.constexpr, WRITES: tl.constexpr, PRECISION: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    let_next_start(EARLY)
    wait_for_last(EARLY)
    tile, part, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    cuts: tl.constexpr = (GROUP + HEADS - 1) // HEADS
    kv_head = part // cuts
    row = tl.load(tile_rows + tile)
    if row < 0:
        return
    first = tl.load(rows + row).to(tl.int64)
    start, count = tl.load(rows + max_rows + row), tl.load(rows + 2 * max_rows + row)
    offset = tl.load(tile_firsts + tile) if LONG else 0

    index = tl.arange(0, M)
    token = offset + index // HEADS
    member = part % cuts * HEADS + index % HEADS
    head = kv_head * GROUP + member
    alive = (index < TOKENS * HEADS) & (token < count) & (member < GROUP)
    position = start + token
    e, ev = tl.arange(0, E_PADDED), tl.arange(0, EV_PADDED)
    place = (first + token)[:, None] * q_token + head[:, None] * q_head + e[None, :]
    queries = tl.load(q + place, alive[:, None] & (e < E)[None, :], 0.0)

    # keys [low, high) are seen by some of the tile's queries, [clear_low, clear_high) by all of them
    last = tl.minimum(offset + TOKENS, count) - 1 + start
    low = 0
    high = start + count
    clear_low = 0
    clear_high = high
    if CAUSAL:
        high = last + 1
        clear_high = start + offset + 1
    if WINDOW > 0:
        low = tl.maximum(0, start + offset - WINDOW + 1)
        clear_low = tl.maximum(0, last - WINDOW + 1)
        if not CAUSAL:
            high = tl.minimum(high, last + WINDOW)
            clear_high = tl.minimum(clear_high, start + offset + WINDOW)
    if MEDIA:  # a token sees the run of its medium too, which is empty where there is none
        run = media + 3 * (first + token)
        run_low, run_high = tl.load(run, alive, 0), tl.load(run + 1, alive, 0)
        low = tl.minimum(low, tl.min(tl.where(run_high > 0, run_low, low), 0))
        high = tl.maximum(high, tl.max(run_high, 0))
    begin, end = low // N, tl.cdiv(high, N)
    if SPLITS > 1:
        share = tl.cdiv(end - begin, SPLITS)
        begin = begin + split * share
        end = tl.minimum(end, begin + share)

    highest = tl.full([M], -1e30, tl.float32)
    total = tl.zeros([M], tl.float32)
    result = tl.zeros([M, EV_PADDED], tl.float32)
    table_row = table + row.to(tl.int64) * tl.load(width)
    n = tl.arange(0, N)
    if WRITES:  # the row's one token, by whom its own key concerns
        if (start // N >= begin) & (start // N < end):
            block = tl.load(table_row + start // S).to(tl.int64)
            where = (block * G + kv_head) * S + start % S
            tl.store(keys + where * E + e, tl.load(k + first * k_token + kv_head * k_head + e, e < E, 0.0), e < E)
            tl.store(
                values + where * VALUE + ev, tl.load(v + first * v_token + kv_head * v_head + ev, ev < EV, 0.0), ev < EV
            )
        tl.debug_barrier()
    for chunk in tl.range(begin, end):
        key = chunk * N + n
        known = (key >= low) & (key < high)
        block = tl.load(table_row + key // S, known, 0).to(tl.int64)
        where = (block * G + kv_head) * S + key % S
        chunk_keys = tl.load(keys + where[None, :] * E + e[:, None], known[None, :] & (e < E)[:, None], 0.0)
        scores = tl.dot(queries, chunk_keys, input_precision=PRECISION)
        if SOFTCAP:
            inner = scores * inner_scale
            scores = softcap * (1 - 2 / (tl.exp(2 * inner) + 1))
        else:
            scores = scores * scale
        if SLOPES or BIAS:
            behind = position[:, None] - key[None, :]
            if SLOPES:
                slope = tl.load(slopes + head, alive, 0.0)[:, None]
                scores = scores - slope * tl.abs(behind).to(tl.float32) * 1.4426950408889634
            if BIAS:
                column = REACH - tl.minimum(tl.maximum(behind, -REACH), REACH)
                found = tl.load(bias + head[:, None] * (2 * REACH + 1) + column, alive[:, None], 0.0)
                scores = scores + found * 1.4426950408889634
        if (chunk * N < clear_low) | ((chunk + 1) * N > clear_high):
            behind = position[:, None] - key[None, :]
            seen = known[None, :]
            if CAUSAL:
                seen = seen & (behind >= 0)
            if WINDOW > 0:
                seen = seen & (behind < WINDOW)
                if not CAUSAL:
                    seen = seen & (behind > -WINDOW)
            if MEDIA:
                apart = tl.load(media + 3 * (first + key - start) + 2, known & (key >= start), 0)
                of_run = (key[None, :] >= run_low[:, None]) & (key[None, :] < run_high[:, None])
                seen = seen | ((known & (apart == 0))[None, :] & of_run)
            scores = tl.where(seen, scores, float("-inf"))
        peak = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp2(scores - peak[:, None])
        fade = tl.exp2(highest - peak)
        total = total * fade + tl.sum(weights, 1)
        chunk_values = tl.load(values + where[:, None] * VALUE + ev[None, :], known[:, None] & (ev < EV)[None, :], 0.0)
        result = result * fade[:, None]
        result = tl.dot(weights.to(chunk_values.dtype), chunk_values, result, input_precision=PRECISION)
        highest = peak

    if SPLITS > 1:
        place = ((tile.to(tl.int64) * G * cuts + part) * SPLITS + split) * M * (EV + 2)
        place = parts + place + index[:, None] * (EV + 2)
        tl.store(place + ev[None, :], result, (ev < EV)[None, :] & alive[:, None])
        tl.store(place + EV, highest[:, None], alive[:, None])
        tl.store(place + EV + 1, total[:, None], alive[:, None])
    else:
        if SINKS:
            sink = tl.load(sinks + head, alive, 0.0) * 1.4426950408889634
            peak = tl.maximum(highest, sink)
            fade = tl.exp2(highest - peak)
            total = total * fade + tl.exp2(sink - peak)
            result = result * fade[:, None]
        result = result / tl.maximum(total, 1e-30)[:, None]
        place = (first + token)[:, None] * out_token + head[:, None] * out_head + ev[None, :]
        tl.store(out + place, result.to(out.dtype.element_ty), alive[:, None] & (ev < EV)[None, :])


@triton.jit
def join_kernel(
    parts, tile_rows, rows, sinks, out, out_token, out_head,
    GROUP: tl.constexpr, HEADS: tl.constexpr, M: tl.constexpr, SPLITS: tl.constexpr, SPLITS_PADDED: tl.constexpr,
    EV: tl.constexpr, EV_PADDED: tl.constexpr, SINKS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Put together what the splits of a walk found."""
    let_next_start(EARLY)
    wait_for_last(EARLY)
    tile, head = tl.program_id(0), tl.program_id(1)
    row = tl.load(tile_rows + tile)
    if row < 0:
        return
    first = tl.load(rows + row).to(tl.int64)
    cuts: tl.constexpr = (GROUP + HEADS - 1) // HEADS
    parts_of_row = tl.num_programs(1) // GROUP * cuts
    part, member = head // GROUP * cuts + head % GROUP // HEADS, head % GROUP % HEADS
    split, ev = tl.arange(0, SPLITS_PADDED), tl.arange(0, EV_PADDED)
    place = (tile.to(tl.int64) * parts_of_row + part) * SPLITS + split
    place = parts + (place * M + member) * (EV + 2)
    highest = tl.load(place + EV, split < SPLITS, -1e30)
    total = tl.load(place + EV + 1, split < SPLITS, 0.0)
    peak = tl.max(highest, 0)
    if SINKS:
        sink = tl.load(sinks + head) * 1.4426950408889634
        peak = tl.maximum(peak, sink)
    fade = tl.exp2(highest - peak)
    whole = tl.sum(total * fade, 0)
    if SINKS:
        whole += tl.exp2(sink - peak)
    found = tl.load(place[:, None] + ev[None, :], (split < SPLITS)[:, None] & (ev < EV)[None, :], 0.0)
    result = tl.sum(found * fade[:, None], 0) / tl.maximum(whole, 1e-30)
    tl.store(out + first * out_token + head * out_head + ev, result.to(out.dtype.element_ty), ev < EV)
