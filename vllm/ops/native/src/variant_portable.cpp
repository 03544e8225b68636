// The kernels for any processor, ARM's included: plain C++.
#include "kernels.hpp"
#define VARIANT portable
#include "all.inl"
