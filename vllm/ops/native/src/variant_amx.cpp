// Products for processors that multiply tiles (AMX); all else is that of avx512_bf16.
#include "kernels.hpp"
#if defined(HAS_TILES)
#include <immintrin.h>
#define VARIANT amx
#define VARIANT_AVX512
#define VARIANT_BF16
#define VARIANT_TILES
#define VARIANT_TARGET \
    "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,fma,bmi,bmi2,amx-tile,amx-bf16,amx-int8"
#include "all.inl"
#endif
