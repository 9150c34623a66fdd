// Attention: every level against the scalar reference, bit by bit, and the reference against float64.
#include <algorithm>
#include <cfloat>
#include <limits>
#include <stdexcept>
#include <string>

#include "attention.h"
#include "testing.h"

namespace llama_kernels {

namespace {

struct Case {
    int64_t heads, kv_heads, dim;
    int64_t rows, tokens, past;
    bool bytes, by_channel, packed, rotated, bias;
    int64_t window;
    bool ragged;  // rows of different lengths

    std::string name() const {
        char text[200];
        std::snprintf(text, sizeof text, "H %d K %d D %d B %d T %d past %d bytes %d channel %d window %d ragged %d",
                      int(heads), int(kv_heads), int(dim), int(rows), int(tokens), int(past), bytes, by_channel,
                      int(window), ragged);
        return text;
    }
};

// A step over random numbers; slots that no row may read hold NaN (or anything, in bytes).
struct Made {
    Case c;
    AttentionKind kind;
    int64_t total, capacity, width;
    std::vector<float> query, key, value, cos, sin, bias, key_scale, value_scale;
    std::vector<int32_t> last_slots;
    std::vector<float> keys, values;  // [B][K][capacity][D], as they are before
    std::vector<int8_t> key_codes, value_codes;

    Made(const Case& made, std::mt19937& random) : c(made) {
        kind = {c.heads, c.kv_heads, 0, c.window, c.bytes};
        total = c.past + c.tokens, capacity = total + (made.tokens % 2 ? 0 : 3);  // slots nobody may read, or none
        width = (c.packed ? c.heads + 2 * c.kv_heads : c.heads) * c.dim;
        query = normal(c.rows * c.tokens * width, random);
        if (!c.packed) {
            key = normal(c.rows * c.tokens * c.kv_heads * c.dim, random);
            value = normal(c.rows * c.tokens * c.kv_heads * c.dim, random);
        }
        if (c.rotated) {
            cos.resize(total * (c.dim / 2)), sin.resize(cos.size());
            for (size_t i = 0; i < cos.size(); ++i) cos[i] = std::cos(0.1f * i), sin[i] = std::sin(0.1f * i);
        }
        const size_t scales = c.by_channel ? c.kv_heads * c.dim : 1;
        std::uniform_real_distribution<float> uniform(0.01f, 0.03f);
        for (size_t i = 0; c.bytes && i < scales; ++i)
            key_scale.push_back(uniform(random)), value_scale.push_back(uniform(random));
        for (int64_t b = 0; b < c.rows; ++b) {
            const int64_t least = c.past ? c.tokens : 1;
            last_slots.push_back(static_cast<int32_t>(c.ragged && b ? least + random() % (total - least + 1) : total) -
                                 1);
        }
        if (c.bias) bias = normal(c.rows * c.tokens * total, random);
        for (size_t i = 0; i < bias.size(); ++i)
            if (random() % 8 == 0 && i % total != 0) bias[i] = -1e9f;
        const size_t slots = c.rows * c.kv_heads * capacity;
        keys = normal(slots * c.dim, random), values = normal(slots * c.dim, random);
        key_codes.resize(keys.size()), value_codes.resize(keys.size());
        for (size_t i = 0; i < keys.size(); ++i)
            key_codes[i] = static_cast<int8_t>(random()), value_codes[i] = static_cast<int8_t>(random());
        for (size_t slot = 0; slot < slots; ++slot)
            if (static_cast<int64_t>(slot) % capacity > last_slots[slot / capacity / c.kv_heads])
                for (int64_t d = 0; d < c.dim; ++d) keys[slot * c.dim + d] = values[slot * c.dim + d] = std::nanf("");
    }

