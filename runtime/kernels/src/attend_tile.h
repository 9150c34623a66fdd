// Attention of a tile, the same source for every level (lanes.h).
#pragma once

#include <cfloat>

#include "attend.h"
#include "lanes.h"

namespace llama_kernels {
namespace {

constexpr int kRowsTogether = kSums < 4 ? kSums : 4;  // that share a load of keys or values

// While keys are read, the same positions' values are fetched; while values, the next chunk's keys.
template <class Number>
inline void fetch(const void* from, int64_t at, int64_t count) {
    const Number* numbers = static_cast<const Number*>(from) + at;
    for (int64_t i = 0; i < count; i += 64 / sizeof(Number)) __builtin_prefetch(numbers + i, 0, 2);
}

// Values from `from` on; behind `left` of them, where that is less than a register, zeros.
template <bool whole, class Number>
inline Lanes load_upto(const Number* from, int64_t left) {
    if constexpr (whole) return load(from);
    return left >= kLanes ? load(from) : load_some(from, static_cast<int>(left));
}

// scores[row][position - chunk] of R rows at positions [first, end), R * P of them in registers at a time.
template <int R, bool whole, class Number>
void score(const AttentionTile& tile, int row, int64_t first, int64_t end, int64_t chunk, float* scores) {
    constexpr int P = kSums / R;
    const int64_t D = tile.dim, width = padded(D);
    const float* queries = tile.queries + row * width;
    scores += row * kChunk - chunk;
    for (int64_t position = first; position < end; position += P) {
        const Number* keys[P];
        for (int p = 0; p < P; ++p) {  // none behind the last: the rest may hold anything
            const int64_t at = position + p < end ? position + p : end - 1;
            keys[p] = static_cast<const Number*>(tile.keys) + at * D;
        }
        if (row == 0) fetch<Number>(tile.values, position * D, P * D);
        Lanes dots[R * P];
#pragma GCC unroll 16
        for (int i = 0; i < R * P; ++i) dots[i] = broadcast(0);
        for (int64_t d = 0; d < D; d += kLanes) {
            Lanes key[P];
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) key[p] = load_upto<whole>(keys[p] + d, D - d);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const Lanes query = load(queries + r * width + d);
#pragma GCC unroll 16
                for (int p = 0; p < P; ++p) dots[r * P + p] = multiply_add(key[p], query, dots[r * P + p]);
            }
        }
        float made[R * P];
        sums(dots, made);
        if (position + P <= end) {
            for (int r = 0; r < R; ++r) std::memcpy(scores + r * kChunk + position, made + r * P, P * sizeof(float));
        } else {
            for (int r = 0; r < R; ++r)
                for (int p = 0; position + p < end; ++p) scores[r * kChunk + position + p] = made[r * P + p];
        }
    }
}

// Turns a row's scores [kChunk] into weights; returns their sum, and the maximum in `maximum`.
inline float weigh(float* scores, const float* bias, int64_t begin, int64_t end, float* maximum) {
    const int64_t used = (end + kLanes - 1) / kLanes * kLanes;
    for (int64_t i = 0; i < begin; ++i) scores[i] = -INFINITY;
    for (int64_t i = end; i < used; ++i) scores[i] = -INFINITY;
    if (bias)
        for (int64_t i = begin; i < end; ++i) scores[i] += bias[i];
    Lanes most = broadcast(-FLT_MAX);
    for (int64_t i = 0; i < used; i += kLanes) most = larger(load(scores + i), most);
    *maximum = largest(most);
    Lanes total = broadcast(0);
    const Lanes shift = broadcast(*maximum);
    for (int64_t i = 0; i < used; i += kLanes) {
        const Lanes weight = exponential(subtract(load(scores + i), shift));
        store(weight, scores + i);
        total = add(total, weight);
    }
    for (int64_t i = used; i < kChunk; ++i) scores[i] = 0;
    return sum(total);
}

