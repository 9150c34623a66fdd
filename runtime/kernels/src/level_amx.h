// What level_amx.cpp adds to AVX-512: products of many rows.
#pragma once

#include "level.h"

namespace llama_kernels {

constexpr int kRowsForTiles = 32;  // fewer are as fast without

// Asks the system once whether this process may use tiles.
bool tiles_run_here();

// Level::multiply_many.
void multiply_with_tiles(const Panels& panels, const Tile& rows, float* sums);

}  // namespace llama_kernels
