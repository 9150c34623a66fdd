// Grouped-query attention with rotary embedding and a cache written in place, on however many threads.
//
// B rows of T new tokens, H query heads, K key-value heads, D head_dim, C capacity of the cache.
#pragma once

#include <cstdint>

#include "level.h"
#include "parallel.h"

namespace llama_kernels {

// What does not change from run to run.
struct AttentionKind {
    int64_t heads;     // H
    int64_t kv_heads;  // K
    float scale;       // of the scores; 0 is 1 / sqrt(D)
    int64_t window;    // how many positions a token sees, itself included; -1 is all
    bool bytes;        // the cache is int8
};

// What int8 keys or values are multiplied by: one number, or one for each head and channel, [K][D].
struct CacheScale {
    const float* values;
    bool by_channel;
};

struct AttentionStep {
    int64_t rows, tokens, dim;  // B, T, D
    const float* query;         // [B][T] of H * D values, from one token to the next `query_stride` values
    const float* key;           // the same of K * D
    const float* value;
    int64_t query_stride, key_stride;

    const void* past_keys;  // [B][K][past_capacity][D], or null; the same memory as `keys`, or other
    const void* past_values;
    int64_t past_capacity;
    void* keys;  // [B][K][C][D]
    void* values;
    int64_t capacity;  // C
    CacheScale key_scale, value_scale;

    const int32_t* last_slots;  // [B]: index of a row's last slot in use, new tokens included
    int64_t total;              // slots of the longest row; T where nothing is cached
    const float* cos;           // [angle_rows][angles], or null for no rotation
    const float* sin;
    int64_t angle_rows, angles;  // `angles` is at most D / 2; what lies behind is not rotated
    const float* bias;           // [B or 1][H or 1][T][bias_width], added to scores; or null
    bool bias_by_row, bias_by_head;
    int64_t bias_width;

    float* output;  // [B][T][H * D]
};

// Throws std::runtime_error where a length or a shape cannot be.
void attend(const Level& level, const AttentionKind& kind, const AttentionStep& step, const Parallel& parallel);

}  // namespace llama_kernels
