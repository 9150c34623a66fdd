// AVX-512 with VNNI: a panel's 16 outputs are the 16 lanes of a register.
#include <immintrin.h>

#include "arrange.h"
#include "attend_tile.h"
#include "level_amx.h"
#include "multiply_rows.h"
#include "quantize.h"
#include "rows_tile.h"
#include "scale_line.h"
#include "widen_tile.h"

namespace llama_kernels {
namespace {

inline __m512i broadcast(const int8_t* four) {
    int32_t value;
    __builtin_memcpy(&value, four, sizeof value);
    return _mm512_set1_epi32(value);
}

inline __m512 scales_at(const uint8_t* line, bool half) {
    return half ? _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(line))) : _mm512_load_ps(line);
}

// R rows times P panels, all sums in registers. A single row of a single panel has two sums, so that enough
// are in flight, and fetches the next panel line by line while it reads this one.
template <int bits, bool zeros, int R, int P>
void multiply_rows(const Panels& panels, const Tile& tile, float* out) {
    constexpr int kChains = R * P == 1 ? 2 : 1;
    constexpr bool kFetches = R <= 4;
    const __m512i low = _mm512_set1_epi8(15);
    const size_t stride = panels.panel_bytes;
    __m512 totals[P][R];
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r) totals[p][r] = _mm512_setzero_ps();
    const uint8_t *line = panels.records, *scale_line = line;
    const uint8_t* zero_points = panels.zero_points;
    const int8_t* codes = tile.codes;
    const float* scales = tile.scales;
    const int32_t* offsets = tile.offsets;
    for (int64_t b = 0; b < panels.blocks; ++b) {
        __m512i sums[P][R], second_chain = _mm512_setzero_si512();
        scale_line = next_scales(panels, b, scale_line, line);
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) {
            if (kFetches) _mm_prefetch(scale_line + (P + p) * stride, _MM_HINT_T0);
            __m512i zero;
            if (zeros) {
                const void* sixteen = zero_points + p * stride;
                if (kFetches) _mm_prefetch(zero_points + (P + p) * stride, _MM_HINT_T0);
                zero = _mm512_cvtepu8_epi32(_mm_load_si128(static_cast<const __m128i*>(sixteen)));
            }
#pragma GCC unroll 6
            for (int r = 0; r < R; ++r) {
                const __m512i offset = _mm512_set1_epi32(offsets[r]);
                // Both fit 16 bits, and the upper halves of `zero` are 0: a product of 32 bits, faster than one.
                sums[p][r] = zeros ? _mm512_madd_epi16(zero, offset) : offset;
            }
        }
        int left = panels.block * bits / 32;  // lines of 64 bytes, a multiple of 4
        do {                                  // at least once, which keeps g++ from preparing for none
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j, line += 64) {
                __m512i first[P], second[P];
#pragma GCC unroll 2
                for (int p = 0; p < P; ++p) {
                    const __m512i bytes = _mm512_load_si512(line + p * stride);
                    if (kFetches) _mm_prefetch(line + (P + p) * stride, _MM_HINT_T0);
                    first[p] = bits == 4 ? _mm512_and_si512(bytes, low) : bytes;
                    second[p] = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low);
                }
#pragma GCC unroll 6
                for (int r = 0; r < R; ++r) {
                    const __m512i four = broadcast(codes + r * 4);
#pragma GCC unroll 2
                    for (int p = 0; p < P; ++p) {
                        __m512i& sum = bits == 8 && kChains == 2 && j % 2 ? second_chain : sums[p][r];
                        sum = dot(sum, first[p], four);
                    }
                }
                if (bits == 4) {
#pragma GCC unroll 6
                    for (int r = 0; r < R; ++r) {
                        const __m512i four = broadcast(codes + (R + r) * 4);
#pragma GCC unroll 2
                        for (int p = 0; p < P; ++p) {
                            __m512i& sum = kChains == 2 ? second_chain : sums[p][r];
                            sum = dot(sum, second[p], four);
                        }
                    }
                }
                codes += R * 32 / bits;
            }
        } while ((left -= 4) > 0);
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) {
            const __m512 scale = scales_at(scale_line + p * stride, panels.half_scales);
#pragma GCC unroll 6
            for (int r = 0; r < R; ++r) {
                const __m512i sum = kChains == 2 ? _mm512_add_epi32(sums[p][r], second_chain) : sums[p][r];
                const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(scales[r]));
                totals[p][r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), both, totals[p][r]);
            }
        }
        zero_points += zeros ? 16 : 0;
        scales += R;
        offsets += R;
    }
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r) _mm512_storeu_ps(out + (p * R + r) * 16, totals[p][r]);
}

bool runs_here() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}

#if defined(LLAMA_KERNELS_AMX)
bool runs_here_with_tiles() { return runs_here() && tiles_run_here(); }
#endif

}  // namespace

extern const Level kAvx512 = {"avx512", runs_here, true, kMaxTileRows, quantize_row, multiply_alone,
                              arrange_panel, multiply<kMaxTileRows, kMaxPanels>, attend_tile, join_states, kWidenRows, widen_product};

#if defined(LLAMA_KERNELS_AMX)
extern const Level kAmx = {"amx", runs_here_with_tiles, true, kMaxTileRows, quantize_row, multiply_alone,
                              arrange_panel, multiply<kMaxTileRows, kMaxPanels>, attend_tile, join_states, kWidenRows, widen_product,
                           kRowsForTiles, multiply_with_tiles};
#endif

}  // namespace llama_kernels
