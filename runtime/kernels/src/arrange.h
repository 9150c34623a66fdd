// Rearranging 16 outputs, which stand in rows, into a panel (matrix.h). Internal linkage, as in quantize.h.
#pragma once

#include <cstring>

#include "level.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace llama_kernels {
namespace {

// Always inline: g++ 12 takes calls of a function that only fetches for calls that do nothing.
inline __attribute__((always_inline)) void fetch(const uint8_t* at) { __builtin_prefetch(at); }

// 16 bytes of each of 16 rows to 4 lines [16][4].
#if defined(__AVX512F__)
inline void arrange_segment(const uint8_t* rows, size_t row_bytes, uint8_t* to) {
    __m512i fours[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        auto segment = [&](int quarter) {
            return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows + (quarter * 4 + i) * row_bytes));
        };
        __m512i four = _mm512_castsi128_si512(segment(0));
        four = _mm512_mask_broadcast_i32x4(four, 0x00f0, segment(1));
        four = _mm512_mask_broadcast_i32x4(four, 0x0f00, segment(2));
        fours[i] = _mm512_mask_broadcast_i32x4(four, 0xf000, segment(3));
    }
    const __m512i a = _mm512_unpacklo_epi32(fours[0], fours[1]), b = _mm512_unpacklo_epi32(fours[2], fours[3]);
    const __m512i c = _mm512_unpackhi_epi32(fours[0], fours[1]), d = _mm512_unpackhi_epi32(fours[2], fours[3]);
    _mm512_store_si512(to, _mm512_unpacklo_epi64(a, b));
    _mm512_store_si512(to + 64, _mm512_unpackhi_epi64(a, b));
    _mm512_store_si512(to + 128, _mm512_unpacklo_epi64(c, d));
    _mm512_store_si512(to + 192, _mm512_unpackhi_epi64(c, d));
}
#elif defined(__AVX2__)
inline void arrange_segment(const uint8_t* rows, size_t row_bytes, uint8_t* to) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half, rows += 8 * row_bytes, to += 32) {
        auto segment = [&](int row) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows + row * row_bytes)); };
        auto fours = [&](int i) { return _mm256_inserti128_si256(_mm256_castsi128_si256(segment(i)), segment(i + 4), 1); };
        const __m256i r[4] = {fours(0), fours(1), fours(2), fours(3)};
        const __m256i a = _mm256_unpacklo_epi32(r[0], r[1]), b = _mm256_unpacklo_epi32(r[2], r[3]);
        const __m256i c = _mm256_unpackhi_epi32(r[0], r[1]), d = _mm256_unpackhi_epi32(r[2], r[3]);
        auto line = [&](int i) { return reinterpret_cast<__m256i*>(to + i * 64); };
        _mm256_store_si256(line(0), _mm256_unpacklo_epi64(a, b));
        _mm256_store_si256(line(1), _mm256_unpackhi_epi64(a, b));
        _mm256_store_si256(line(2), _mm256_unpacklo_epi64(c, d));
        _mm256_store_si256(line(3), _mm256_unpackhi_epi64(c, d));
    }
}
#elif defined(__ARM_NEON)
inline void arrange_segment(const uint8_t* rows, size_t row_bytes, uint8_t* to) {
    for (int quarter = 0; quarter < 4; ++quarter, rows += 4 * row_bytes, to += 16) {
        auto row = [&](int i) { return vreinterpretq_u32_u8(vld1q_u8(rows + i * row_bytes)); };
        const uint32x4x2_t first = vtrnq_u32(row(0), row(1)), second = vtrnq_u32(row(2), row(3));
        auto line = [&](int i) { return reinterpret_cast<uint32_t*>(to + i * 64); };
        for (int i = 0; i < 2; ++i) {
            vst1q_u32(line(i), vcombine_u32(vget_low_u32(first.val[i]), vget_low_u32(second.val[i])));
            vst1q_u32(line(i + 2), vcombine_u32(vget_high_u32(first.val[i]), vget_high_u32(second.val[i])));
        }
    }
}
#else
inline void arrange_segment(const uint8_t* rows, size_t row_bytes, uint8_t* to) {
    for (int line = 0; line < 4; ++line)
        for (int row = 0; row < 16; ++row, to += 4) std::memcpy(to, rows + row * row_bytes + line * 4, 4);
}
#endif

void arrange_panel(const Rows& rows, uint8_t* to) {
    const size_t block_bytes = static_cast<size_t>(rows.block) * rows.bits / 8;
    const uint8_t *codes = rows.codes, *scales = rows.scales;
    for (int64_t b = 0; b < rows.blocks; ++b) {
        if (!rows.half_scales || b % 2 == 0) {
            std::memcpy(to, scales, 64);
            scales += 64, to += 64;
        }
        for (const uint8_t* end = codes + block_bytes; codes < end; codes += 16, to += 4 * 64)
            arrange_segment(codes, rows.row_bytes, to);
    }
    if (!rows.zero_points) return;
    if (rows.half_scales && rows.blocks % 2) to += 16 * block_bytes;
    std::memcpy(to, rows.zero_points, rows.blocks * 16);
}

}  // namespace
}  // namespace llama_kernels
