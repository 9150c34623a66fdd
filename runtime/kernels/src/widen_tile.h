// Products with 16-bit weights, the same source for every level (lanes.h).
#pragma once

#include "lanes.h"
#include "widen.h"

namespace llama_kernels {
namespace {

// A single row is bound by memory, which one stream at a time reads fastest.
constexpr int kOutputsAlone = 1;
constexpr int kWidenRows = kSums >= 16 ? 4 : kSums >= 4 ? 2 : 1;

struct Widened {
    Lanes first, second;
};

// 32 weights: of bfloat16 the even ones and the odd ones, of float16 the first and the last 16.
#if defined(__AVX512F__)
inline Widened widen_bfloat16(const uint16_t* from) {
    const __m512i both = _mm512_loadu_si512(from);
    return {{_mm512_castsi512_ps(_mm512_slli_epi32(both, 16))},
            {_mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xffff0000u))))}};
}
inline Widened widen_float16(const uint16_t* from) {
    const __m256i* halves = reinterpret_cast<const __m256i*>(from);
    return {{_mm512_cvtph_ps(_mm256_loadu_si256(halves))}, {_mm512_cvtph_ps(_mm256_loadu_si256(halves + 1))}};
}
#elif defined(__AVX2__)
inline Widened widen_bfloat16(const uint16_t* from) {
    const __m256i* both = reinterpret_cast<const __m256i*>(from);
    const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    return {each([=](int i) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256(both + i), 16)); }),
            each([=](int i) { return _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256(both + i), high)); })};
}
inline Widened widen_float16(const uint16_t* from) {
    const __m128i* eights = reinterpret_cast<const __m128i*>(from);
    return {each([=](int i) { return _mm256_cvtph_ps(_mm_loadu_si128(eights + i)); }),
            each([=](int i) { return _mm256_cvtph_ps(_mm_loadu_si128(eights + 2 + i)); })};
}
#elif defined(__ARM_NEON)
inline Widened widen_bfloat16(const uint16_t* from) {
    auto both = [=](int i) { return vreinterpretq_u32_u16(vld1q_u16(from + 8 * i)); };
    return {each([=](int i) { return vreinterpretq_f32_u32(vshlq_n_u32(both(i), 16)); }),
            each([=](int i) { return vreinterpretq_f32_u32(vandq_u32(both(i), vdupq_n_u32(0xffff0000u))); })};
}
inline Widened widen_float16(const uint16_t* from) {
    auto four = [=](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from + 4 * i))); };
    return {each(four), each([=](int i) { return four(4 + i); })};
}
#else
inline float from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
inline float from_float16(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16, rest = half & 0x7fffu;
    if (rest >= 0x7c00u) return from_bits(sign | 0x7f800000u | (rest & 0x3ffu) << 13 | (rest > 0x7c00u ? 0x400000u : 0));
    if (rest < 0x400u) return (sign ? -1.f : 1.f) * static_cast<float>(rest) * 0x1p-24f;
    return from_bits(sign | ((rest << 13) + (112u << 23)));
}
inline Widened widen_bfloat16(const uint16_t* from) {
    return {each([=](int i) { return from_bits(static_cast<uint32_t>(from[2 * i]) << 16); }),
            each([=](int i) { return from_bits(static_cast<uint32_t>(from[2 * i + 1]) << 16); })};
}
inline Widened widen_float16(const uint16_t* from) {
    return {each([=](int i) { return from_float16(from[i]); }),
            each([=](int i) { return from_float16(from[kLanes + i]); })};
}
#endif

template <Narrow narrow>
inline Widened widen(const uint16_t* from) {
    return narrow == Narrow::kBfloat16 ? widen_bfloat16(from) : widen_float16(from);
}

// R rows times O outputs, all sums in registers. `weights` are O rows; those of the next outputs are fetched.
template <Narrow narrow, int R, int O>
void widen_rows(const WidenTile& tile, int64_t output) {
    static_assert(R * O <= kSums, "a sum for each");
    const int64_t K = tile.inputs, whole = K / kWidenGroup * kWidenGroup, left = tile.outputs - output;
    const uint16_t* weights[O];
    for (int o = 0; o < O; ++o) weights[o] = tile.weights + (output + (o < left ? o : left - 1)) * K;
    Lanes totals[kSums];
#pragma GCC unroll 16
    for (Lanes& total : totals) total = broadcast(0.f);
    const float* activations = tile.activations;
    auto add = [&](const Widened (&widened)[O]) {
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
            const Lanes first = load(activations + r * kWidenGroup), second = load(activations + r * kWidenGroup + kLanes);
#pragma GCC unroll 4
            for (int o = 0; o < O; ++o) {
                Lanes& total = totals[r * O + o];
                total = multiply_add(second, widened[o].second, multiply_add(first, widened[o].first, total));
            }
        }
        activations += R * kWidenGroup;
    };
    Widened widened[O];
    for (int64_t k = 0; k < whole; k += kWidenGroup) {
#pragma GCC unroll 4
        for (int o = 0; o < O; ++o) {
            if (R == 1) __builtin_prefetch(weights[o] + O * K + k);  // never read where there are no more
            widened[o] = widen<narrow>(weights[o] + k);
        }
        add(widened);
    }
    if (whole < K) {
        for (int o = 0; o < O; ++o) {
            uint16_t rest[kWidenGroup] = {};
            std::memcpy(rest, weights[o] + whole, (K - whole) * sizeof *rest);
            widened[o] = widen<narrow>(rest);
        }
        add(widened);
    }
    float found[kSums];
    sums(totals, found);
    for (int r = 0; r < R; ++r)
        for (int o = 0; o < O && o < left; ++o) tile.to[r * tile.to_stride + output + o] = found[r * O + o];
}

template <Narrow narrow, int R>
void widen_outputs(const WidenTile& tile) {
    constexpr int most = R == 1 ? kOutputsAlone : 4, O = kSums / R < most ? kSums / R : most;
    for (int64_t output = 0; output < tile.outputs; output += O) widen_rows<narrow, R, O>(tile, output);
}

template <Narrow narrow>
void widen_tile(const WidenTile& tile) {
    switch (tile.rows) {
        case 1: return widen_outputs<narrow, 1>(tile);
        case 2: return widen_outputs<narrow, kWidenRows < 2 ? kWidenRows : 2>(tile);
        case 3: return widen_outputs<narrow, kWidenRows < 3 ? kWidenRows : 3>(tile);
        default: return widen_outputs<narrow, kWidenRows>(tile);
    }
}

inline void widen_product(const WidenTile& tile) {
    return tile.narrow == Narrow::kBfloat16 ? widen_tile<Narrow::kBfloat16>(tile) : widen_tile<Narrow::kFloat16>(tile);
}

}  // namespace
}  // namespace llama_kernels
