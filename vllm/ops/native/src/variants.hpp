// Which kernels there are, best first, and which of them the processor can run.
#pragma once
#include <cstring>
#include <vector>

#include "kernels.hpp"
#if defined(HAS_TILES)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

struct Variant {
    const Kernels* kernels;
    bool runs_here;
};

#if defined(__x86_64__)
namespace avx512_bf16 {
extern const Kernels kernels;
}
namespace avx512_vnni {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
#endif
namespace portable {
extern const Kernels kernels;
}

#if defined(HAS_TILES)
namespace amx {
void linear_prepare(const Args&, const Worker&);
void linear_multiply(const Args&, const Worker&);
int64_t linear_shared(const LinearArgs&);
int64_t linear_own(const LinearArgs&);

inline const Kernels* kernels() {
    static const Kernels own = [] {
        Kernels made = avx512_bf16::kernels;
        made.name = "amx";
        made.linear_prepare = linear_prepare, made.linear_multiply = linear_multiply;
        made.linear_shared = linear_shared, made.linear_own = linear_own;
        return made;
    }();
    return &own;
}

// Whether the processor multiplies tiles, and the system gives this process their registers when it is asked.
inline bool runs_here() {
    constexpr unsigned TILES = 1 << 24, BFLOAT16_PRODUCTS = 1 << 22, INT8_PRODUCTS = 1 << 25;
    constexpr unsigned ALL = TILES | BFLOAT16_PRODUCTS | INT8_PRODUCTS;
    constexpr int REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & ALL) == ALL && !syscall(SYS_arch_prctl, REQUEST, TILE_DATA);
}
}  // namespace amx
#endif

inline std::vector<Variant> all_variants() {
    std::vector<Variant> found;
#if defined(__x86_64__)
    __builtin_cpu_init();
    bool vnni = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                __builtin_cpu_supports("avx512vnni");
    bool pairs = vnni && __builtin_cpu_supports("avx512bf16");
#if defined(HAS_TILES)
    found.push_back({amx::kernels(), pairs && amx::runs_here()});
#endif
    found.push_back({&avx512_bf16::kernels, pairs});
    found.push_back({&avx512_vnni::kernels, vnni});
    found.push_back({&avx2::kernels, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")});
#endif
    found.push_back({&portable::kernels, true});
    return found;
}
