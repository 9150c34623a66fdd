// Codes of 16 outputs that stand in rows, in each level's own registers: what rows_tile.h is written in.
//
// A register holds one or more segments, 16 bytes of a row each. Everything has internal linkage, as in
// quantize.h.
#pragma once

#include "lanes.h"

namespace llama_kernels {
namespace {

constexpr int kSegmentBytes = 16;

#if defined(__AVX512F__)

constexpr int kSegments = 4;

using Register = __m512i;  // of codes
using Sums = __m512i;      // of products, four for each segment
struct Sixteen {  // integers
    __m512i v;
};

inline Register load_codes(const void* from) { return _mm512_loadu_si512(from); }

// Every other four of 8 registers' worth: those of even values, or of odd ones (Tile::codes).
inline Register load_fours(const int8_t* from, bool odd) {
    const __m512i first = _mm512_loadu_si512(from), second = _mm512_loadu_si512(from + 64);
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    return _mm512_permutex2var_epi32(first, _mm512_add_epi32(even, _mm512_set1_epi32(odd)), second);
}

// sum + weights (uint8) . four activations (int8). As an intrinsic, g++ 12 copies accumulators around it.
inline __m512i dot(__m512i sum, __m512i weights, __m512i four) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(weights), "v"(four));
    return sum;
}

// A row's codes times activations: four sums for each segment, over N registers.
template <int bits, int N>
inline Sums row_sums(const uint8_t* row, const Register (&even)[N], const Register (&odd)[N]) {
    const __m512i low = _mm512_set1_epi8(15);
    __m512i sum = _mm512_setzero_si512();
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) {
        __m512i bytes = load_codes(row + n * 64);
        asm("" : "+v"(bytes));  // g++ 12 would load it twice
        sum = dot(sum, bits == 4 ? _mm512_and_si512(bytes, low) : bytes, even[n]);
        if (bits == 4) sum = dot(sum, _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low), odd[n]);
    }
    return sum;
}

// The four sums of each segment added up, of four rows: in each segment one sum for each row.
inline Sums add_fours(Sums a, Sums b, Sums c, Sums d) {
    auto pairs = [](__m512i x, __m512i y) {
        return _mm512_add_epi32(_mm512_alignr_epi8(y, x, 8), _mm512_mask_blend_epi32(0xcccc, x, y));
    };
    const __m512 ab = _mm512_castsi512_ps(pairs(a, b)), cd = _mm512_castsi512_ps(pairs(c, d));
    return _mm512_add_epi32(_mm512_castps_si512(_mm512_shuffle_ps(ab, cd, 0x88)),
                            _mm512_castps_si512(_mm512_shuffle_ps(ab, cd, 0xdd)));
}

// From sums of rows 0-3, 4-7, ... in each segment to 16 for each block; a block is one segment, or two, or four.
inline void gather_blocks(const Sums (&fours)[4], Sixteen (&blocks)[4]) {
    const __m512i a = _mm512_shuffle_i32x4(fours[0], fours[1], 0x44), b = _mm512_shuffle_i32x4(fours[2], fours[3], 0x44);
    const __m512i c = _mm512_shuffle_i32x4(fours[0], fours[1], 0xee), d = _mm512_shuffle_i32x4(fours[2], fours[3], 0xee);
    blocks[0].v = _mm512_shuffle_i32x4(a, b, 0x88), blocks[1].v = _mm512_shuffle_i32x4(a, b, 0xdd);
    blocks[2].v = _mm512_shuffle_i32x4(c, d, 0x88), blocks[3].v = _mm512_shuffle_i32x4(c, d, 0xdd);
}
inline void gather_blocks(const Sums (&fours)[4], Sixteen (&blocks)[2]) {
    auto pairs = [](__m512i x, __m512i y) {
        return _mm512_add_epi32(_mm512_shuffle_i32x4(x, y, 0x88), _mm512_shuffle_i32x4(x, y, 0xdd));
    };
    const __m512i low = pairs(fours[0], fours[1]), high = pairs(fours[2], fours[3]);
    blocks[0].v = _mm512_shuffle_i32x4(low, high, 0x88), blocks[1].v = _mm512_shuffle_i32x4(low, high, 0xdd);
}
inline void gather_blocks(const Sums (&fours)[4], Sixteen (&blocks)[1]) {
    Sixteen halves[2];
    gather_blocks(fours, halves);
    blocks[0].v = _mm512_add_epi32(halves[0].v, halves[1].v);
}

