// A single row of activations times 16 outputs whose codes stand in rows, as MatMulNBits has them: the same source
// for every level (rows_lanes.h).
#pragma once

#include "arrange.h"
#include "rows_lanes.h"

namespace llama_kernels {
namespace {

constexpr int kRegisterBytes = kSegments * kSegmentBytes;

// Adds the products of as many blocks as a register, or a block, has room for. The next panel's are fetched.
template <int bits, int block, bool zeros>
struct Column {
    static constexpr int kBlockBytes = block * bits / 8;
    static constexpr int kBlocks = kRegisterBytes > kBlockBytes ? kRegisterBytes / kBlockBytes : 1;
    static constexpr int kRegisters = kRegisterBytes > kBlockBytes ? 1 : kBlockBytes / kRegisterBytes;
    static constexpr int kBytes = kRegisters * kRegisterBytes;  // of each row
    static constexpr int kColumns = kBytes < 64 ? 64 / kBytes : 1;  // of a line of the cache

    const Rows& rows;
    const Tile& tile;
    Lanes total = broadcast(0.f);

    // `blocks` of them from `first` on count; codes and activations may stand elsewhere.
    inline __attribute__((always_inline)) void add(int64_t first, int blocks, const uint8_t* codes, size_t row_bytes,
                                                   const int8_t* activations) {
        Register even[kRegisters], odd[kRegisters];
#pragma GCC unroll 8
        for (int n = 0; n < kRegisters; ++n) {
            const int8_t* from = activations + n * kRegisterBytes * 8 / bits;
            even[n] = bits == 4 ? load_fours(from, false) : load_codes(from);
            odd[n] = bits == 4 ? load_fours(from, true) : even[n];
        }
        const int scale_bytes = rows.half_scales ? 32 : 64;  // of a block
        const uint8_t* scales = rows.scales + first * scale_bytes;
        const uint8_t* zero_points = zeros ? rows.zero_points + first * kPanelOutputs : nullptr;
        for (int byte = 0; byte < kBlocks * scale_bytes; byte += 64) fetch(scales + rows.next_bytes + byte);
        if (zeros) fetch(zero_points + rows.next_bytes);
        const int64_t column = first / kBlocks;
        const uint8_t* next = rows.codes + kPanelOutputs * rows.row_bytes + first * kBlockBytes;
        Sums fours[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i, codes += 4 * row_bytes, next += 4 * rows.row_bytes) {
            Sums sums[4];
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                if (i % kColumns == column % kColumns) {
#pragma GCC unroll 4
                    for (int byte = 0; byte < kBytes; byte += 64) fetch(next + j * rows.row_bytes + byte);
                }
                sums[j] = row_sums<bits>(codes + j * row_bytes, even, odd);
            }
            fours[i] = add_fours(sums[0], sums[1], sums[2], sums[3]);
        }
        Sixteen sums[kBlocks];
        gather_blocks(fours, sums);
#pragma GCC unroll 4
        for (int g = 0; g < kBlocks; ++g) {
            if (g == blocks) break;
            const uint8_t* zero = zeros ? zero_points + g * kPanelOutputs : nullptr;
            const Sixteen offset = offsets<bits, zeros>(zero, tile.offsets[first + g]);
            const uint8_t* at = scales + g * scale_bytes;
            const Lanes scale = rows.half_scales ? load_halves(at) : load(reinterpret_cast<const float*>(at));
            total = multiply_add(to_floats(sums[g], offset), multiply(scale, broadcast(tile.scales[first + g])), total);
        }
    }
};

// One row of activations.
template <int bits, int block, bool zeros>
void multiply_blocks(const Rows& rows, const Tile& tile, float* out) {
    using Added = Column<bits, block, zeros>;
    Added column{rows, tile};
    int64_t b = 0;
    for (; b + Added::kBlocks <= rows.blocks; b += Added::kBlocks)
        column.add(b, Added::kBlocks, rows.codes + b * Added::kBlockBytes, rows.row_bytes, tile.codes + b * block);
    if (b < rows.blocks) {  // nothing may be read behind the last block
        alignas(64) uint8_t codes[kPanelOutputs * Added::kBytes] = {};
        int8_t activations[Added::kBlocks * block] = {};
        const int left = static_cast<int>(rows.blocks - b);
        for (int i = 0; i < kPanelOutputs; ++i)
            __builtin_memcpy(codes + i * Added::kBytes, rows.codes + i * rows.row_bytes + b * Added::kBlockBytes,
                             left * Added::kBlockBytes);
        __builtin_memcpy(activations, tile.codes + b * block, left * block);
        column.add(b, left, codes, Added::kBytes, activations);
    }
    store(column.total, out);
}

template <int bits, bool zeros>
void multiply_row(const Rows& rows, const Tile& tile, float* out) {
    switch (rows.block) {
        case 32: return multiply_blocks<bits, 32, zeros>(rows, tile, out);
        case 64: return multiply_blocks<bits, 64, zeros>(rows, tile, out);
        default: return multiply_blocks<bits, 128, zeros>(rows, tile, out);
    }
}

void multiply_alone(const Rows& rows, const Tile& tile, float* out) {
    if (rows.bits == 4) {
        rows.zero_points ? multiply_row<4, true>(rows, tile, out) : multiply_row<4, false>(rows, tile, out);
    } else {
        rows.zero_points ? multiply_row<8, true>(rows, tile, out) : multiply_row<8, false>(rows, tile, out);
    }
}

}  // namespace
}  // namespace llama_kernels
