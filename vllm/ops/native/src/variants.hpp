// Which kernels there are, best first, and which of them the processor can run.
#pragma once
#include <cstring>
#include <vector>

#include "kernels.hpp"

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

inline std::vector<Variant> all_variants() {
    std::vector<Variant> found;
#if defined(__x86_64__)
    __builtin_cpu_init();
    bool vnni = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                __builtin_cpu_supports("avx512vnni");
    found.push_back({&avx512_bf16::kernels, vnni && __builtin_cpu_supports("avx512bf16")});
    found.push_back({&avx512_vnni::kernels, vnni});
    found.push_back({&avx2::kernels, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")});
#endif
    found.push_back({&portable::kernels, true});
    return found;
}