    // Rows [first_row, +rows) and tokens [first, +tokens) of the step, on the given cache.
    AttentionStep step(int64_t first_row, int64_t rows, int64_t first, int64_t tokens, void* to_keys, void* to_values,
                       float* output) const {
        AttentionStep s{};
        s.rows = rows, s.tokens = tokens, s.dim = c.dim;
        const int64_t at = first_row * c.tokens + first, kv = c.kv_heads * c.dim;
        s.query = query.data() + at * width, s.query_stride = width;
        s.key = c.packed ? s.query + c.heads * c.dim : key.data() + at * kv;
        s.value = c.packed ? s.key + kv : value.data() + at * kv;
        s.key_stride = c.packed ? width : kv;
        const size_t offset = first_row * kv * capacity * (c.bytes ? 1 : sizeof(float));
        s.keys = static_cast<char*>(to_keys) + offset, s.values = static_cast<char*>(to_values) + offset;
        s.past_keys = s.keys, s.past_values = s.values, s.past_capacity = s.capacity = capacity;
        s.key_scale = {key_scale.data(), c.by_channel}, s.value_scale = {value_scale.data(), c.by_channel};
        s.last_slots = last_slots.data() + first_row, s.total = total;
        if (c.rotated) s.cos = cos.data(), s.sin = sin.data(), s.angle_rows = total, s.angles = c.dim / 2;
        if (c.bias) s.bias = bias.data() + at * total, s.bias_by_row = true, s.bias_width = total;
        s.output = output;
        return s;
    }

    struct Result {
        std::vector<float> output, keys, values;
        std::vector<int8_t> key_codes, value_codes;
    };

    Result run(const Level& level, int threads = 1) const {
        Result r{std::vector<float>(c.rows * c.tokens * c.heads * c.dim + 1, -7.f), keys, values, key_codes,
                 value_codes};
        void* to_keys = c.bytes ? static_cast<void*>(r.key_codes.data()) : r.keys.data();
        void* to_values = c.bytes ? static_cast<void*>(r.value_codes.data()) : r.values.data();
        attend(level, kind, step(0, c.rows, 0, c.tokens, to_keys, to_values, r.output.data()),
               Parallel{run_on_threads, &threads, threads});
        EXPECT(r.output.back() == -7.f, "%s wrote behind its output", level.name);
        r.output.pop_back();
        return r;
    }

    int64_t past(int64_t b) const { return total == c.tokens ? 0 : last_slots[b] + 1 - c.tokens; }
    bool counts(int64_t b, int64_t t) const { return past(b) + t <= last_slots[b]; }  // no padding on the right

