// Everything of one variant: in a namespace of its own, with its instructions switched on.
//
// Headers of the standard library come first, and nothing of them is used in kernels but templates that are inlined:
// a function that two variants share would be kept once, with the instructions of either.
#include <algorithm>
#include <cmath>
#include <cstring>

#define PRAGMA_(x) _Pragma(#x)
#define PRAGMA(x) PRAGMA_(x)
#define NOINLINE static __attribute__((noinline))

#if defined(VARIANT_TARGET)
#define INLINE static inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))
#define UNROLL(n) PRAGMA(GCC unroll n)
#if defined(__clang__)
PRAGMA(clang attribute push(__attribute__((target(VARIANT_TARGET))), apply_to = function))
#else
#pragma GCC push_options
PRAGMA(GCC target(VARIANT_TARGET))
#endif
#else  // 16 lanes are many instructions here; unrolled further they would take minutes to compile
#define INLINE static inline
#define INLINE_LAMBDA
#define UNROLL(n)
#endif

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

namespace VARIANT {
#include "simd.hpp"
//
#include "math.inl"
//
#include "linear.inl"
//
#include "quantized.inl"
//
#if defined(VARIANT_TILES)
#include "tiles.inl"
#endif
//
#include "product.inl"
//
#if !defined(VARIANT_TILES)  // which has its own products, and all else from another variant
#include "check.inl"
//
#include "attention_cache.inl"
//
#include "attention_tiles.inl"
//
#include "attention.inl"
//
#include "rows.inl"
//
#include "recurrent.inl"
//
#include "delta.inl"

extern const Kernels kernels;
const Kernels kernels = {
    TEXT(VARIANT),
    linear_prepare, linear_multiply, linear_shared, linear_own,
    check_finite, CHECK_RUN, quantize, quantize_own,
    attention_write, attention_attend, attention_shared, attention_own,
    rms_norm, layer_norm, rotary, add_elements, multiply_elements, copy_elements, softcap, gather,
    causal_conv, scan_prepare, scan_run, delta_prepare, delta_run, rg_lru, gate,
    conv_own, scan_shared, scan_own, delta_shared, delta_own, gate_own,
};
#endif
}  // namespace VARIANT

#if defined(VARIANT_TARGET) && defined(__clang__)
#pragma clang attribute pop
#elif defined(VARIANT_TARGET)
#pragma GCC pop_options
#endif
