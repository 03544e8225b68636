// Vectors of 16 lanes, whatever the processor has: the few operations of which all kernels are made.
//
// A `vec` holds 16 floats, an `ivec` 16 words of 4 bytes.  A word is what a product takes per step and lane: one float,
// a pair of bfloat16, or four 8-bit integers.  This file is compiled once per variant (variant_*.cpp), inside that
// variant's namespace and with its instructions switched on.
//
//   load, store (p, n)     only the first n lanes; what else lies there is not touched
//   max(a, b), min(a, b)   of a NaN and a number the result is b, as the processors have it
//   scale2(a, n)           a · 2^n for whole n; overflows to infinity, underflows to 0
//   if_less(x, y, a, b)    per lane: a where x < y, else b; b if one is NaN
//   any_greater(x, y)      whether x > y in some lane; false for NaN
//   first(n, a, b)         a in the first n lanes, b in the others
//   dot_pairs(acc, a, b)   per lane: acc + the dot product of two pairs of bfloat16
//   dot_bytes(acc, u, s)   per lane: acc + the dot product of four unsigned and four signed bytes, exact
//   join_nibbles(low, high)  bytes below 16 of two words as the halves of one
//   round_to_bf16(a)       still floats
//   root(a)                square roots
//   store(p, a, b)         32 neighbours
//   zip(a, b), unzip(a, b)  32 neighbours in two vectors: from (evens, odds), and to them; in place
//   join_bytes(a, b, c, d)   words of one byte each as the four bytes of one
//   spread_int8(p)        16 signed bytes, each as both 16-bit halves of a word: factors
//   offsets_of(factors)   128 - 8 · factor, likewise
//   scale_bytes(n, f, o)  per byte: n · factor + offset, of n below 16; the low 8 bits
//   store_int8(p, a)       16 integers as bytes, saturated
//   transpose(rows)        16 rows of 16 words become 16 columns, in place
//
// Sums over lanes are added pairwise, halves first, in every variant.

using bf16 = uint16_t;
constexpr int LANES = 16;

#if defined(VARIANT_AVX512)
#include "simd_avx512.hpp"
#elif defined(VARIANT_AVX2)
#include "simd_avx2.hpp"
#else
#include "simd_portable.hpp"
#endif
