#include "rounding_lanes.h"

namespace llama_kernels {
namespace {

bool runs_here() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

}  // namespace

extern const RoundingLevel kRoundingAvx2 = {"avx2", runs_here, round_with_lanes};

}  // namespace llama_kernels
