// The kernels for processors with AVX-512, its VNNI and its bfloat16 instructions.
#include "kernels.hpp"
#if defined(__x86_64__)
#include <immintrin.h>
#include <algorithm>
#include <cmath>
#include <cstring>
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,fma,bmi,bmi2")
#define VARIANT_AVX512
#define VARIANT_BF16
#define VARIANT avx512_bf16
#include "all.inl"
#endif
