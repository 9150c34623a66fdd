// 16 floats side by side, in each level's own registers: what attention is written in.
//
// All levels give the same bits: every operation here rounds once, and sums of lanes are taken in one order
// (8 apart, then 4, 2, 1). Everything has internal linkage, as in quantize.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace llama_kernels {
namespace {

constexpr int kLanes = 16;

#if defined(__AVX512F__)

constexpr int kSums = 16;  // that fit the registers beside what they are made of

struct Lanes {
    __m512 v;
};

inline Lanes broadcast(float value) { return {_mm512_set1_ps(value)}; }
inline Lanes load(const float* from) { return {_mm512_loadu_ps(from)}; }
inline Lanes load(const int8_t* from) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))};
}
inline void store(Lanes a, float* to) { _mm512_storeu_ps(to, a.v); }
inline Lanes add(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Lanes subtract(Lanes a, Lanes b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Lanes multiply(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Lanes larger(Lanes a, Lanes b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Lanes zero_below(Lanes x, float limit, Lanes value) {
    return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, _mm512_set1_ps(limit), _CMP_NLT_UQ), value.v)};
}
// value * 2^n, where n stands in the low bits of `whole`.
inline Lanes scale_by_power(Lanes value, Lanes whole) {
    const __m512i power = _mm512_slli_epi32(_mm512_castps_si512(whole.v), 23);
    return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(value.v), power))};
}

#elif defined(__AVX2__)

constexpr int kSums = 4;

struct Lanes {
    __m256 v[2];
};

template <class Operation>
inline Lanes each(Operation half) {
    return {{half(0), half(1)}};
}

inline Lanes broadcast(float value) {
    return each([=](int) { return _mm256_set1_ps(value); });
}
inline Lanes load(const float* from) {
    return each([=](int i) { return _mm256_loadu_ps(from + 8 * i); });
}
inline Lanes load(const int8_t* from) {
    return each([=](int i) {
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + 8 * i));
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
    });
}
inline void store(Lanes a, float* to) {
    _mm256_storeu_ps(to, a.v[0]);
    _mm256_storeu_ps(to + 8, a.v[1]);
}
inline Lanes add(Lanes a, Lanes b) {
    return each([=](int i) { return _mm256_add_ps(a.v[i], b.v[i]); });
}
inline Lanes subtract(Lanes a, Lanes b) {
    return each([=](int i) { return _mm256_sub_ps(a.v[i], b.v[i]); });
}
inline Lanes multiply(Lanes a, Lanes b) {
    return each([=](int i) { return _mm256_mul_ps(a.v[i], b.v[i]); });
}
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) {
    return each([=](int i) { return _mm256_fmadd_ps(a.v[i], b.v[i], c.v[i]); });
}
inline Lanes larger(Lanes a, Lanes b) {
    return each([=](int i) { return _mm256_max_ps(a.v[i], b.v[i]); });
}
inline Lanes zero_below(Lanes x, float limit, Lanes value) {
    return each(
        [=](int i) { return _mm256_and_ps(_mm256_cmp_ps(x.v[i], _mm256_set1_ps(limit), _CMP_NLT_UQ), value.v[i]); });
}
inline Lanes scale_by_power(Lanes value, Lanes whole) {
    return each([=](int i) {
        const __m256i power = _mm256_slli_epi32(_mm256_castps_si256(whole.v[i]), 23);
        return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(value.v[i]), power));
    });
}

#elif defined(__ARM_NEON)

constexpr int kSums = 4;

struct Lanes {
    float32x4_t v[4];
};

template <class Operation>
inline Lanes each(Operation quarter) {
    return {{quarter(0), quarter(1), quarter(2), quarter(3)}};
}

