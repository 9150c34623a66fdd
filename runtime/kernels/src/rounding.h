// Rounding a model's weights into blocks of a few bits, while a bundle is written: the exporter's own kernel.
//
// exporter/llama_export/quantize/methods.py does the same with PyTorch, bit for bit, where this library is not:
// every number here is rounded once, and sums over a block are taken in order.
#pragma once

#include <cstddef>
#include <cstdint>

namespace llama_kernels {

constexpr int kLargestBlock = 128;

enum class Stored : int { kFloat32, kFloat16, kBfloat16 };

// Some rows of a matrix, and where their blocks go. A value is (code - zero point) * scale.
struct Rounding {
    const void* values;  // [rows][columns]
    Stored stored;
    int64_t rows;
    int64_t columns;
    int bits;              // of a code: 4 or 8
    int block;             // values that share a scale: even, at most kLargestBlock; zeros stand behind a row
    bool searched;         // tries several scales for each block; else its largest value takes the last code
    uint8_t* codes;        // [rows][blocks][block * bits / 8], of two codes the first in the low half
    float* scales;         // [rows][blocks], of float16's 11 significant bits
    uint8_t* zero_points;  // [rows][blocks]; null where the middle code is zero

    int64_t blocks() const { return (columns + block - 1) / block; }  // of a row
};

// Whether all values are finite; else nothing is to be used of what was written.
using RoundRows = bool (*)(const Rounding& rounding);

struct RoundingLevel {
    const char* name;
    bool (*runs_here)();
    RoundRows round;
};

// The levels of this build, best first; the last is the reference, which runs anywhere.
const RoundingLevel* const* rounding_levels(size_t* count);

// With the best level that runs here.
bool round_rows(const Rounding& rounding);

}  // namespace llama_kernels
