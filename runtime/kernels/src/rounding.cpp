// The level that runs anywhere, and which there are.
#include "rounding.h"

#include "rounding_lanes.h"

namespace llama_kernels {

#if defined(LLAMA_KERNELS_X86)
extern const RoundingLevel kRoundingAvx512;
extern const RoundingLevel kRoundingAvx2;
#endif

const RoundingLevel* const* rounding_levels(size_t* count) {
    static const RoundingLevel kAnywhere = {"scalar", [] { return true; }, round_with_lanes};
    static const RoundingLevel* const kLevels[] = {
#if defined(LLAMA_KERNELS_X86)
        &kRoundingAvx512,
        &kRoundingAvx2,
#endif
        &kAnywhere,
    };
    *count = sizeof kLevels / sizeof kLevels[0];
    return kLevels;
}

bool round_rows(const Rounding& rounding) {
    size_t count;
    const RoundingLevel* const* level = rounding_levels(&count);
    while (!(*level)->runs_here()) ++level;
    return (*level)->round(rounding);
}

}  // namespace llama_kernels
