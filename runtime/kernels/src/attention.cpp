#include "attention.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "attend.h"

namespace llama_kernels {

namespace {

constexpr int64_t kWorthWaking = 1 << 19;  // multiplications; below, other threads would come too late

[[noreturn]] void refuse(const std::string& what) { throw std::runtime_error("GroupQueryAttention: " + what); }

// One run: what its threads share.
class Run {
public:
    Run(const Level& level, const AttentionKind& kind, const AttentionStep& step)
        : level_(level),
          kind_(kind),
          step_(step),
          D_(step.dim),
          width_(padded(step.dim)),
          group_(kind.heads / kind.kv_heads),
          head_rows_(step.tokens * group_),
          scale_(kind.scale == 0 ? 1.f / std::sqrt(static_cast<float>(step.dim)) : kind.scale) {
        tile_rows_ = std::min<int64_t>(head_rows_, kAttentionRows);
        tiles_ = (head_rows_ + tile_rows_ - 1) / tile_rows_;
        queries_ = room(0, step.rows * kind.heads * step.tokens * width_);
    }

    void check() const {
        if (step_.total > step_.capacity)
            refuse("the cache has " + std::to_string(step_.capacity) + " slots, needs " + std::to_string(step_.total));
        if (step_.bias && step_.bias_width < step_.total) refuse("attention_bias has too few positions");
        for (int64_t b = 0; b < step_.rows; ++b) {
            const int64_t length = used(b);
            if (length < 1 || length > step_.total || past(b) < 0 || past(b) > step_.past_capacity)
                refuse("seqlens_k " + std::to_string(length - 1) + " is not of a row with " +
                       std::to_string(step_.tokens) + " new tokens and " + std::to_string(step_.total) + " in all");
            if (step_.cos && past(b) + step_.tokens > step_.angle_rows) refuse("a position beyond the table of angles");
        }
    }

    // What was cached elsewhere, into the new cache.
    void copy_past() const {
        const size_t slot = D_ * number();
        copy_past(step_.past_keys, step_.keys, slot);
        copy_past(step_.past_values, step_.values, slot);
    }

    // Rotates token t of row b: its queries into their place, its key and value into the cache.
    void place(int64_t token) const {
        const int64_t b = token / step_.tokens, t = token % step_.tokens, slot = past(b) + t;
        const float* query = step_.query + token * step_.query_stride;
        for (int64_t h = 0; h < kind_.heads; ++h) {
            float* to = queries_ + ((b * kind_.kv_heads + h / group_) * head_rows_ + t * group_ + h % group_) * width_;
            rotate(query + h * D_, slot, to);
            for (int64_t d = 0; d < D_; ++d) to[d] *= scale_;
            if (kind_.bytes) multiply(to, step_.key_scale, h / group_);
            for (int64_t d = D_; d < width_; ++d) to[d] = 0;
        }
        float rotated[kMaxDim];
        for (int64_t k = 0; k < kind_.kv_heads; ++k) {
            const int64_t at = ((b * kind_.kv_heads + k) * step_.capacity + slot) * D_;
            rotate(step_.key + token * step_.key_stride + k * D_, slot, rotated);
            write(rotated, step_.key_scale, k, step_.keys, at);
            write(step_.value + token * step_.key_stride + k * D_, step_.value_scale, k, step_.values, at);
        }
    }

    int64_t tiles() const { return step_.rows * kind_.kv_heads * tiles_; }
    int64_t chunks() const { return (step_.total + kChunk - 1) / kChunk; }
    int64_t multiplications() const { return step_.rows * kind_.heads * step_.tokens * step_.total * D_ * 2; }

    // A tile over all its positions.
    void whole_tile(int64_t index) const {
        const QueryTile tile(*this, index);
        const int64_t size = state_floats();
        float* kept = room(1, 2 * size + tile_rows_ * kChunk);
        const AttentionState all = state(kept), next = state(kept + size);
        clear(all);
        for (int64_t first = tile.first / kChunk * kChunk; first < tile.end; first += kChunk) {
            level_.attend(tile.facts, std::max(first, tile.first), std::min(first + kChunk, tile.end), kept + 2 * size,
                          next);
            level_.join_states(all, next, tile.facts.rows, D_);
        }
        finish(tile, all);
    }

