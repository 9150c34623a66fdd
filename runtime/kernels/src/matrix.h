// A quantized matrix [N, K] as the kernels read it.
//
// Its codes stay where they are, in the bundle's mapped file. Scales and zero points are copied: 16 outputs make a
// panel, and for each
//
//   float  scales[blocks][16]       or half, where all scales of the matrix are float16 times one power of two
//   uint8  zero_points[blocks][16]  where it has them
//
// each filled up to whole cache lines. More than one row of activations meet panels that are arranged on the fly,
// in memory of the thread: block after block along K,
//
//   float  scales[16]
//   uint8  codes[size * bits / 32][16][4]    4 bytes of output 0, 4 of output 1, ...: 64 bytes, one register
//
// or, where scales are halves, two blocks after two:
//
//   half   scales[2][16]
//   uint8  codes[2][size * bits / 32][16][4]
//
// and behind them the zero points. Bytes are those of MatMulNBits: a byte of 4-bit codes is two values, the first
// in its low half. Outputs beyond N have scale 0, values beyond K meet activations that are 0.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "level.h"

namespace llama_kernels {

struct Layout {
    int64_t outputs;   // N
    int64_t inputs;    // K
    int bits;          // 4 or 8
    int block;         // values that share a scale: 32, 64 or 128
    bool zero_points;  // each block has its own code of zero; otherwise it is the middle one
    bool half_scales;  // float16, two blocks beside each other

    int64_t blocks() const { return (inputs + block - 1) / block; }
    int64_t panels() const { return (outputs + kPanelOutputs - 1) / kPanelOutputs; }
    size_t code_bytes() const { return static_cast<size_t>(block) * bits / 8; }  // of one output's block
    size_t row_bytes() const { return static_cast<size_t>(blocks()) * code_bytes(); }  // of one output
    size_t rows_bytes() const { return kPanelOutputs * row_bytes(); }  // of a panel's outputs
    size_t record_bytes() const {  // of the blocks that share a line of scales
        return 64 + kPanelOutputs * code_bytes() * (half_scales ? 2 : 1);
    }
    size_t records() const { return static_cast<size_t>(half_scales ? (blocks() + 1) / 2 : blocks()); }  // of one panel
    size_t zero_bytes() const {  // of one panel, whole cache lines
        return zero_points ? (static_cast<size_t>(blocks()) * kPanelOutputs + 63) / 64 * 64 : 0;
    }
    size_t panel_bytes() const { return records() * record_bytes() + zero_bytes(); }
    size_t scales_bytes() const { return records() * 64 + zero_bytes(); }  // scales and zero points of one panel
};

// The arrays of MatMulNBits: codes [N, blocks, code_bytes], scales [N, blocks], and zero points
// [N, ceil(blocks * bits / 8)] or null.
struct Source {
    const uint8_t* codes;
    const float* scales;
    const uint8_t* zero_points;
};

// Pages of our own, aligned to 64 bytes; large ones ask for huge pages.
class Pages {
public:
    explicit Pages(size_t bytes);
    ~Pages();
    Pages(const Pages&) = delete;
    Pages& operator=(const Pages&) = delete;
    uint8_t* data() const { return data_; }

private:
    void* mapped_;
    size_t bytes_;
    uint8_t* data_;
};

class Matrix {
public:
    // Chooses the kind of scales and copies them on up to `threads` threads. The source's codes must outlive this.
    Matrix(const Layout& layout, const Source& source, int threads);

    const Layout& layout() const { return layout_; }

    // The outputs of a panel. `room`, for row_bytes() of 16 outputs, holds the last ones where they are fewer.
    Rows rows(int64_t panel, uint8_t* room) const;

    float factor() const { return factor_; }  // what products are multiplied by: a power of two

private:
    Layout layout_;
    const uint8_t* codes_;
    float factor_;
    std::unique_ptr<Pages> scales_;
};

}  // namespace llama_kernels
