// The kernels for processors with AVX-512, its VNNI and its bfloat16 instructions.
#include "kernels.hpp"
#if defined(__x86_64__)
#include <immintrin.h>
#define VARIANT avx512_bf16
#define VARIANT_AVX512
#define VARIANT_BF16
#define VARIANT_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,fma,bmi,bmi2"
#include "all.inl"
#endif
