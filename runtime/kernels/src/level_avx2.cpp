// AVX2 and FMA: a panel's 16 outputs are two registers of 8 lanes.
#include <immintrin.h>

#include "arrange.h"
#include "attend_tile.h"
#include "multiply_rows.h"
#include "quantize.h"
#include "rows_tile.h"
#include "scale_line.h"
#include "widen_tile.h"

namespace llama_kernels {
namespace {

constexpr int kTileRows = 4;

// 8 bits are read as signed, code - 128, since products of unsigned ones would overflow 16 bits.
inline __m256i pairs(__m256i weights, __m256i four, bool is_signed) {
    if (!is_signed) return _mm256_maddubs_epi16(weights, four);
    return _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(four, weights));
}

inline __m256i broadcast(const int8_t* four) {
    int32_t value;
    __builtin_memcpy(&value, four, sizeof value);
    return _mm256_set1_epi32(value);
}

inline __m256i widen(__m256i sixteen_bits) { return _mm256_madd_epi16(sixteen_bits, _mm256_set1_epi16(1)); }

// Eight of a block's scales.
inline __m256 scales_at(const uint8_t* line, bool half, int eight) {
    if (!half) return _mm256_load_ps(reinterpret_cast<const float*>(line) + eight * 8);
    return _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(line) + eight));
}

template <int bits, bool zeros, int R, int P>
void multiply_rows(const Panels& panel, const Tile& tile, float* out) {
    const __m256i low = _mm256_set1_epi8(15), sign = _mm256_set1_epi8(static_cast<char>(0x80));
    __m256 totals[R][2];
    for (int r = 0; r < R; ++r) totals[r][0] = totals[r][1] = _mm256_setzero_ps();
    const int lines = panel.block * bits / 32;  // of 64 bytes; a multiple of 4
    const uint8_t *line = panel.records, *scale_line = line;
    const int8_t* codes = tile.codes;
    for (int64_t b = 0; b < panel.blocks; ++b) {
        __m256i sums[R][2];
        scale_line = next_scales(panel, b, scale_line, line);
        const int32_t* offsets = tile.offsets + b * R;
        for (int half = 0; half < 2; ++half) {
            __m256i zero = _mm256_set1_epi32(bits == 8 ? 0 : 1);
            if (zeros) {
                const void* eight = panel.zero_points + b * 16 + half * 8;
                zero = _mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(eight)));
                if (bits == 8) zero = _mm256_sub_epi32(zero, _mm256_set1_epi32(128));
            }
            for (int r = 0; r < R; ++r) sums[r][half] = _mm256_mullo_epi32(zero, _mm256_set1_epi32(offsets[r]));
        }
        for (int i = 0; i < lines; i += 4) {
            __m256i shorts[R][2];  // 4 bits: eight products of at most 3810 fit
            for (int r = 0; r < R; ++r) shorts[r][0] = shorts[r][1] = _mm256_setzero_si256();
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j, line += 64) {
                if (R == 1) _mm_prefetch(reinterpret_cast<const char*>(line + panel.panel_bytes), _MM_HINT_T0);
#pragma GCC unroll 2
                for (int half = 0; half < 2; ++half) {
                    const void* at = line + half * 32;
                    const __m256i bytes = _mm256_load_si256(static_cast<const __m256i*>(at));
                    const __m256i first = bits == 4 ? _mm256_and_si256(bytes, low) : _mm256_xor_si256(bytes, sign);
                    const __m256i second = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low);
                    for (int r = 0; r < R; ++r) {
                        const __m256i product = pairs(first, broadcast(codes + r * 4), bits == 8);
                        if (bits == 8) {
                            sums[r][half] = _mm256_add_epi32(sums[r][half], widen(product));
                        } else {
                            const __m256i other = pairs(second, broadcast(codes + (R + r) * 4), false);
                            shorts[r][half] = _mm256_add_epi16(shorts[r][half], _mm256_add_epi16(product, other));
                        }
                    }
                }
                codes += R * 32 / bits;
            }
            if (bits == 4)
                for (int r = 0; r < R; ++r)
                    for (int half = 0; half < 2; ++half)
                        sums[r][half] = _mm256_add_epi32(sums[r][half], widen(shorts[r][half]));
        }
        for (int half = 0; half < 2; ++half) {
            const __m256 scale = scales_at(scale_line, panel.half_scales, half);
            for (int r = 0; r < R; ++r) {
                const __m256 both = _mm256_mul_ps(scale, _mm256_set1_ps(tile.scales[b * R + r]));
                totals[r][half] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[r][half]), both, totals[r][half]);
            }
        }
    }
    for (int r = 0; r < R; ++r)
        for (int half = 0; half < 2; ++half) _mm256_storeu_ps(out + r * 16 + half * 8, totals[r][half]);
}

bool runs_here() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

}  // namespace

extern const Level kAvx2 = {"avx2", runs_here, false, kTileRows, quantize_row, multiply_alone,
                              arrange_panel, multiply<kTileRows, 1>,
                             attend_tile, join_states, kWidenRows, widen_product};

}  // namespace llama_kernels
