// The kernels for processors with AVX-512 and its VNNI instructions, without those for bfloat16.
#include "kernels.hpp"
#if defined(__x86_64__)
#include <immintrin.h>
#define VARIANT avx512_vnni
#define VARIANT_AVX512
#define VARIANT_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,bmi,bmi2"
#include "all.inl"
#endif
