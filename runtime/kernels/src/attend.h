// What a level does of attention: some rows of queries meet some positions of one head's keys and values.
//
// A row is one token of one query head; rows that share a key-value head share all loads. Positions are taken
// in chunks of kChunk that begin at its multiples, each chunk by itself, and chunks are joined in order: so a
// row's numbers depend neither on the other rows nor on how the work is cut.
#pragma once

#include <cstddef>
#include <cstdint>

namespace llama_kernels {

constexpr int kChunk = 128;
constexpr int kAttentionRows = 64;  // the most of a tile

// head_dim D in whole registers.
inline int64_t padded(int64_t dim) { return (dim + 15) / 16 * 16; }

// Where a tile's rows stand after some positions: sum over positions of weight * value, of weights
// e^(score - maximum) that sum to `sums`.
struct AttentionState {
    float* maxima;   // [R], from -FLT_MAX
    float* sums;     // [R], from 0
    float* context;  // [R][padded D], from 0
};

struct AttentionTile {
    const float* queries;        // [R][padded D]: rotated, scaled, zeros behind D
    const int64_t* begins;       // [R]: a row sees positions [begin, end)
    const int64_t* ends;         // [R]
    const float* const* biases;  // [R]: a row's, by position; or null
    int rows;                    // R
    const void* keys;            // [positions][D], float or int8
    const void* values;
    bool bytes;   // int8: what they are scaled by is in the queries, or multiplied afterwards
    int64_t dim;  // D
};

}  // namespace llama_kernels
