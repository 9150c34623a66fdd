// AVX2 with the dot products of AVX-VNNI: a panel's 16 outputs are two registers of 8 lanes.
#include <cpuid.h>
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

inline __m256i broadcast(const int8_t* four) {
    int32_t value;
    __builtin_memcpy(&value, four, sizeof value);
    return _mm256_set1_epi32(value);
}

// Eight of a block's scales.
inline __m256 scales_at(const uint8_t* line, bool half, int eight) {
    if (!half) return _mm256_load_ps(reinterpret_cast<const float*>(line) + eight * 8);
    return _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(line) + eight));
}

// R rows times a panel. A single row has two sums for each half, so that enough are in flight, and fetches the
// next panel line by line while it reads this one.
template <int bits, bool zeros, int R, int P>
void multiply_rows(const Panels& panel, const Tile& tile, float* out) {
    constexpr int kChains = R == 1 ? 2 : 1;
    const __m256i low = _mm256_set1_epi8(15);
    __m256 totals[R][2];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) totals[r][0] = totals[r][1] = _mm256_setzero_ps();
    const uint8_t *line = panel.records, *scale_line = line;
    const int8_t* codes = tile.codes;
    for (int64_t b = 0; b < panel.blocks; ++b) {
        __m256i sums[R][2], second_chain[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
        const int32_t* offsets = tile.offsets + b * R;
        scale_line = next_scales(panel, b, scale_line, line);
        if (kChains == 2) _mm_prefetch(reinterpret_cast<const char*>(scale_line + panel.panel_bytes), _MM_HINT_T0);
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
            __m256i zero = _mm256_setzero_si256();
            if (zeros) {
                const void* eight = panel.zero_points + b * 16 + half * 8;
                zero = _mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(eight)));
            }
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) {
                const __m256i offset = _mm256_set1_epi32(offsets[r]);
                // Both fit 16 bits, and the upper halves of `zero` are 0: a product of 32 bits, faster than one.
                sums[r][half] = zeros ? _mm256_madd_epi16(zero, offset) : offset;
            }
        }
        int left = panel.block * bits / 32;  // lines of 64 bytes, a multiple of 4
        do {
#pragma GCC unroll 2
            for (int j = 0; j < 2; ++j, line += 64) {
                if (kChains == 2) _mm_prefetch(reinterpret_cast<const char*>(line + panel.panel_bytes), _MM_HINT_T0);
#pragma GCC unroll 2
                for (int half = 0; half < 2; ++half) {
                    const __m256i bytes = _mm256_load_si256(reinterpret_cast<const __m256i*>(line + half * 32));
                    const __m256i first = bits == 4 ? _mm256_and_si256(bytes, low) : bytes;
                    const __m256i second = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low);
#pragma GCC unroll 4
                    for (int r = 0; r < R; ++r) {
                        __m256i& sum = bits == 8 && kChains == 2 && j % 2 ? second_chain[half] : sums[r][half];
                        sum = _mm256_dpbusd_avx_epi32(sum, first, broadcast(codes + r * 4));
                        if (bits == 8) continue;
                        __m256i& other = kChains == 2 ? second_chain[half] : sums[r][half];
                        other = _mm256_dpbusd_avx_epi32(other, second, broadcast(codes + (R + r) * 4));
                    }
                }
                codes += R * 32 / bits;
            }
        } while ((left -= 2) > 0);
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
            const __m256 scale = scales_at(scale_line, panel.half_scales, half);
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) {
                const __m256i sum = kChains == 2 ? _mm256_add_epi32(sums[r][half], second_chain[half]) : sums[r][half];
                const __m256 both = _mm256_mul_ps(scale, _mm256_set1_ps(tile.scales[b * R + r]));
                totals[r][half] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), both, totals[r][half]);
            }
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
        _mm256_storeu_ps(out + r * 16, totals[r][0]);
        _mm256_storeu_ps(out + r * 16 + 8, totals[r][1]);
    }
}

// Older compilers' libraries do not know the name: CPUID leaf 7, sub-leaf 1, bit 4 of EAX.
bool has_avx_vnni() {
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & 1u << 4);
}

bool runs_here() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_avx_vnni(); }

}  // namespace

extern const Level kAvxVnni = {"avxvnni", runs_here, true, kTileRows, quantize_row, multiply_alone,
                              arrange_panel, multiply<kTileRows, 1>,
                             attend_tile, join_states, kWidenRows, widen_product};

}  // namespace llama_kernels