// context[R][N registers from d] = the sum over positions [first, end) of weight * value.
template <int R, int N, bool whole, class Number>
void blend(const AttentionTile& tile, int row, int64_t d, int64_t first, int64_t end, const float* weights,
           float* context) {
    const int64_t D = tile.dim, width = padded(D);
    const Number* values = static_cast<const Number*>(tile.values) + d;
    Lanes totals[R * N];
#pragma GCC unroll 16
    for (int i = 0; i < R * N; ++i) totals[i] = broadcast(0);
    for (int64_t position = first; position < end; ++position) {
        const Number* from = values + position * D;
        Lanes value[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) value[n] = load_upto<whole>(from + n * kLanes, D - d - n * kLanes);
        if (row == 0) fetch<Number>(tile.keys, (position + kChunk) * D + d, N * kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const Lanes weight = broadcast(weights[r * kChunk + position]);
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) totals[r * N + n] = multiply_add(value[n], weight, totals[r * N + n]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) store(totals[r * N + n], context + r * width + d + n * kLanes);
}

template <int R, class Number>
void blend_rows(const AttentionTile& tile, int row, int64_t first, int64_t end, const float* weights, float* context) {
    constexpr int N = kSums / R < 4 ? kSums / R : 4;
    int64_t d = 0;
    for (; d + N * kLanes <= tile.dim; d += N * kLanes)
        blend<R, N, true, Number>(tile, row, d, first, end, weights, context);
    for (; d < tile.dim; d += kLanes) blend<R, 1, false, Number>(tile, row, d, first, end, weights, context);
}

// R rows from `row` on at positions [first, end) of a chunk.
template <int R, class Number>
void attend_rows(const AttentionTile& tile, int row, int64_t first, int64_t end, float* scores,
                 const AttentionState& to) {
    const int64_t chunk = first / kChunk * kChunk;
    auto inside = [&](int64_t position) { return position < first ? first : position > end ? end : position; };
    int64_t low = end, high = first;
    for (int r = row; r < row + R; ++r) {
        const int64_t begin = inside(tile.begins[r]), stop = inside(tile.ends[r]);
        low = begin < low ? begin : low;
        high = stop > high ? stop : high;
    }
    if (tile.dim % kLanes) score<R, false, Number>(tile, row, low, high, chunk, scores);
    else score<R, true, Number>(tile, row, low, high, chunk, scores);
    for (int r = row; r < row + R; ++r) {
        const float* bias = tile.biases && tile.biases[r] ? tile.biases[r] + chunk : nullptr;
        const int64_t begin = inside(tile.begins[r]) - chunk, stop = inside(tile.ends[r]) - chunk;
        to.sums[r] = weigh(scores + r * kChunk, bias, begin, stop > begin ? stop : begin, to.maxima + r);
    }
    blend_rows<R, Number>(tile, row, low, high, scores + row * kChunk - chunk, to.context + row * padded(tile.dim));
}

template <class Number>
void attend_all(const AttentionTile& tile, int64_t first, int64_t end, float* scores, const AttentionState& to) {
    int row = 0;
    for (; row + kRowsTogether <= tile.rows; row += kRowsTogether)
        attend_rows<kRowsTogether, Number>(tile, row, first, end, scores, to);
    if constexpr (kRowsTogether > 2)
        for (; row + 2 <= tile.rows; row += 2) attend_rows<2, Number>(tile, row, first, end, scores, to);
    for (; row < tile.rows; ++row) attend_rows<1, Number>(tile, row, first, end, scores, to);
}

// The tile at positions [first, end), which lie in one chunk. `scores` is room for [R][kChunk].
void attend_tile(const AttentionTile& tile, int64_t first, int64_t end, float* scores, const AttentionState& to) {
    tile.bytes ? attend_all<int8_t>(tile, first, end, scores, to) : attend_all<float>(tile, first, end, scores, to);
}

// Adds a later chunk's state.
void join_states(const AttentionState& to, const AttentionState& next, int rows, int64_t dim) {
    const int64_t width = padded(dim);
    for (int r = 0; r < rows; ++r) {
        const float most = to.maxima[r] > next.maxima[r] ? to.maxima[r] : next.maxima[r];
        float shifts[kLanes] = {to.maxima[r] - most, next.maxima[r] - most};
        store(exponential(load(shifts)), shifts);
        const Lanes old_part = broadcast(shifts[0]), new_part = broadcast(shifts[1]);
        to.maxima[r] = most;
        to.sums[r] = to.sums[r] * shifts[0] + next.sums[r] * shifts[1];
        for (int64_t d = r * width; d < (r + 1) * width; d += kLanes) {
            const Lanes added = multiply(load(next.context + d), new_part);
            store(multiply_add(load(to.context + d), old_part, added), to.context + d);
        }
    }
}

}  // namespace
}  // namespace llama_kernels
