// The search for a block's scale, the same source for every level: blocks side by side, one in each lane.
//
// Everything has internal linkage, as in quantize.h. Lanes never meet, so it does not matter how many there are.
#pragma once

#include <cstring>

#include "rounding.h"

namespace llama_kernels {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
using Floats = float __attribute__((vector_size(4 * kLanes)));
using Ints = int32_t __attribute__((vector_size(4 * kLanes)));
using Shorts = uint16_t __attribute__((vector_size(2 * kLanes)));

// Adding it rounds to nearest, ties to even, and leaves the whole number in the low bits.
constexpr float kWhole = 12582912.f;  // 1.5 * 2^23
constexpr int32_t kWholeBits = 0x4b400000;
constexpr int32_t kMagnitude = 0x7fffffff, kInfinite = 0x7f800000;

// What is tried: how far beyond the last code the largest value would stand, or by how much the range shrinks.
constexpr int kTries = 5;
constexpr double kStretches[kTries] = {-1.0, -0.5, 0.0, 0.6, 1.2};
constexpr double kShrinks[kTries] = {1.0, 0.95, 0.9, 0.85, 0.8};

template <class To, class From>
inline To bits_of(const From& from) {
    static_assert(sizeof(To) == sizeof(From), "as many bits");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

template <class To>
inline To read(const void* from) {
    To to;
    std::memcpy(&to, from, sizeof to);
    return to;
}

inline Floats smaller(const Floats& a, const Floats& b) { return a < b ? a : b; }
inline Floats larger(const Floats& a, const Floats& b) { return a > b ? a : b; }
inline Ints clamped(const Ints& x, const Ints& low, const Ints& high) {
    const Ints above = x > low ? x : low;
    return above < high ? above : high;
}

// 1 / x, and 0 where that is infinite.
inline Floats inverse_of(const Floats& x) {
    const Floats inverse = 1.f / x;
    return (bits_of<Ints>(inverse) & kMagnitude) < kInfinite ? inverse : Floats{};
}

// Rounded to float16's 11 significant bits.
inline Floats short_of(const Floats& x) {
    using Unsigned = uint32_t __attribute__((vector_size(sizeof x)));
    return bits_of<Floats>((bits_of<Unsigned>(x) + (1u << 12)) & ~((1u << 13) - 1));
}

template <Stored stored>
inline Ints widened(const char* from) {
    if (stored == Stored::kFloat32) return read<Ints>(from);
    const Ints narrow = __builtin_convertvector(read<Shorts>(from), Ints);
    if (stored == Stored::kBfloat16) return narrow << 16;
    const Ints magnitude = (narrow & 0x7fff) << 13, normal = magnitude + (112 << 23);
    constexpr int32_t kOffset = 113 << 23;
    const Ints denormal = bits_of<Ints>(bits_of<Floats>(magnitude + kOffset) - bits_of<float>(kOffset));
    const Ints finite = magnitude < 1 << 23 ? denormal : normal;
    return (magnitude < 31 << 23 ? finite : Ints{} + kInfinite) | (narrow & 0x8000) << 16;
}

// Widens a block whose first `count` values are stored, zeros behind them; keeps the largest magnitudes' bits.
template <Stored stored>
inline void widen_block(const char* from, int64_t count, int block, float* to, Ints& largest) {
    constexpr int kBytes = stored == Stored::kFloat32 ? 4 : 2;
    char some[kLargestBlock * kBytes];
    if (count < block) {
        std::memset(some, 0, sizeof some);
        from = static_cast<const char*>(std::memcpy(some, from, count * kBytes));
    }
    for (int i = 0; i < block; i += kLanes) {
        const Ints wide = widened<stored>(from + i * kBytes), magnitude = wide & kMagnitude;
        largest = magnitude > largest ? magnitude : largest;
        std::memcpy(to + i, &wide, sizeof wide);
    }
}

// Some values of each block, turned: [block][value] to [value][block].
inline void put_beside(const float (&rows)[kLanes][kLargestBlock], int begin, Floats* sides) {
    float(*lanes)[kLanes] = reinterpret_cast<float(*)[kLanes]>(sides + begin);
    for (int i = 0; i < kLanes; ++i)
        for (int lane = 0; lane < kLanes; ++lane) lanes[i][lane] = rows[lane][begin + i];
}

// What codes are made with: [blocks side by side].
struct Grid {
    Floats scale;
    Floats inverse;
    Floats zero;  // a code
};

struct Range {
    Floats low, high;
};

inline Range range_of(const Floats* values, int block) {
    Range range = {values[0], values[0]};
    for (int i = 1; i < block; ++i) {
        range.low = smaller(range.low, values[i]);
        range.high = larger(range.high, values[i]);
    }
    return range;
}

template <bool symmetric>
inline Grid grid_of(const Range& range, int middle, double stretch, double shrink) {
    Grid grid;
    if (symmetric) {
        const Floats largest = -range.low > range.high ? range.low : range.high;
        grid.scale = largest / static_cast<float>(-(middle + stretch)) + 0.f;
        grid.inverse = inverse_of(grid.scale);
        grid.zero = Floats{} + static_cast<float>(middle);
    } else {
        const int last = 2 * middle - 1;
        const Floats low = smaller(range.low, Floats{}), high = larger(range.high, Floats{});
        grid.scale = (high - low) * static_cast<float>(shrink / last);
        grid.inverse = inverse_of(grid.scale);
        const Floats zero = low * static_cast<float>(-shrink) * grid.inverse + kWhole;
        const Ints first = Ints{} + kWholeBits;
        grid.zero = bits_of<Floats>(clamped(bits_of<Ints>(zero), first, first + last)) - kWhole;
    }
    return grid;
}

// Of the grids, each made the best for its own codes by least squares, the one with the least error.
inline Grid best_of(const Grid (&grids)[kTries], const Floats* values, int block, int middle) {
    Floats cross[kTries] = {}, square[kTries] = {};
    Ints first[kTries], last[kTries];
    for (int t = 0; t < kTries; ++t) {
        const Ints zero = bits_of<Ints>(grids[t].zero + kWhole) - kWholeBits;
        first[t] = kWholeBits - zero;
        last[t] = first[t] + (2 * middle - 1);
    }
    for (int i = 0; i < block; ++i) {
#pragma GCC unroll 5
        for (int t = 0; t < kTries; ++t) {
            const Floats whole = values[i] * grids[t].inverse + kWhole;
            const Floats code = bits_of<Floats>(clamped(bits_of<Ints>(whole), first[t], last[t])) - kWhole;
            cross[t] += values[i] * code;
            square[t] += code * code;
        }
    }
    Grid best = grids[0];
    Floats most = {};
    for (int t = 0; t < kTries; ++t) {
        const Floats fit = cross[t] * inverse_of(square[t]), explained = cross[t] * fit;
        const Ints better = t == 0 ? Ints{} - 1 : explained > most;
        most = better ? explained : most;
        best.scale = better ? fit : best.scale;
        best.inverse = better ? grids[t].inverse : best.inverse;
        best.zero = better ? grids[t].zero : best.zero;
    }
    return best;
}

// The codes of a block, packed.
inline void write_codes(const float* values, int block, int bits, float inverse, int zero, uint8_t* to) {
    const Ints none = {}, last = none + ((1 << bits) - 1);
    int32_t codes[kLargestBlock];
    uint8_t bytes[kLargestBlock];
    for (int i = 0; i < block; i += kLanes) {
        const Ints whole = bits_of<Ints>(read<Floats>(values + i) * inverse + kWhole) + (zero - kWholeBits);
        const Ints code = clamped(whole, none, last);
        std::memcpy(codes + i, &code, sizeof code);
    }
    for (int i = 0; i < block; ++i) bytes[i] = static_cast<uint8_t>(codes[i]);
    if (bits == 8) std::memcpy(to, bytes, block);
    else for (int i = 0; i < block / 2; ++i) to[i] = static_cast<uint8_t>(bytes[2 * i] | bytes[2 * i + 1] << 4);
}

template <Stored stored, bool symmetric>
bool round_blocks(const Rounding& rounding) {
    const int block = rounding.block, middle = 1 << (rounding.bits - 1);
    const int64_t blocks = rounding.blocks(), total = rounding.rows * blocks;
    const int value_bytes = stored == Stored::kFloat32 ? 4 : 2, code_bytes = block * rounding.bits / 8;
    Ints largest = {};
    for (int64_t begin = 0; begin < total; begin += kLanes) {
        float rows[kLanes][kLargestBlock];  // one block below the other
        Floats sides[kLargestBlock];       // one block beside the other
        const int count = static_cast<int>(total - begin < kLanes ? total - begin : kLanes);
        for (int lane = 0; lane < kLanes; ++lane) {
            const int64_t index = lane < count ? begin + lane : begin;
            const int64_t row = index / blocks, column = index % blocks * block;
            const char* from = static_cast<const char*>(rounding.values) + (row * rounding.columns + column) * value_bytes;
            widen_block<stored>(from, rounding.columns - column, block, rows[lane], largest);
        }
        for (int i = 0; i < block; i += kLanes) put_beside(rows, i, sides);
        const Range range = range_of(sides, block);
        Grid grid = grid_of<symmetric>(range, middle, 0, 1);
        if (rounding.searched) {
            Grid grids[kTries];
            for (int t = 0; t < kTries; ++t) grids[t] = grid_of<symmetric>(range, middle, kStretches[t], kShrinks[t]);
            grid = best_of(grids, sides, block, middle);
        }
        const Floats scales = short_of(grid.scale);
        for (int lane = 0; lane < count; ++lane) {
            const int64_t index = begin + lane;
            const int zero = static_cast<int>(grid.zero[lane]);
            write_codes(rows[lane], block, rounding.bits, grid.inverse[lane], zero, rounding.codes + index * code_bytes);
            rounding.scales[index] = scales[lane];
            if (!symmetric) rounding.zero_points[index] = static_cast<uint8_t>(zero);
        }
    }
    bool finite = true;
    for (int i = 0; i < kLanes; ++i) finite &= largest[i] < kInfinite;
    return finite;
}

template <Stored stored>
bool round_stored(const Rounding& rounding) {
    return rounding.zero_points ? round_blocks<stored, false>(rounding) : round_blocks<stored, true>(rounding);
}

bool round_with_lanes(const Rounding& rounding) {
    switch (rounding.stored) {
        case Stored::kFloat32: return round_stored<Stored::kFloat32>(rounding);
        case Stored::kFloat16: return round_stored<Stored::kFloat16>(rounding);
        default: return round_stored<Stored::kBfloat16>(rounding);
    }
}

}  // namespace
}  // namespace llama_kernels