inline Lanes broadcast(float value) {
    return each([=](int) { return vdupq_n_f32(value); });
}
inline Lanes load(const float* from) {
    return each([=](int i) { return vld1q_f32(from + 4 * i); });
}
inline Lanes load(const int8_t* from) {
    const int8x16_t bytes = vld1q_s8(from);
    const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_s8(vget_high_s8(bytes));
    return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
             vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)))}};
}
inline void store(Lanes a, float* to) {
    for (int i = 0; i < 4; ++i) vst1q_f32(to + 4 * i, a.v[i]);
}
inline Lanes add(Lanes a, Lanes b) {
    return each([=](int i) { return vaddq_f32(a.v[i], b.v[i]); });
}
inline Lanes subtract(Lanes a, Lanes b) {
    return each([=](int i) { return vsubq_f32(a.v[i], b.v[i]); });
}
inline Lanes multiply(Lanes a, Lanes b) {
    return each([=](int i) { return vmulq_f32(a.v[i], b.v[i]); });
}
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) {
    return each([=](int i) { return vfmaq_f32(c.v[i], a.v[i], b.v[i]); });
}
inline Lanes larger(Lanes a, Lanes b) {
    return each([=](int i) { return vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); });
}
inline Lanes zero_below(Lanes x, float limit, Lanes value) {
    return each([=](int i) {
        const uint32x4_t below = vcltq_f32(x.v[i], vdupq_n_f32(limit));
        return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(value.v[i]), below));
    });
}
inline Lanes scale_by_power(Lanes value, Lanes whole) {
    return each([=](int i) {
        const uint32x4_t power = vshlq_n_u32(vreinterpretq_u32_f32(whole.v[i]), 23);
        return vreinterpretq_f32_u32(vaddq_u32(vreinterpretq_u32_f32(value.v[i]), power));
    });
}

#else

constexpr int kSums = 2;

struct Lanes {
    float v[kLanes];
};

template <class Operation>
inline Lanes each(Operation lane) {
    Lanes made;
    for (int i = 0; i < kLanes; ++i) made.v[i] = lane(i);
    return made;
}

inline Lanes broadcast(float value) {
    return each([=](int) { return value; });
}
inline Lanes load(const float* from) {
    return each([=](int i) { return from[i]; });
}
inline Lanes load(const int8_t* from) {
    return each([=](int i) { return static_cast<float>(from[i]); });
}
inline void store(const Lanes& a, float* to) { std::memcpy(to, a.v, sizeof a.v); }
inline Lanes add(const Lanes& a, const Lanes& b) {
    return each([&](int i) { return a.v[i] + b.v[i]; });
}
inline Lanes subtract(const Lanes& a, const Lanes& b) {
    return each([&](int i) { return a.v[i] - b.v[i]; });
}
inline Lanes multiply(const Lanes& a, const Lanes& b) {
    return each([&](int i) { return a.v[i] * b.v[i]; });
}
inline Lanes multiply_add(const Lanes& a, const Lanes& b, const Lanes& c) {
    return each([&](int i) { return std::fma(a.v[i], b.v[i], c.v[i]); });
}
inline Lanes larger(const Lanes& a, const Lanes& b) {
    return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline Lanes zero_below(const Lanes& x, float limit, const Lanes& value) {
    return each([&](int i) { return x.v[i] < limit ? 0.f : value.v[i]; });
}
inline Lanes scale_by_power(const Lanes& value, const Lanes& whole) {
    return each([&](int i) {
        uint32_t bits, power;
        std::memcpy(&bits, value.v + i, sizeof bits);
        std::memcpy(&power, whole.v + i, sizeof power);
        bits += power << 23;
        float scaled;
        std::memcpy(&scaled, &bits, sizeof scaled);
        return scaled;
    });
}

#endif

// The first `count` lanes, zeros in the others; reads no more than these.
#if defined(__AVX512F__)
inline Lanes load_some(const float* from, int count) { return {_mm512_maskz_loadu_ps((1u << count) - 1, from)}; }
inline Lanes load_some(const int8_t* from, int count) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8((1u << count) - 1, from)))};
}
#else
template <class Number>
inline Lanes load_some(const Number* from, int count) {
    Number some[kLanes] = {};
    for (int i = 0; i < count; ++i) some[i] = from[i];
    return load(some);
}
#endif

