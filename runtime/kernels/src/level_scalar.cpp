// The reference that every other level equals, bit by bit.
#include <cmath>

#include "arrange.h"
#include "attend_tile.h"
#include "matrix.h"
#include "quantize.h"
#include "widen_tile.h"

namespace llama_kernels {
namespace {

int code_at(const uint8_t* codes, int bits, int output, int k) {
    if (bits == 8) return codes[k / 4 * 64 + output * 4 + k % 4];
    const uint8_t two = codes[k / 8 * 64 + output * 4 + k % 8 / 2];
    return k % 2 ? two >> 4 : two & 15;
}

// Where value k of a row stands among 4 or 8 (Tile::codes).
int place_of(int bits, int k) { return bits == 8 ? k : k / 8 * 8 + k % 2 * 4 + k % 8 / 2; }

float half(const uint8_t* at) {  // never a denormal
    uint16_t bits;
    std::memcpy(&bits, at, sizeof bits);
    const float magnitude = bits & 0x7fff ? std::ldexp(1024.f + (bits & 0x3ff), (bits >> 10 & 31) - 25) : 0;
    return bits & 0x8000 ? -magnitude : magnitude;
}

void multiply_one(const Panels& panel, const Tile& tile, float* sums) {
    const size_t code_bytes = kPanelOutputs * panel.block * panel.bits / 8;
    const int together = panel.half_scales ? 2 : 1;
    for (int row = 0; row < tile.rows; ++row) {
        for (int output = 0; output < kPanelOutputs; ++output) {
            float total = 0;
            for (int64_t b = 0; b < panel.blocks; ++b) {
                const uint8_t* record = panel.records + b / together * (64 + together * code_bytes);
                const uint8_t* codes = record + 64 + b % together * code_bytes;
                const int64_t at = b * tile.rows + row;
                const int zero = panel.zero_points ? panel.zero_points[b * kPanelOutputs + output] : 1;
                int32_t sum = tile.offsets[at] * zero;
                for (int k = 0; k < panel.block; ++k) {
                    const int place = place_of(panel.bits, k);
                    const int64_t four = (b * panel.block + place) / 4;
                    const int activation = tile.codes[(four * tile.rows + row) * 4 + place % 4];
                    sum += code_at(codes, panel.bits, output, k) * activation;
                }
                float scale;
                if (panel.half_scales) scale = half(record + (b % 2 * kPanelOutputs + output) * 2);
                else std::memcpy(&scale, record + output * sizeof scale, sizeof scale);
                total = std::fma(static_cast<float>(sum), scale * tile.scales[at], total);
            }
            sums[row * kPanelOutputs + output] = total;
        }
    }
}

void multiply(const Panels& panels, const Tile& tile, float* sums) {
    for (int p = 0; p < panels.count; ++p) multiply_one(panels.only(p), tile, sums + p * tile.rows * kPanelOutputs);
}

void multiply_alone(const Rows& outputs, const Tile& tile, float* sums) {
    for (int output = 0; output < kPanelOutputs; ++output) {
        const uint8_t* row = outputs.codes + output * outputs.row_bytes;
        float total = 0;
        for (int64_t b = 0; b < outputs.blocks; ++b) {
            const int64_t place = b * kPanelOutputs + output;
            int32_t sum = tile.offsets[b] * (outputs.zero_points ? outputs.zero_points[place] : 1);
            for (int k = 0; k < outputs.block; ++k) {
                const int64_t at = b * outputs.block + k;
                const int code = outputs.bits == 8 ? row[at] : at % 2 ? row[at / 2] >> 4 : row[at / 2] & 15;
                sum += code * tile.codes[b * outputs.block + place_of(outputs.bits, k)];
            }
            float scale;
            if (outputs.half_scales) scale = half(outputs.scales + place * 2);
            else std::memcpy(&scale, outputs.scales + place * sizeof scale, sizeof scale);
            total = std::fma(static_cast<float>(sum), scale * tile.scales[b], total);
        }
        sums[output] = total;
    }
}

bool anywhere() { return true; }

}  // namespace

extern const Level kScalar = {"scalar", anywhere, false, 4, quantize_row, multiply_alone, arrange_panel, multiply,
                             attend_tile, join_states, kWidenRows, widen_product};

}  // namespace llama_kernels
