#include "widen.h"

#include <algorithm>
#include <vector>

#include "level.h"

namespace llama_kernels {

namespace {

constexpr int64_t kOutputsTogether = 64;   // whose weights stay in a core's cache while all rows meet them
constexpr int64_t kWorthWaking = 1 << 16;  // multiplications; below, other threads would come too late

// The order in which a group's activations meet its weights.
int64_t place(Narrow narrow, int64_t k) {
    const int64_t group = k / kWidenGroup * kWidenGroup, at = k % kWidenGroup;
    return narrow == Narrow::kBfloat16 ? group + at % 2 * (kWidenGroup / 2) + at / 2 : k;
}

// to [groups][rows][32] from [rows][inputs].
void arrange(Narrow narrow, const float* from, int64_t inputs, int rows, float* to) {
    for (int row = 0; row < rows; ++row, from += inputs)
        for (int64_t first = 0; first < inputs; first += kWidenGroup) {
            float* group = to + first * rows + row * kWidenGroup;
            const int64_t count = std::min(kWidenGroup, inputs - first);
            if (count < kWidenGroup) std::fill(group, group + kWidenGroup, 0.f);
            for (int64_t i = 0; i < count; ++i) group[place(narrow, i)] = from[first + i];
        }
}

}  // namespace

void WidenGemm::run(const Level& level, const float* from, int64_t rows, float* to, const Parallel& parallel) const {
    if (rows == 0 || outputs == 0) return;
    const int threads = rows * outputs * inputs < kWorthWaking ? 1 : std::clamp(parallel.threads, 1, kMaxStreams);
    const int64_t width = (inputs + kWidenGroup - 1) / kWidenGroup * kWidenGroup;
    const int64_t tiles = (rows + level.widen_rows - 1) / level.widen_rows;
    thread_local std::vector<float> kept;  // a thread's next product is about as large
    if (kept.size() < static_cast<size_t>(rows * width)) kept.resize(rows * width);
    float* arranged = kept.data();
    auto first_row = [&](int64_t tile) { return tile * rows / tiles; };

    for_each_item(parallel, tiles, tiles == 1 ? 1 : threads, [&](int64_t tile) {
        const int64_t first = first_row(tile);
        arrange(narrow, from + first * inputs, inputs, static_cast<int>(first_row(tile + 1) - first), arranged + first * width);
    });
    const int64_t items = (outputs + kOutputsTogether - 1) / kOutputsTogether;
    for_each_item(parallel, items, threads, [&](int64_t item) {
        const int64_t output = item * kOutputsTogether, count = std::min(kOutputsTogether, outputs - output);
        for (int64_t tile = 0; tile < tiles; ++tile) {
            const int64_t first = first_row(tile), end = first_row(tile + 1);
            float* results = to + first * outputs + output;
            level.widen({narrow, weights + output * inputs, count, inputs, arranged + first * width,
                         static_cast<int>(end - first), results, outputs});
            if (bias)
                for (int64_t row = first; row < end; ++row, results += outputs)
                    for (int64_t i = 0; i < count; ++i) results[i] += bias[output + i];
        }
    });
}

}  // namespace llama_kernels
