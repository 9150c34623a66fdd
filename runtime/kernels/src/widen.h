// Products with 16-bit weights, read as they stand in the file: row by row, neither packed nor copied.
//
// A sum is taken over 32 weights at a time, 16 and 16, into the 16 lanes of one register, and over the lanes at
// the end: so a row's numbers depend neither on the other rows nor on the threads, and all levels agree.
#pragma once

#include <cstddef>
#include <cstdint>

#include "parallel.h"

namespace llama_kernels {

struct Level;

constexpr int64_t kWidenGroup = 32;  // weights

enum class Narrow { kBfloat16, kFloat16 };

// Some rows of activations against some outputs.
struct WidenTile {
    Narrow narrow;
    const uint16_t* weights;   // [outputs][inputs]
    int64_t outputs;
    int64_t inputs;
    const float* activations;  // [groups of 32][rows][32]: even ones first where the weights are bfloat16, zeros
                               // behind the last
    int rows;                  // at most Level::widen_rows
    float* to;                 // [rows][outputs of the whole product]
    int64_t to_stride;
};

// to [rows, outputs] = from [rows, inputs] times weights [outputs, inputs], transposed, plus the bias where given.
struct WidenGemm {
    Narrow narrow;
    const uint16_t* weights;
    const float* bias;  // [outputs], or null
    int64_t outputs;
    int64_t inputs;

    void run(const Level& level, const float* from, int64_t rows, float* to, const Parallel& parallel) const;
};

}  // namespace llama_kernels