// Combines the lanes in the order in which sums are taken.
template <class Operation>
inline float across(const Lanes& a, Operation&& combine) {
    float lanes[kLanes];
    store(a, lanes);
    for (int step = kLanes / 2; step > 0; step /= 2)
        for (int i = 0; i < step; ++i) lanes[i] = combine(lanes[i], lanes[i + step]);
    return lanes[0];
}

inline float sum(const Lanes& a) {
    return across(a, [](float x, float y) { return x + y; });
}

inline float largest(const Lanes& a) {
    return across(a, [](float x, float y) { return x > y ? x : y; });
}

// to[i] = the sum of the lanes of vectors[i].
#if defined(__AVX512F__)
inline void sums(const Lanes (&vectors)[kSums], float* to) {
    __m512 eights[8], fours[4], twos[2];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
        const __m512 a = vectors[i / 4 * 8 + i % 4].v, b = vectors[i / 4 * 8 + i % 4 + 4].v;
        eights[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const __m512 a = eights[i], b = eights[i + 4];
        fours[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
        const __m512 a = fours[2 * i], b = fours[2 * i + 1];
        twos[i] = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
    }
    const __m512 a = twos[0], b = twos[1];
    _mm512_storeu_ps(to, _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd)));
}
#elif defined(__AVX2__)
inline void sums(const Lanes (&vectors)[kSums], float* to) {
    __m128 fours[kSums], twos[2];
#pragma GCC unroll 4
    for (int i = 0; i < kSums; ++i) {
        const __m256 eight = _mm256_add_ps(vectors[i].v[0], vectors[i].v[1]);
        fours[i] = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
        const __m128 a = fours[2 * i], b = fours[2 * i + 1];
        twos[i] = _mm_add_ps(_mm_shuffle_ps(a, b, 0x44), _mm_shuffle_ps(a, b, 0xee));
    }
    const __m128 a = twos[0], b = twos[1];
    _mm_storeu_ps(to, _mm_add_ps(_mm_shuffle_ps(a, b, 0x88), _mm_shuffle_ps(a, b, 0xdd)));
}
#elif defined(__ARM_NEON)
inline void sums(const Lanes (&vectors)[kSums], float* to) {
    float32x4_t fours[kSums], twos[2];
    for (int i = 0; i < kSums; ++i) {
        const float32x4_t* v = vectors[i].v;
        fours[i] = vaddq_f32(vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3]));
    }
    for (int i = 0; i < 2; ++i) {
        const float32x4_t a = fours[2 * i], b = fours[2 * i + 1];
        twos[i] =
            vaddq_f32(vcombine_f32(vget_low_f32(a), vget_low_f32(b)), vcombine_f32(vget_high_f32(a), vget_high_f32(b)));
    }
    vst1q_f32(to, vpaddq_f32(twos[0], twos[1]));
}
#else
inline void sums(const Lanes (&vectors)[kSums], float* to) {
    for (int i = 0; i < kSums; ++i) to[i] = sum(vectors[i]);
}
#endif

constexpr float kSmallestExponent = -87.f;  // below, 0 (and not a denormal)

// e^x for x up to 0, within 1 unit in the last place or two; NaN stays.
inline Lanes exponential(const Lanes& x) {
    constexpr float kRounding = 12582912.f;  // 1.5 * 2^23
    const Lanes whole = multiply_add(x, broadcast(1.44269504f), broadcast(kRounding));
    const Lanes powers = subtract(whole, broadcast(kRounding));
    Lanes rest = multiply_add(powers, broadcast(-0.693359375f), x);
    rest = multiply_add(powers, broadcast(2.12194440e-4f), rest);
    constexpr float kFactors[] = {1.f / 120, 1.f / 24, 1.f / 6, 0.5f, 1.f, 1.f};
    Lanes series = broadcast(1.f / 720);
#pragma GCC unroll 6
    for (float factor : kFactors) series = multiply_add(series, rest, broadcast(factor));
    return zero_below(x, kSmallestExponent, scale_by_power(series, whole));
}

}  // namespace
}  // namespace llama_kernels