    // A tile at one chunk, for `join_chunks` later.
    void one_chunk(int64_t index, int64_t chunk, float* states) const {
        const QueryTile tile(*this, index);
        const int64_t first = std::max(chunk * kChunk, tile.first), end = std::min((chunk + 1) * kChunk, tile.end);
        if (first < end)
            level_.attend(tile.facts, first, end, room(1, tile_rows_ * kChunk),
                          state(states + (index * chunks() + chunk) * state_floats()));
    }

    void join_chunks(int64_t index, float* states) const {
        const QueryTile tile(*this, index);
        const AttentionState all = state(room(1, state_floats()));
        clear(all);
        for (int64_t chunk = tile.first / kChunk; chunk * kChunk < tile.end; ++chunk)
            level_.join_states(all, state(states + (index * chunks() + chunk) * state_floats()), tile.facts.rows, D_);
        finish(tile, all);
    }

    int64_t state_floats() const { return tile_rows_ * (width_ + 2); }

    // A thread's room of floats that lasts until its next use; its next run is about as large.
    static float* room(int purpose, int64_t floats) {
        thread_local std::vector<float> kept[3];
        if (static_cast<int64_t>(kept[purpose].size()) < floats) kept[purpose].resize(floats);
        return kept[purpose].data();
    }

    static constexpr int64_t kMaxDim = 1024;

private:
    // Some rows of queries of one key-value head, and what they see.
    struct QueryTile {
        QueryTile(const Run& run, int64_t index) {
            const AttentionStep& step = run.step_;
            const int64_t head = index / run.tiles_;  // of B * K
            row = head / run.kind_.kv_heads, kv_head = head % run.kind_.kv_heads;
            first_row = index % run.tiles_ * run.tile_rows_;
            const int rows = static_cast<int>(std::min(run.tile_rows_, run.head_rows_ - first_row));
            first = INT64_MAX, end = 0;
            for (int r = 0; r < rows; ++r) {
                const int64_t t = (first_row + r) / run.group_, h = kv_head * run.group_ + (first_row + r) % run.group_;
                ends[r] = std::min(run.past(row) + t + 1, run.used(row));
                begins[r] = run.kind_.window < 0 ? 0 : std::max<int64_t>(0, ends[r] - run.kind_.window);
                first = std::min(first, begins[r]), end = std::max(end, ends[r]);
                if (!step.bias) continue;
                const int64_t plane = (step.bias_by_row ? row * (step.bias_by_head ? run.kind_.heads : 1) : 0) +
                                      (step.bias_by_head ? h : 0);
                biases[r] = step.bias + (plane * step.tokens + t) * step.bias_width;
            }
            const int64_t at = head * step.capacity * run.D_ * run.number();
            facts = {run.queries_ + (head * run.head_rows_ + first_row) * run.width_,
                     begins,
                     ends,
                     step.bias ? biases : nullptr,
                     rows,
                     static_cast<const char*>(step.keys) + at,
                     static_cast<const char*>(step.values) + at,
                     run.kind_.bytes,
                     run.D_};
        }
        AttentionTile facts;
        int64_t row, kv_head, first_row, first, end;
        int64_t begins[kAttentionRows], ends[kAttentionRows];
        const float* biases[kAttentionRows];
    };

    int64_t used(int64_t row) const { return static_cast<int64_t>(step_.last_slots[row]) + 1; }
    int64_t past(int64_t row) const { return step_.total == step_.tokens ? 0 : used(row) - step_.tokens; }
    size_t number() const { return kind_.bytes ? 1 : sizeof(float); }

    void copy_past(const void* from, void* to, size_t slot) const {
        if (from == to) return;
        for (int64_t head = 0; head < step_.rows * kind_.kv_heads; ++head) {
            const size_t kept = past(head / kind_.kv_heads) * slot, whole = step_.capacity * slot;
            char* target = static_cast<char*>(to) + head * whole;
            if (kept) std::memcpy(target, static_cast<const char*>(from) + head * step_.past_capacity * slot, kept);
            std::memset(target + kept, 0, whole - kept);
        }
    }

