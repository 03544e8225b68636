// The kernels for processors with AVX2 and FMA.
#include "kernels.hpp"
#if defined(__x86_64__)
#include <immintrin.h>
#define VARIANT avx2
#define VARIANT_AVX2
#define VARIANT_TARGET "avx2,fma,f16c,bmi,bmi2"
#include "all.inl"
#endif