    // One head of one token in float64, on the cache as the run left it.
    std::vector<double> exact(const Result& r, int64_t b, int64_t t, int64_t h) const {
        const int64_t k = h / (c.heads / c.kv_heads), D = c.dim, position = past(b) + t;
        std::vector<double> q(D);
        const float* from = query.data() + (b * c.tokens + t) * width + h * D;
        for (int64_t d = 0; d < D; ++d) q[d] = from[d];
        for (int64_t i = 0; c.rotated && i < D / 2; ++i) {
            const double x = from[i], y = from[i + D / 2], co = cos[position * (D / 2) + i],
                         si = sin[position * (D / 2) + i];
            q[i] = x * co - y * si, q[i + D / 2] = x * si + y * co;
        }
        auto at = [&](const std::vector<float>& plain, const std::vector<int8_t>& codes,
                      const std::vector<float>& scale, int64_t slot, int64_t d) {
            const int64_t i = ((b * c.kv_heads + k) * capacity + slot) * D + d;
            return c.bytes ? double(codes[i]) * scale[c.by_channel ? k * D + d : 0] : double(plain[i]);
        };
        const int64_t begin = c.window < 0 ? 0 : std::max<int64_t>(0, position + 1 - c.window);
        std::vector<double> weights, out(D);
        double most = -DBL_MAX, sum = 0;
        for (int64_t slot = begin; slot <= position; ++slot) {
            double score = 0;
            for (int64_t d = 0; d < D; ++d) score += q[d] * at(r.keys, r.key_codes, key_scale, slot, d);
            score /= std::sqrt(double(D));
            if (c.bias) score += bias[(b * c.tokens + t) * total + slot];
            weights.push_back(score), most = std::max(most, score);
        }
        for (double& weight : weights) weight = std::exp(weight - most), sum += weight;
        for (int64_t d = 0; d < D; ++d)
            for (int64_t slot = begin; slot <= position; ++slot)
                out[d] += weights[slot - begin] / sum * at(r.values, r.value_codes, value_scale, slot, d);
        return out;
    }
};

bool same_bytes(const Made::Result& a, const Made::Result& b, const Case& c) {
    auto equal = [](const auto& x, const auto& y) {
        return std::memcmp(x.data(), y.data(), x.size() * sizeof x[0]) == 0;
    };
    return c.bytes ? equal(a.key_codes, b.key_codes) && equal(a.value_codes, b.value_codes)
                   : equal(a.keys, b.keys) && equal(a.values, b.values);
}

void check_case(const Case& c, std::mt19937& random) {
    const Made made(c, random);
    const Made::Result reference = made.run(*choose_level("scalar"));
    for (const Level* level : levels_here()) {
        const Made::Result got = made.run(*level, 2);
        EXPECT(same(got.output, reference.output), "%s differs from scalar: %s", level->name, c.name().c_str());
        EXPECT(same_bytes(got, reference, c), "%s leaves another cache: %s", level->name, c.name().c_str());
    }
    for (int64_t b = 0; against_float64 && b < c.rows; ++b)
        for (int64_t t = 0; t < c.tokens; ++t)
            for (int64_t h = 0; h < c.heads; ++h) {
                if (!made.counts(b, t)) continue;
                const std::vector<double> wanted = made.exact(reference, b, t, h);
                const float* got = reference.output.data() + ((b * c.tokens + t) * c.heads + h) * c.dim;
                for (int64_t d = 0; d < c.dim; ++d)
                    EXPECT(std::fabs(got[d] - wanted[d]) <= 1e-5, "scalar is %.9g, float64 %.9g: %s", got[d], wanted[d],
                           c.name().c_str());
            }
}

void every_shape(std::mt19937& random) {
    const int64_t kHeads[][2] = {{1, 1}, {8, 1}, {6, 2}, {5, 5}, {7, 1}};
    for (bool bytes : {false, true})
        for (int64_t dim : {8, 15, 16, 17, 64, 80, 128, 256})
            for (const auto& heads : kHeads) {
                const bool rotated = dim % 2 == 0, packed = heads[0] % 2;
                check_case({heads[0], heads[1], dim, 1, 1, 200, bytes, packed, packed, rotated, packed, -1, false},
                           random);
                check_case({heads[0], heads[1], dim, 1, 9, 126, bytes, !packed, packed, rotated, !packed, 40, false},
                           random);
                check_case({heads[0], heads[1], dim, 2, 21, 0, bytes, packed, !packed, rotated, true, -1, true},
                           random);
                check_case({heads[0], heads[1], dim, 3, 1, 130, bytes, true, true, false, false, 128, true}, random);
            }
}

void fuzz(std::mt19937& random, int rounds) {
    auto below = [&](int n) { return static_cast<int>(random() % n); };
    for (int i = 0; i < rounds; ++i) {
        const int kv_heads = 1 + below(3), rows = 1 + below(3), past = below(2) * below(400);
        const int tokens = rows > 1 && past ? 1 : 1 + below(40), dim = 1 + below(140);
        check_case(
            {kv_heads * (1 + below(9)), kv_heads, dim, rows, tokens, past, below(2) == 1, below(2) == 1, below(2) == 1,
             dim % 2 == 0 && below(2), below(2) == 1, below(3) ? -1 : 1 + below(200), below(2) == 1},
            random);
    }
}

// Nothing but the text itself decides a row's numbers: not threads, other rows, or how it was cut.
void threads_and_batches(std::mt19937& random) {
    for (bool bytes : {false, true})
        for (int64_t tokens : {1, 70}) {
            const Case c = {8, 2, 64, tokens == 1 ? 3 : 1, tokens, 300, bytes, true, true, true, true, -1, true};
            const Made made(c, random);
            for (const Level* level : levels_here()) {
                const Made::Result alone = made.run(*level, 1);
                for (int threads = 2; threads <= 8; ++threads) {
                    const Made::Result got = made.run(*level, threads);
                    EXPECT(same(got.output, alone.output) && same_bytes(got, alone, c), "%s on %d threads", level->name,
                           threads);
                }
                Made::Result again = alone;
                void* keys = bytes ? static_cast<void*>(again.key_codes.data()) : again.keys.data();
                void* values = bytes ? static_cast<void*>(again.value_codes.data()) : again.values.data();
                int threads = 1;
                std::vector<float> output(c.heads * c.dim);
                for (int64_t b = 0; b < c.rows; ++b)
                    for (int64_t t = 0; t < tokens; ++t) {  // token by token, over what the first run left
                        AttentionStep one = made.step(b, 1, t, 1, keys, values, output.data());
                        const int32_t slot = static_cast<int32_t>(made.past(b) + t);
                        one.last_slots = &slot, one.total = slot + 1, one.bias_width = made.total;
                        attend(*level, made.kind, one, Parallel{run_on_threads, &threads, threads});
                        EXPECT(std::memcmp(output.data(), alone.output.data() + (b * tokens + t) * output.size(),
                                           output.size() * 4) == 0,
                               "%s: row %d token %d depends on what stands beside it", level->name, int(b), int(t));
                    }
                EXPECT(same_bytes(again, alone, c), "%s: the cache depends on how the text was cut", level->name);
            }
        }
}

void extremes(std::mt19937& random) {
    const Case c = {4, 2, 64, 1, 5, 140, false, false, true, true, true, -1, false};
    for (const Level* level : levels_here()) {
        Made made(c, random);
        for (float& bias : made.bias) bias = -std::numeric_limits<float>::infinity();
        for (float value : made.run(*level).output) EXPECT(value == 0, "%s: all hidden is not 0", level->name);
        for (float& bias : made.bias) bias = -1e9f;  // all alike: the mean of what is seen
        for (float value : made.run(*level).output) EXPECT(std::fabs(value) < 1, "%s: all at -1e9", level->name);
        for (float scale : {1e-30f, 1e4f, 1e18f}) {  // scores that underflow; that leave one weight of 1
            Made scaled(c, random);
            for (float& value : scaled.query) value *= scale;
            const std::vector<float> got = scaled.run(*level).output;
            EXPECT(same(got, scaled.run(*choose_level("scalar")).output), "%s at %g", level->name, scale);
            for (float value : got) EXPECT(std::isfinite(value), "%s at %g", level->name, scale);
        }
        Made broken(c, random);
        broken.query[2 * broken.width] = std::nanf("");  // token 2, head 0
        const std::vector<float> got = broken.run(*level).output;
        EXPECT(std::isnan(got[2 * c.heads * c.dim]), "%s hides NaN", level->name);
        EXPECT(std::isfinite(got[1 * c.heads * c.dim]) && std::isfinite(got[2 * c.heads * c.dim + c.dim]),
               "%s: NaN reaches another", level->name);
    }
}

void wrong_lengths(std::mt19937& random) {
    const Made made({4, 2, 16, 1, 2, 10, false, false, true, true, true, -1, false}, random);
    auto refused = [&](auto&& change) {
        Made::Result r{std::vector<float>(2 * 4 * 16), made.keys, made.values, {}, {}};
        AttentionStep step = made.step(0, 1, 0, 2, r.keys.data(), r.values.data(), r.output.data());
        int threads = 1;
        int32_t slot = made.last_slots[0];
        step.last_slots = &slot;
        change(step, slot);
        try {
            attend(*levels_here()[0], made.kind, step, Parallel{run_on_threads, &threads, threads});
        } catch (const std::runtime_error&) { return true; }
        return false;
    };
    EXPECT(!refused([](AttentionStep&, int32_t&) {}), "a right step is refused");
    EXPECT(refused([](AttentionStep&, int32_t& slot) { slot = -1; }), "no slots");
    EXPECT(refused([](AttentionStep&, int32_t& slot) { slot = 0; }), "fewer slots than new tokens");
    EXPECT(refused([](AttentionStep&, int32_t& slot) { slot = 99; }), "a slot behind the longest row");
    EXPECT(refused([](AttentionStep& step, int32_t&) { step.capacity = 11; }), "a cache that is too short");
    EXPECT(refused([](AttentionStep& step, int32_t&) { step.angle_rows = 11; }), "a table that is too short");
    EXPECT(refused([](AttentionStep& step, int32_t&) { step.bias_width = 11; }), "a bias that is too short");
}

}  // namespace

void test_attention_threads(std::mt19937& random) { threads_and_batches(random); }

void test_attention(std::mt19937& random, int rounds) {
    every_shape(random);
    extremes(random);
    wrong_lengths(random);
    fuzz(random, rounds);
}

}  // namespace llama_kernels
