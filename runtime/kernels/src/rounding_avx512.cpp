#include "rounding_lanes.h"

namespace llama_kernels {
namespace {

bool runs_here() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

}  // namespace

extern const RoundingLevel kRoundingAvx512 = {"avx512", runs_here, round_with_lanes};

}  // namespace llama_kernels