// What a block's sums begin with: its offset (Tile), times its zero points where there are any. Both fit 16 bits,
// and the upper halves of the second are 0: a product of 32 bits, faster than one.
template <int bits, bool zeros>
inline Sixteen offsets(const uint8_t* zero_points, int32_t offset) {
    const __m512i all = _mm512_set1_epi32(offset);
    if (!zeros) return {all};
    const void* sixteen = zero_points;
    return {_mm512_madd_epi16(_mm512_cvtepu8_epi32(_mm_load_si128(static_cast<const __m128i*>(sixteen))), all)};
}
inline Lanes to_floats(Sixteen a, Sixteen b) { return {_mm512_cvtepi32_ps(_mm512_add_epi32(a.v, b.v))}; }
inline Lanes load_halves(const uint8_t* from) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))};
}

#elif defined(__AVX2__)

constexpr int kSegments = 2;

using Register = __m256i;
using Sums = __m256i;
struct Sixteen {
    __m256i v[2];
};

inline Register load_codes(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

inline Register load_fours(const int8_t* from, bool odd) {
    const __m256 first = _mm256_castsi256_ps(load_codes(from)), second = _mm256_castsi256_ps(load_codes(from + 32));
    const __m256 fours = odd ? _mm256_shuffle_ps(first, second, 0xdd) : _mm256_shuffle_ps(first, second, 0x88);
    return _mm256_permute4x64_epi64(_mm256_castps_si256(fours), 0xd8);
}

#if defined(__AVXVNNI__)

constexpr bool kSignedCodes = false;

template <int bits, int N>
inline Sums row_sums(const uint8_t* row, const Register (&even)[N], const Register (&odd)[N]) {
    const __m256i low = _mm256_set1_epi8(15);
    __m256i sum = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
        const __m256i bytes = load_codes(row + n * 32);
        sum = _mm256_dpbusd_avx_epi32(sum, bits == 4 ? _mm256_and_si256(bytes, low) : bytes, even[n]);
        if (bits == 4) sum = _mm256_dpbusd_avx_epi32(sum, _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low), odd[n]);
    }
    return sum;
}

#else

constexpr bool kSignedCodes = true;  // 8 bits as code - 128: products of unsigned ones would overflow 16 bits

template <int bits, int N>
inline Sums row_sums(const uint8_t* row, const Register (&even)[N], const Register (&odd)[N]) {
    const __m256i low = _mm256_set1_epi8(15), sign = _mm256_set1_epi8(static_cast<char>(0x80));
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i sum = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
        const __m256i bytes = load_codes(row + n * 32);
        if (bits == 4) {  // eight products of at most 3810 fit
            sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(_mm256_and_si256(bytes, low), even[n]));
            const __m256i second = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low);
            sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(second, odd[n]));
        } else {
            const __m256i codes = _mm256_xor_si256(bytes, sign);
            const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(even[n], codes));
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
        }
    }
    return bits == 4 ? _mm256_madd_epi16(sum, ones) : sum;
}

#endif

inline Sums add_fours(Sums a, Sums b, Sums c, Sums d) {
    auto pairs = [](__m256i x, __m256i y) {
        return _mm256_add_epi32(_mm256_alignr_epi8(y, x, 8), _mm256_blend_epi32(x, y, 0xcc));
    };
    const __m256 ab = _mm256_castsi256_ps(pairs(a, b)), cd = _mm256_castsi256_ps(pairs(c, d));
    return _mm256_add_epi32(_mm256_castps_si256(_mm256_shuffle_ps(ab, cd, 0x88)),
                            _mm256_castps_si256(_mm256_shuffle_ps(ab, cd, 0xdd)));
}

