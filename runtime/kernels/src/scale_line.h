// Walking along a panel: where a block's scales stand (matrix.h). Internal linkage, as in quantize.h.
#pragma once

#include "level.h"

namespace llama_kernels {
namespace {

// Where block b's scales stand, behind those of the block before; `line` goes on to its codes.
inline const uint8_t* next_scales(const Panels& panels, int64_t b, const uint8_t* before, const uint8_t*& line) {
    if (panels.half_scales && b % 2) return before + 32;
    line += 64;
    return line - 64;
}

}  // namespace
}  // namespace llama_kernels
