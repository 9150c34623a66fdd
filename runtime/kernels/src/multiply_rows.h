// From a product's bits, zero points, rows and panels to the function that a level has for them. Internal linkage, as
// in quantize.h.
#pragma once

#include "level.h"

namespace llama_kernels {
namespace {

// R rows times P panels, which the level defines: all its sums are in registers.
template <int bits, bool zeros, int R, int P>
void multiply_rows(const Panels& panels, const Tile& tile, float* out);

template <int bits, bool zeros, int R, int P>
void multiply_tile(const Panels& panels, const Tile& tile, float* out) {
    if constexpr (R > 1) {
        if (tile.rows < R) return multiply_tile<bits, zeros, R - 1, P>(panels, tile, out);
    }
    multiply_rows<bits, zeros, R, P>(panels, tile, out);
}

template <int R, int P>
void multiply_panels(const Panels& panels, const Tile& tile, float* out) {
    if (panels.bits == 4 && panels.zero_points) return multiply_tile<4, true, R, P>(panels, tile, out);
    if (panels.bits == 4) return multiply_tile<4, false, R, P>(panels, tile, out);
    if (panels.zero_points) return multiply_tile<8, true, R, P>(panels, tile, out);
    multiply_tile<8, false, R, P>(panels, tile, out);
}

// Level::multiply for up to R rows, P panels at a time.
template <int R, int P>
void multiply(const Panels& panels, const Tile& tile, float* out) {
    if (P > 1 && panels.count == P) return multiply_panels<R, P>(panels, tile, out);
    for (int p = 0; p < panels.count; ++p, out += tile.rows * 16)
        multiply_panels<R, 1>(panels.only(p), tile, out);
}

}  // namespace
}  // namespace llama_kernels
