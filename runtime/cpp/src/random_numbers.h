// SplitMix64 as a function of seed and index: the same numbers in any language, from any token on.
#pragma once

#include <cstdint>

namespace llama {

inline uint64_t splitmix64(uint64_t seed, uint64_t index) {
    uint64_t z = seed + (index + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

// In [0, 1): the upper 53 bits, so that every value is exact.
inline double uniform(uint64_t seed, uint64_t index) {
    return static_cast<double>(splitmix64(seed, index) >> 11) * 0x1p-53;
}

}  // namespace llama
