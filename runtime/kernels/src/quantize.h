// Rounding activations, in plain C++ that the compiler turns into each level's own instructions; AVX-512's are written
// out, which takes 0.6 of the time.
//
// Everything has internal linkage, and nothing of the standard library's templates is used: a function that
// two files share would be linked once, with the instructions of either.
#pragma once

#include <cstring>

#include "level.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace llama_kernels {
namespace {

constexpr float kRound = 12582912.f;  // 1.5 * 2^23: adding and subtracting it rounds to nearest, ties to even
constexpr float kSmallest = 1e-36f;   // below, 127 / largest would overflow
constexpr uint32_t kInfinity = 0x7f800000u;

#if defined(__AVX512F__)

// Of magnitudes, compared as integers: NaN is the largest of all.
template <int block>
uint32_t largest_magnitude(const float* values) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    __m512i largest = _mm512_setzero_si512();
    for (int i = 0; i < block; i += 16)
        largest = _mm512_max_epu32(largest, _mm512_and_si512(_mm512_loadu_si512(values + i), magnitude));
    return _mm512_reduce_max_epu32(largest);
}

// Returns the sum of the codes.
template <int block>
int32_t round_values(const float* values, float inverse, int8_t* codes) {
    __m512i sum = _mm512_setzero_si512();
    for (int i = 0; i < block; i += 16) {
        const __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(values + i), _mm512_set1_ps(inverse));
        const __m512i sixteen = _mm512_cvtps_epi32(scaled);  // to nearest, ties to even
        sum = _mm512_add_epi32(sum, sixteen);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + i), _mm512_cvtepi32_epi8(sixteen));
    }
    return _mm512_reduce_add_epi32(sum);
}

// Even places of each 8 values first, as the low and high halves of 4 bytes have them.
template <int block>
void even_first(int8_t* codes) {
    const __m128i places = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
    for (int i = 0; i < block; i += 16) {
        __m128i* sixteen = reinterpret_cast<__m128i*>(codes + i);
        _mm_storeu_si128(sixteen, _mm_shuffle_epi8(_mm_loadu_si128(sixteen), places));
    }
}

#else

template <int block>
uint32_t largest_magnitude(const float* values) {
    uint32_t bits[block];
    std::memcpy(bits, values, sizeof bits);
    uint32_t largest = 0;
    for (int i = 0; i < block; ++i) {
        const uint32_t magnitude = bits[i] & 0x7fffffffu;
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest;
}

template <int block>
int32_t round_values(const float* values, float inverse, int8_t* codes) {
    int32_t sum = 0;
    for (int i = 0; i < block; ++i) {
        const int32_t code = static_cast<int32_t>(values[i] * inverse + kRound - kRound);
        codes[i] = static_cast<int8_t>(code);
        sum += code;
    }
    return sum;
}

template <int block>
void even_first(int8_t* codes) {
    uint64_t eights[block / 8];
    std::memcpy(eights, codes, block);
    for (uint64_t& v : eights) {
        uint64_t even = v & 0x00ff00ff00ff00ffull, odd = (v >> 8) & 0x00ff00ff00ff00ffull;
        even = (even | even >> 8) & 0x0000ffff0000ffffull;
        odd = (odd | odd >> 8) & 0x0000ffff0000ffffull;
        v = ((even | even >> 16) & 0xffffffffull) | (odd | odd >> 16) << 32;
    }
    std::memcpy(codes, eights, block);
}

#endif

// Rounds `block` values; returns the sum of the codes.
template <int block>
int32_t round_block(const float* values, int8_t* codes, float* scale) {
    const uint32_t largest_bits = largest_magnitude<block>(values);
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
    return round_values<block>(values, 127.f / largest, codes);
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
        if (bits == 4) even_first<block>(codes);
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
