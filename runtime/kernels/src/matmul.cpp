#include "matmul.h"

#include <algorithm>
#include <cstdint>

namespace llama_kernels {

namespace {

constexpr int kPanelsTogether = 4;         // that meet a tile while it is in the nearest cache
constexpr int64_t kWorthWaking = 1 << 18;  // multiplications; below, other threads would come too late

// Rounded activations of one product: tile after tile.
class Activations {
public:
    Activations(const Layout& layout, int64_t rows, int most) : layout_(layout), rows_(rows) {
        tiles_ = (rows + most - 1) / most;
        row_codes_ = layout.blocks() * layout.block;
        const int64_t scale_bytes = rows * layout.blocks() * 4;
        thread_local std::vector<uint8_t> kept;  // a thread's next product is about as large
        const size_t bytes = rows * row_codes_ + 2 * scale_bytes + 64;
        if (kept.size() < bytes) kept.resize(bytes);
        codes_ = reinterpret_cast<int8_t*>(kept.data() + (64 - reinterpret_cast<uintptr_t>(kept.data()) % 64) % 64);
        scales_ = reinterpret_cast<float*>(codes_ + rows * row_codes_);
        offsets_ = reinterpret_cast<int32_t*>(scales_ + rows * layout.blocks());
    }

    int64_t tiles() const { return tiles_; }
    int64_t first_row(int64_t tile) const { return tile * rows_ / tiles_; }
    Tile tile(int64_t index) const {
        const int64_t first = first_row(index);
        const int rows = static_cast<int>(first_row(index + 1) - first);
        const int64_t scale = first * layout_.blocks();
        return {codes_ + first * row_codes_, scales_ + scale, offsets_ + scale, rows};
    }
    void quantize(const Level& level, const float* from, int64_t tile_index) const {
        const int64_t first = first_row(tile_index), scale = first * layout_.blocks();
        const int rows = static_cast<int>(first_row(tile_index + 1) - first);
        const int middle = layout_.zero_points ? 1 : 1 << (layout_.bits - 1);
        for (int row = 0; row < rows; ++row) {
            const TileRow to = {codes_ + first * row_codes_, scales_ + scale, offsets_ + scale, row, rows};
            level.quantize(from + (first + row) * layout_.inputs, layout_.inputs, layout_.block, layout_.bits, middle, to);
        }
    }

private:
    const Layout& layout_;
    int64_t rows_, tiles_, row_codes_;
    int8_t* codes_;
    float* scales_;
    int32_t* offsets_;
};

}  // namespace

Matmul::Matmul(const Level& level, std::unique_ptr<const Matrix> matrix, std::vector<float> bias)
    : level_(level), matrix_(std::move(matrix)), bias_(std::move(bias)) {}

void Matmul::run(const float* from, int64_t rows, float* to, const Parallel& parallel) const {
    const Layout& shape = layout();
    if (rows == 0 || shape.outputs == 0) return;
    const bool alone = rows * shape.outputs * shape.inputs < kWorthWaking;
    const int threads = alone ? 1 : std::clamp(parallel.threads, 1, kMaxStreams);

    const Activations activations(shape, rows, level_.tile_rows);
    Streams reading(activations.tiles(), threads);
    run_tasks(parallel, activations.tiles() == 1 ? 1 : threads, [&](size_t stream) {
        reading.work(static_cast<int>(stream), [&](int64_t tile) { activations.quantize(level_, from, tile); });
    });

    // A single row is bound by memory and reads one panel after the other; more rows share what they load.
    const int panels = rows == 1 ? 1 : kMaxPanels;
    const int together = activations.tiles() == 1 ? panels : kPanelsTogether;
    const float factor = matrix_->factor();
    auto multiply = [&](int64_t panel, int64_t end, int64_t tile_index) {
        const uint8_t* records = matrix_->panel(panel);
        const uint8_t* zeros = shape.zero_points ? records + shape.records() * shape.record_bytes() : nullptr;
        const int count = static_cast<int>(std::min<int64_t>(panels, end - panel));
        const Tile tile = activations.tile(tile_index);
        alignas(64) float sums[kMaxPanels * kMaxTileRows * kPanelOutputs];
        level_.multiply({records, zeros, shape.panel_bytes(), count, shape.blocks(), shape.block, shape.bits,
                         shape.half_scales}, tile, sums);
        const float* sum = sums;
        for (int64_t first = panel * kPanelOutputs; first < (panel + count) * kPanelOutputs; first += kPanelOutputs) {
            const int outputs = static_cast<int>(std::min<int64_t>(kPanelOutputs, shape.outputs - first));
            for (int row = 0; row < tile.rows; ++row, sum += kPanelOutputs) {
                float* target = to + (activations.first_row(tile_index) + row) * shape.outputs + first;
                for (int i = 0; i < outputs; ++i) {
                    const float product = sum[i] * factor;
                    target[i] = bias_.empty() ? product : product + bias_[first + i];
                }
            }
        }
    };
    Streams groups((shape.panels() + together - 1) / together, threads);
    run_tasks(parallel, threads, [&](size_t stream) {
        groups.work(static_cast<int>(stream), [&](int64_t group) {
            const int64_t end = std::min(shape.panels(), (group + 1) * together);
            for (int64_t tile = 0; tile < activations.tiles(); ++tile)
                for (int64_t panel = group * together; panel < end; panel += panels) multiply(panel, end, tile);
        });
    });
}

}  // namespace llama_kernels
