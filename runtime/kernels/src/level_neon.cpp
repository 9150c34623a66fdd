// Arm's dot product instructions: a panel's 16 outputs are four registers of 4 lanes.
#include <arm_neon.h>

#include "arrange.h"
#include "attend_tile.h"
#include "multiply_rows.h"
#include "quantize.h"
#include "rows_tile.h"
#include "scale_line.h"
#include "widen_tile.h"

#if defined(__linux__)
#include <sys/auxv.h>
#endif

namespace llama_kernels {
namespace {

constexpr int kTileRows = 4;
constexpr int kQuarters = 4;

inline int8x16_t broadcast(const int8_t* four) {
    int32_t value;
    __builtin_memcpy(&value, four, sizeof value);
    return vreinterpretq_s8_s32(vdupq_n_s32(value));
}

// Four of a block's scales.
inline float32x4_t scales_at(const uint8_t* line, bool half, int four) {
    if (!half) return vld1q_f32(reinterpret_cast<const float*>(line) + four * 4);
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(line) + four * 4)));
}

// 8 bits are read as signed, code - 128: the instruction takes signed bytes alone.
template <int bits, bool zeros, int R, int P>
void multiply_rows(const Panels& panel, const Tile& tile, float* out) {
    float32x4_t totals[R][kQuarters];
    for (int r = 0; r < R; ++r)
        for (int quarter = 0; quarter < kQuarters; ++quarter) totals[r][quarter] = vdupq_n_f32(0);
    const int lines = panel.block * bits / 32;  // of 64 bytes
    const uint8_t *line = panel.records, *scale_line = line;
    const int8_t* codes = tile.codes;
    for (int64_t b = 0; b < panel.blocks; ++b) {
        int32x4_t sums[R][kQuarters];
        scale_line = next_scales(panel, b, scale_line, line);
        for (int quarter = 0; quarter < kQuarters; ++quarter) {
            int32_t zero[4];
            for (int i = 0; i < 4; ++i) {
                zero[i] = zeros ? panel.zero_points[b * 16 + quarter * 4 + i] - (bits == 8 ? 128 : 0) : bits == 4;
            }
            for (int r = 0; r < R; ++r) sums[r][quarter] = vmulq_n_s32(vld1q_s32(zero), tile.offsets[b * R + r]);
        }
        for (int i = 0; i < lines; ++i, line += 64) {
            if (R == 1) __builtin_prefetch(line + panel.panel_bytes);
            for (int quarter = 0; quarter < kQuarters; ++quarter) {
                const uint8x16_t bytes = vld1q_u8(line + quarter * 16);
                const uint8x16_t first = bits == 4 ? vandq_u8(bytes, vdupq_n_u8(15)) : veorq_u8(bytes, vdupq_n_u8(0x80));
                const int8x16_t second = vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4));
                for (int r = 0; r < R; ++r) {
                    int32x4_t& sum = sums[r][quarter];
                    sum = vdotq_s32(sum, vreinterpretq_s8_u8(first), broadcast(codes + r * 4));
                    if (bits == 4) sum = vdotq_s32(sum, second, broadcast(codes + (R + r) * 4));
                }
            }
            codes += R * 32 / bits;
        }
        for (int quarter = 0; quarter < kQuarters; ++quarter) {
            const float32x4_t four = scales_at(scale_line, panel.half_scales, quarter);
            for (int r = 0; r < R; ++r) {
                const float32x4_t both = vmulq_n_f32(four, tile.scales[b * R + r]);
                totals[r][quarter] = vfmaq_f32(totals[r][quarter], vcvtq_f32_s32(sums[r][quarter]), both);
            }
        }
    }
    for (int r = 0; r < R; ++r)
        for (int quarter = 0; quarter < kQuarters; ++quarter) vst1q_f32(out + r * 16 + quarter * 4, totals[r][quarter]);
}

bool runs_here() {
#if defined(__linux__)
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
    return true;  // every Apple processor has them
#endif
}

}  // namespace

extern const Level kNeon = {"neon", runs_here, false, kTileRows, quantize_row, multiply_alone,
                              arrange_panel, multiply<kTileRows, 1>,
                             attend_tile, join_states, kWidenRows, widen_product};

}  // namespace llama_kernels
