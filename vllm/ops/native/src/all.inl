// Everything of one variant, in a namespace of its own.
#define INLINE static inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))
#define NOINLINE static __attribute__((noinline))
namespace VARIANT {
#include "simd.hpp"
#include "math.inl"
#include "linear.inl"
#include "attention_cache.inl"
#include "attention.inl"
extern const Kernels kernels;
#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)
const Kernels kernels = {TEXT(VARIANT), linear_prepare, linear_multiply, attention_write, attention_attend};
}  // namespace VARIANT
