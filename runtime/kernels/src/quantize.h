// Rounding activations, in plain C++ that the compiler turns into each level's own instructions.
//
// Everything has internal linkage, and nothing of the standard library's templates is used: a function that
// two files share would be linked once, with the instructions of either.
#pragma once

#include <cstring>

#include "level.h"

namespace llama_kernels {
namespace {

constexpr float kRound = 12582912.f;  // 1.5 * 2^23: adding and subtracting it rounds to nearest, ties to even
constexpr float kSmallest = 1e-36f;   // below, 127 / largest would overflow
constexpr uint32_t kInfinity = 0x7f800000u;

// Rounds `block` values; returns the sum of the codes.
template <int block>
int32_t round_block(const float* values, int8_t* codes, float* scale) {
    uint32_t bits[block];
    std::memcpy(bits, values, sizeof bits);
    uint32_t largest_bits = 0;  // of magnitudes, compared as integers: NaN is the largest of all
    for (int i = 0; i < block; ++i) {
        const uint32_t magnitude = bits[i] & 0x7fffffffu;
        largest_bits = magnitude > largest_bits ? magnitude : largest_bits;
    }
    float largest;
    std::memcpy(&largest, &largest_bits, sizeof largest);
    if (largest_bits >= kInfinity || largest < kSmallest) {
        const uint32_t not_a_number = 0x7fc00000u;
        *scale = 0;
        if (largest_bits >= kInfinity) std::memcpy(scale, &not_a_number, sizeof *scale);
        std::memset(codes, 0, block);
        return 0;
    }
    *scale = largest / 127.f;
    const float inverse = 127.f / largest;
    int32_t sum = 0;
    for (int i = 0; i < block; ++i) {
        const int32_t code = static_cast<int32_t>(values[i] * inverse + kRound - kRound);
        codes[i] = static_cast<int8_t>(code);
        sum += code;
    }
    return sum;
}

// Even places of each 8 values first, as the low and high halves of 4 bytes have them.
inline uint64_t even_first(uint64_t v) {
    uint64_t even = v & 0x00ff00ff00ff00ffull, odd = (v >> 8) & 0x00ff00ff00ff00ffull;
    even = (even | even >> 8) & 0x0000ffff0000ffffull;
    odd = (odd | odd >> 8) & 0x0000ffff0000ffffull;
    return ((even | even >> 16) & 0xffffffffull) | (odd | odd >> 16) << 32;
}

template <int block>
void quantize_blocks(const float* values, int64_t inputs, int bits, int middle, const TileRow& to) {
    const int64_t blocks = (inputs + block - 1) / block;
    for (int64_t b = 0; b < blocks; ++b) {
        float padded[block];
        const float* from = values + b * block;
        const int64_t left = inputs - b * block;
        if (left < block) {
            std::memset(padded, 0, sizeof padded);
            std::memcpy(padded, from, left * sizeof(float));
            from = padded;
        }
        int8_t codes[block];
        const int64_t place = b * to.rows + to.row;
        to.offsets[place] = -middle * round_block<block>(from, codes, to.scales + place);
        if (bits == 4) {
            uint64_t eights[block / 8];
            std::memcpy(eights, codes, block);
            for (int i = 0; i < block / 8; ++i) eights[i] = even_first(eights[i]);
            std::memcpy(codes, eights, block);
        }
        int8_t* target = to.codes + b * block * to.rows + to.row * (to.whole_blocks ? block : 4);
        if (to.rows == 1 || to.whole_blocks) {
            std::memcpy(target, codes, block);
        } else {
            for (int i = 0; i < block / 4; ++i) std::memcpy(target + i * to.rows * 4, codes + i * 4, 4);
        }
    }
}

void quantize_row(const float* values, int64_t inputs, int block, int bits, int middle, const TileRow& to) {
    switch (block) {
        case 32: return quantize_blocks<32>(values, inputs, bits, middle, to);
        case 64: return quantize_blocks<64>(values, inputs, bits, middle, to);
        default: return quantize_blocks<128>(values, inputs, bits, middle, to);
    }
}

}  // namespace
}  // namespace llama_kernels
