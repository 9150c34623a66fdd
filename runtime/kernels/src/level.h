// What a level of instructions (a "level": scalar, avx2, avx512, ...) has to offer, and which there are.
//
// All levels give the same bits: sums within a block are integers, and blocks are added one by one with a
// fused multiply-add. A row's numbers depend neither on the other rows nor on the threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attend.h"
#include "widen.h"

namespace llama_kernels {

constexpr int kMaxTileRows = 6;
constexpr int kMaxPanels = 2;
constexpr int kPanelOutputs = 16;
constexpr int kManyTileRows = 16;  // of `multiply_many`
constexpr int kManyPanels = 4;

// Some rows of activations, rounded to int8 block by block; R rows, beside each other for every 4 values.
struct Tile {
    const int8_t* codes;     // [blocks * block / 4][R][4], for `multiply_many` [blocks][R][block]; for 4 bits
                             // each 8 values stand as 0 2 4 6 1 3 5 7
    const float* scales;     // [blocks][R]
    const int32_t* offsets;  // [blocks][R]: minus the sum of a block's codes, times the middle code of the
                             // matrix where it has no zero points
    int rows;                // R
};

// Some panels of a matrix (matrix.h), one behind the other.
struct Panels {
    const uint8_t* records;
    const uint8_t* zero_points;  // [blocks][16], or null
    size_t panel_bytes;          // from one to the next
    int count;
    int64_t blocks;
    int block;
    int bits;
    bool half_scales;

    Panels some(int first, int number) const {
        const size_t offset = first * panel_bytes;
        const uint8_t* zeros = zero_points ? zero_points + offset : nullptr;
        return {records + offset, zeros, panel_bytes, number, blocks, block, bits, half_scales};
    }
    Panels only(int index) const { return some(index, 1); }
};

// 16 outputs of a matrix as they stand in the bundle, their scales and zero points beside them (matrix.h).
struct Rows {
    const uint8_t* codes;  // [16][row_bytes]
    size_t row_bytes;
    const uint8_t* scales;       // [blocks][16], float or float16
    const uint8_t* zero_points;  // [blocks][16], or null
    size_t next_bytes;           // from these to those of the next 16 outputs
    int64_t blocks;
    int block;
    int bits;
    bool half_scales;
};

// Where row `row` of a tile of `rows` goes.
struct TileRow {
    int8_t* codes;
    float* scales;
    int32_t* offsets;
    int row;
    int rows;
    bool whole_blocks;  // of `codes`, as `multiply_many` has them
};

struct Level {
    const char* name;
    bool (*runs_here)();
    bool by_default;  // measured to be faster than ONNX Runtime's own operator; the others must be asked for
    int tile_rows;  // the most rows of a tile, at most kMaxTileRows

    // Rounds one row [inputs]. A block that is not finite makes its row NaN; one below 1e-36 is 0.
    void (*quantize)(const float* values, int64_t inputs, int block, int bits, int middle, const TileRow& to);

    // sums[16] = a single row times 16 outputs where they stand.
    void (*multiply_row)(const Rows& outputs, const Tile& row, float* sums);

    // Makes a panel of 16 outputs.
    void (*arrange)(const Rows& outputs, uint8_t* to);

    // sums[panels][R][16] = the tile times the panels.
    void (*multiply)(const Panels& panels, const Tile& tile, float* sums);

    // The state of a tile's rows at positions [first, end), which lie in one chunk; `scores` is room for [R][kChunk].
    void (*attend)(const AttentionTile& tile, int64_t first, int64_t end, float* scores, const AttentionState& to);

    // Adds the state at a later chunk.
    void (*join_states)(const AttentionState& to, const AttentionState& later, int rows, int64_t dim);

    int widen_rows;  // the most rows of a tile of `widen`

    // The tile times 16-bit weights.
    void (*widen)(const WidenTile& tile);

    int many_rows = 0;  // from how many rows on `multiply_many` is faster; 0 is never

    // sums[panels][R][16] = the rows times up to kManyPanels panels. Each kManyTileRows rows are a tile, one behind
    // the other; the last rows are a tile of half as many, or two.
    void (*multiply_many)(const Panels& panels, const Tile& rows, float* sums) = nullptr;
};

// The levels of this build, best first; the last is the reference, which runs anywhere.
const Level* const* levels(size_t* count);

// The best level that runs here and is chosen by default, or the one named; null where there is none.
const Level* choose_level(const char* name);

}  // namespace llama_kernels
