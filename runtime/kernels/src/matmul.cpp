#include "matmul.h"

#include <algorithm>
#include <cstdint>

namespace llama_kernels {

namespace {

constexpr int kPanelsTogether = 4;         // that meet a tile while it is in the nearest cache
constexpr int64_t kWorthWaking = 1 << 18;  // multiplications; below, other threads would come too late
constexpr int kWorthKeeping = 16;          // products of few rows until panels are kept for them
constexpr int64_t kManyCodes = 1 << 20;    // of activations; more would not stay in a core's own cache
constexpr int64_t kRowsAhead = 16;         // whose places are fetched before they are written

int64_t divided_up(int64_t count, int64_t by) { return (count + by - 1) / by; }

// A thread's room that lasts until its next use; its next product is about as large.
template <int purpose>
uint8_t* room(size_t bytes) {
    thread_local std::vector<uint8_t> kept;
    if (kept.size() < bytes + 64) kept.resize(bytes + 64);
    return kept.data() + (64 - reinterpret_cast<uintptr_t>(kept.data()) % 64) % 64;
}

}  // namespace

// Rounded activations of one product: tile after tile. For `multiply_many` tiles are of kManyTileRows rows, and rows
// behind the last are zeros.
class Matmul::Activations {
public:
    Activations(const Level& level, const Layout& layout, int64_t rows, bool many)
        : level_(level), layout_(layout), given_(rows), many_(many) {
        constexpr int kHalf = kManyTileRows / 2;
        rows_ = many ? divided_up(rows, kHalf) * kHalf : rows;
        tiles_ = divided_up(rows, many ? kManyTileRows : level.tile_rows);
        row_codes_ = layout.blocks() * layout.block;
        const int64_t scales = rows_ * layout.blocks();
        codes_ = reinterpret_cast<int8_t*>(room<0>(rows_ * row_codes_ + 2 * scales * 4));
        scales_ = reinterpret_cast<float*>(codes_ + rows_ * row_codes_);
        offsets_ = reinterpret_cast<int32_t*>(scales_ + scales);
    }

    int64_t rows() const { return rows_; }
    int64_t tiles() const { return tiles_; }
    int64_t first_row(int64_t tile) const {
        return many_ ? std::min(tile * kManyTileRows, rows_) : tile * rows_ / tiles_;
    }
    Tile tile(int64_t index) const { return some(first_row(index), first_row(index + 1)); }
    Tile all() const { return some(0, rows_); }

    void quantize(const float* from, int64_t tile_index) const {
        const int64_t first = first_row(tile_index), scale = first * layout_.blocks();
        const int rows = static_cast<int>(first_row(tile_index + 1) - first);
        const int middle = layout_.zero_points ? 1 : 1 << (layout_.bits - 1);
        for (int row = 0; row < rows; ++row) {
            const TileRow to = {codes_ + first * row_codes_, scales_ + scale, offsets_ + scale, row, rows, many_};
            if (first + row < given_) {
                level_.quantize(from + (first + row) * layout_.inputs, layout_.inputs, layout_.block, layout_.bits,
                                middle, to);
            } else {
                for (int64_t b = 0; b < layout_.blocks(); ++b)
                    to.scales[b * rows + row] = 0, to.offsets[b * rows + row] = 0;
            }
        }
    }

private:
    Tile some(int64_t first, int64_t end) const {
        const int64_t scale = first * layout_.blocks();
        return {codes_ + first * row_codes_, scales_ + scale, offsets_ + scale, static_cast<int>(end - first)};
    }