inline void gather_blocks(const Sums (&fours)[4], Sixteen (&blocks)[2]) {
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
        blocks[0].v[i] = _mm256_permute2x128_si256(fours[2 * i], fours[2 * i + 1], 0x20);
        blocks[1].v[i] = _mm256_permute2x128_si256(fours[2 * i], fours[2 * i + 1], 0x31);
    }
}
inline void gather_blocks(const Sums (&fours)[4], Sixteen (&blocks)[1]) {
    Sixteen halves[2];
    gather_blocks(fours, halves);
    for (int i = 0; i < 2; ++i) blocks[0].v[i] = _mm256_add_epi32(halves[0].v[i], halves[1].v[i]);
}

template <int bits, bool zeros>
inline Sixteen offsets(const uint8_t* zero_points, int32_t offset) {
    constexpr bool as_signed = kSignedCodes && bits == 8;
    const __m256i all = _mm256_set1_epi32(as_signed && !zeros ? 0 : offset);
    if (!zeros) return {{all, all}};
    Sixteen made;
    for (int i = 0; i < 2; ++i) {
        const __m128i* eight = reinterpret_cast<const __m128i*>(zero_points + 8 * i);
        const __m256i codes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(eight));
        made.v[i] = as_signed ? _mm256_mullo_epi32(_mm256_sub_epi32(codes, _mm256_set1_epi32(128)), all)
                              : _mm256_madd_epi16(codes, all);
    }
    return made;
}
inline Lanes to_floats(Sixteen a, Sixteen b) {
    return each([&](int i) { return _mm256_cvtepi32_ps(_mm256_add_epi32(a.v[i], b.v[i])); });
}
inline Lanes load_halves(const uint8_t* from) {
    return each([=](int i) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from) + i)); });
}

#elif defined(__ARM_NEON)

constexpr int kSegments = 1;

using Register = int8x16_t;
using Sums = int32x4_t;
struct Sixteen {
    int32x4_t v[4];
};

inline Register load_codes(const int8_t* from) { return vld1q_s8(from); }
inline Register load_fours(const int8_t* from, bool odd) {
    const int32x4x2_t fours = vld2q_s32(reinterpret_cast<const int32_t*>(from));
    return vreinterpretq_s8_s32(fours.val[odd]);
}

// 8 bits are read as code - 128: the instruction takes signed bytes alone.
template <int bits, int N>
inline Sums row_sums(const uint8_t* row, const Register (&even)[N], const Register (&odd)[N]) {
    int32x4_t sum = vdupq_n_s32(0);
    for (int n = 0; n < N; ++n) {
        const uint8x16_t bytes = vld1q_u8(row + n * 16);
        const uint8x16_t codes = bits == 4 ? vandq_u8(bytes, vdupq_n_u8(15)) : veorq_u8(bytes, vdupq_n_u8(0x80));
        sum = vdotq_s32(sum, vreinterpretq_s8_u8(codes), even[n]);
        if (bits == 4) sum = vdotq_s32(sum, vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4)), odd[n]);
    }
    return sum;
}

inline Sums add_fours(Sums a, Sums b, Sums c, Sums d) {
    return vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d));
}

inline void gather_blocks(const Sums (&fours)[4], Sixteen (&blocks)[1]) {
    for (int i = 0; i < 4; ++i) blocks[0].v[i] = fours[i];
}

template <int bits, bool zeros>
inline Sixteen offsets(const uint8_t* zero_points, int32_t offset) {
    Sixteen made;
    for (int i = 0; i < 4; ++i) {
        int32_t zero[4];
        for (int j = 0; j < 4; ++j) zero[j] = zeros ? zero_points[i * 4 + j] - (bits == 8 ? 128 : 0) : bits == 4;
        made.v[i] = vmulq_n_s32(vld1q_s32(zero), offset);
    }
    return made;
}
inline Lanes to_floats(const Sixteen& a, const Sixteen& b) {
    return each([&](int i) { return vcvtq_f32_s32(vaddq_s32(a.v[i], b.v[i])); });
}
inline Lanes load_halves(const uint8_t* from) {
    return each([=](int i) {
        return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(from) + i * 4)));
    });
}

#endif

}  // namespace
}  // namespace llama_kernels