    void rotate(const float* from, int64_t position, float* to) const {
        const int64_t half = step_.cos ? step_.angles : 0;
        const float *cos = step_.cos + position * half, *sin = step_.sin + position * half;
        for (int64_t i = 0; i < half; ++i) {
            const float x = from[i], y = from[i + half];
            to[i] = x * cos[i] - y * sin[i];
            to[i + half] = x * sin[i] + y * cos[i];
        }
        for (int64_t i = 2 * half; i < D_; ++i) to[i] = from[i];
    }

    void multiply(float* values, const CacheScale& scale, int64_t kv_head) const {
        for (int64_t d = 0; d < D_; ++d)
            values[d] *= scale.by_channel ? scale.values[kv_head * D_ + d] : scale.values[0];
    }

    void write(const float* from, const CacheScale& scale, int64_t kv_head, void* cache, int64_t at) const {
        if (!kind_.bytes) {
            std::memcpy(static_cast<float*>(cache) + at, from, D_ * sizeof(float));
            return;
        }
        int8_t* to = static_cast<int8_t*>(cache) + at;
        for (int64_t d = 0; d < D_; ++d) {
            const float by = scale.by_channel ? scale.values[kv_head * D_ + d] : scale.values[0];
            const float code = std::rint(from[d] * (by == 0 ? 1.f : 1.f / by));
            to[d] = static_cast<int8_t>(std::max(-128.f, std::min(127.f, code)));
        }
    }

    AttentionState state(float* at) const { return {at, at + tile_rows_, at + 2 * tile_rows_}; }

    void clear(const AttentionState& state) const {
        std::fill_n(state.maxima, tile_rows_, -FLT_MAX);
        std::fill_n(state.sums, tile_rows_, 0.f);
        std::fill_n(state.context, tile_rows_ * width_, 0.f);
    }

    void finish(const QueryTile& tile, const AttentionState& state) const {
        for (int r = 0; r < tile.facts.rows; ++r) {
            const int64_t t = (tile.first_row + r) / group_, h = tile.kv_head * group_ + (tile.first_row + r) % group_;
            float* to = step_.output + ((tile.row * step_.tokens + t) * kind_.heads + h) * D_;
            const float inverse = state.sums[r] == 0 ? 0 : 1 / state.sums[r];  // where every position is hidden
            for (int64_t d = 0; d < D_; ++d) to[d] = state.context[r * width_ + d] * inverse;
            if (kind_.bytes) multiply(to, step_.value_scale, tile.kv_head);
        }
    }

    const Level& level_;
    const AttentionKind& kind_;
    const AttentionStep& step_;
    const int64_t D_, width_, group_, head_rows_;
    const float scale_;
    int64_t tile_rows_, tiles_;  // rows of a tile, tiles of a head
    float* queries_;             // [B][K][T][H / K][padded D]
};

}  // namespace

void attend(const Level& level, const AttentionKind& kind, const AttentionStep& step, const Parallel& parallel) {
    if (step.rows == 0 || step.tokens == 0) return;
    if (step.dim < 1 || step.dim > Run::kMaxDim) refuse("a head_dim of " + std::to_string(step.dim));
    const Run run(level, kind, step);
    run.check();
    run.copy_past();
    const int64_t tokens = step.rows * step.tokens;
    const bool alone = run.multiplications() < kWorthWaking;
    const int threads = alone ? 1 : std::clamp(parallel.threads, 1, kMaxStreams);
    for_each_item(parallel, tokens, tokens < 16 ? 1 : threads, [&](int64_t token) { run.place(token); });
    // Few rows: a tile's chunks are shared out too.
    const int64_t tiles = run.tiles(), chunks = run.chunks();
    if (tiles > 4 * threads || threads == 1 || chunks == 1) {
        for_each_item(parallel, tiles, threads, [&](int64_t tile) { run.whole_tile(tile); });
    } else {
        float* states = Run::room(2, tiles * chunks * run.state_floats());
        for_each_item(parallel, tiles * chunks, threads,
                      [&](int64_t item) { run.one_chunk(item / chunks, item % chunks, states); });
        for (int64_t tile = 0; tile < tiles; ++tile) run.join_chunks(tile, states);
    }
}

}  // namespace llama_kernels