    const Level& level_;
    const Layout& layout_;
    int64_t given_, rows_, tiles_, row_codes_;
    bool many_;
    int8_t* codes_;
    float* scales_;
    int32_t* offsets_;
};

Matmul::Matmul(const Level& level, std::unique_ptr<const Matrix> matrix, std::vector<float> bias)
    : level_(level), matrix_(std::move(matrix)), bias_(std::move(bias)) {}

void Matmul::run(const float* from, int64_t rows, float* to, const Parallel& parallel) const {
    const Layout& shape = layout();
    if (rows == 0 || shape.outputs == 0) return;
    const bool alone = rows * shape.outputs * shape.inputs < kWorthWaking;
    const int threads = alone ? 1 : std::clamp(parallel.threads, 1, kMaxStreams);
    if (rows == 1) return run_row(from, to, parallel, threads);
    if (level_.many_rows == 0 || rows < level_.many_rows) return run_few(from, rows, to, parallel, threads);
    const int64_t parts = divided_up(rows * shape.blocks() * shape.block, kManyCodes);
    const int64_t part = divided_up(divided_up(rows, parts), kManyTileRows) * kManyTileRows;
    for (int64_t first = 0; first < rows; first += part)
        run_many(from + first * shape.inputs, std::min(part, rows - first), to + first * shape.outputs, parallel,
                 threads);
}

// A single row is bound by memory and reads the codes where they are.
void Matmul::run_row(const float* from, float* to, const Parallel& parallel, int threads) const {
    const Activations activations(level_, layout(), 1, false);
    activations.quantize(from, 0);
    const Tile row = activations.tile(0);
    for_each_item(parallel, layout().panels(), threads, [&](int64_t panel) {
        alignas(64) float sums[kPanelOutputs];
        level_.multiply_row(matrix_->rows(panel, room<2>(layout().rows_bytes())), row, sums);
        finish(sums, 1, panel, 1, to, 1);
    });
}

// Tile after tile meets some panels.
void Matmul::run_few(const float* from, int64_t rows, float* to, const Parallel& parallel, int threads) const {
    const Layout& shape = layout();
    const Activations activations(level_, shape, rows, false);
    const int64_t tiles = activations.tiles();
    for_each_item(parallel, tiles, tiles == 1 ? 1 : threads,
                  [&](int64_t tile) { activations.quantize(from, tile); });
    // Where rows are few, making panels takes as long as they do: who comes with few again and again gets them kept.
    if (tiles == 1 && !panels_ && ++few_rows_ == kWorthKeeping) keep_panels(parallel, threads);
    const int in_cache = tiles == 1 ? kMaxPanels : kPanelsTogether;
    for_each_item(parallel, divided_up(shape.panels(), in_cache), threads, [&](int64_t group) {
        const int64_t begin = group * in_cache;
        const int count = static_cast<int>(std::min<int64_t>(in_cache, shape.panels() - begin));
        const Panels cached = panels(begin, count);
        for (int64_t index = 0; index < tiles; ++index) {
            const Tile tile = activations.tile(index);
            for (int first = 0; first < count; first += kMaxPanels) {
                alignas(64) float sums[kMaxPanels * kMaxTileRows * kPanelOutputs];
                const int together = std::min(kMaxPanels, count - first);
                level_.multiply(cached.some(first, together), tile, sums);
                finish(sums, tile.rows, begin + first, together, to + activations.first_row(index) * shape.outputs,
                       tile.rows);
            }
        }
    });
}

// Some panels meet all rows.
void Matmul::run_many(const float* from, int64_t rows, float* to, const Parallel& parallel, int threads) const {
    const Layout& shape = layout();
    const Activations activations(level_, shape, rows, true);
    for_each_item(parallel, activations.tiles(), threads, [&](int64_t tile) { activations.quantize(from, tile); });
    for_each_item(parallel, divided_up(shape.panels(), kManyPanels), threads, [&](int64_t group) {
        const int64_t panel = group * kManyPanels;
        const int count = static_cast<int>(std::min<int64_t>(kManyPanels, shape.panels() - panel));
        const size_t bytes = kManyPanels * activations.rows() * kPanelOutputs * sizeof(float);
        float* sums = reinterpret_cast<float*>(room<1>(bytes));
        level_.multiply_many(panels(panel, count), activations.all(), sums);
        finish(sums, activations.rows(), panel, count, to, rows);
    });
}

void Matmul::keep_panels(const Parallel& parallel, int threads) const {
    const Layout& shape = layout();
    kept_ = std::make_unique<Pages>(shape.panels() * shape.panel_bytes());
    for_each_item(parallel, shape.panels(), threads, [&](int64_t panel) {
        const Rows outputs = matrix_->rows(panel, room<2>(shape.rows_bytes()));
        level_.arrange(outputs, kept_->data() + panel * shape.panel_bytes());
    });
    panels_.store(kept_->data(), std::memory_order_release);
}

// Those that are kept, or made in this thread's room.
Panels Matmul::panels(int64_t first, int count) const {
    const Layout& shape = layout();
    const size_t bytes = shape.panel_bytes();
    const uint8_t* records = panels_.load(std::memory_order_acquire);
    if (records) {
        records += first * bytes;
    } else {
        uint8_t* made = room<2>(count * bytes + shape.rows_bytes());
        for (int i = 0; i < count; ++i)
            level_.arrange(matrix_->rows(first + i, made + count * bytes), made + i * bytes);
        records = made;
    }
    const uint8_t* zeros = shape.zero_points ? records + shape.records() * shape.record_bytes() : nullptr;
    return {records, zeros, bytes, count, shape.blocks(), shape.block, shape.bits, shape.half_scales};
}

// to[rows][N] from `panel` on = sums[count][sum_rows][16], times the matrix's factor, plus the bias.
void Matmul::finish(const float* sums, int64_t sum_rows, int64_t panel, int count, float* to, int64_t rows) const {
    const int64_t outputs = layout().outputs, first = panel * kPanelOutputs;
    const float factor = matrix_->factor();
    const float* bias = bias_.empty() ? nullptr : bias_.data() + first;
    for (int64_t row = 0; row < rows; ++row) {
        float* target = to + row * outputs + first;
        if (row + kRowsAhead < rows)
            for (int p = 0; p < count; ++p) __builtin_prefetch(target + kRowsAhead * outputs + p * kPanelOutputs, 1);
        for (int p = 0; p < count; ++p, target += kPanelOutputs) {
            const float* sum = sums + (p * sum_rows + row) * kPanelOutputs;
            const int64_t left = outputs - first - p * kPanelOutputs;
            if (left >= kPanelOutputs && !bias) {
                for (int i = 0; i < kPanelOutputs; ++i) target[i] = sum[i] * factor;
                continue;
            }
            for (int i = 0; i < std::min<int64_t>(kPanelOutputs, left); ++i) {
                const float product = sum[i] * factor;
                target[i] = bias ? product + bias[p * kPanelOutputs + i] : product;
            }
        }
    }
}

}  // namespace llama_kernels
