// Products: every level of instructions against the scalar reference, bit by bit, and the reference against float64.
#include <cfloat>
#include <limits>
#include <memory>

#include "matmul.h"
#include "matrix.h"
#include "testing.h"

namespace llama_kernels {

namespace {

struct Case {
    int64_t outputs, inputs;
    int bits, block;
    bool zero_points, bias;
    bool half_scales = false;  // float16, times a power of two
};

// A random matrix as MatMulNBits has it.
struct Made {
    Layout layout;
    std::vector<uint8_t> codes, zeros;
    std::vector<float> scales, bias;

    Made(const Case& c, std::mt19937& random, float scale = 0.01f)
        : layout{c.outputs, c.inputs, c.bits, c.block, c.zero_points, false} {
        std::uniform_real_distribution<float> uniform(0.5f, 1.5f);
        codes.resize(c.outputs * layout.blocks() * layout.code_bytes());
        for (uint8_t& code : codes) code = static_cast<uint8_t>(random());
        scales.resize(c.outputs * layout.blocks());
        for (float& s : scales) s = uniform(random) * scale * (random() % 2 ? 1 : -1);
        if (c.half_scales)
            for (float& s : scales) s = random() % 16 ? std::ldexp(std::rint(s / scale * 1024), -19 - int(random() % 20)) : 0;
        if (c.zero_points) zeros.resize(c.outputs * ((layout.blocks() * c.bits + 7) / 8));
        for (uint8_t& zero : zeros) zero = static_cast<uint8_t>(random());
        if (c.bias) bias.resize(c.outputs);
        for (float& b : bias) b = uniform(random);
    }

    double weight(int64_t output, int64_t k) const {
        const int64_t blocks = layout.blocks(), b = k / layout.block, at = k % layout.block;
        const uint8_t* row = codes.data() + (output * blocks + b) * layout.code_bytes();
        int code, zero = 1 << (layout.bits - 1);
        if (layout.bits == 8) code = row[at];
        else code = at % 2 ? row[at / 2] >> 4 : row[at / 2] & 15;
        if (layout.zero_points) {
            const uint8_t* z = zeros.data() + output * ((blocks * layout.bits + 7) / 8);
            if (layout.bits == 8) zero = z[b];
            else zero = b % 2 ? z[b / 2] >> 4 : z[b / 2] & 15;
        }
        return static_cast<double>(code - zero) * scales[output * blocks + b];
    }

    Matmul on(const Level& level, int packing_threads = 1) const {
        const Source source = {codes.data(), scales.data(), layout.zero_points ? zeros.data() : nullptr};
        return Matmul(level, std::make_unique<const Matrix>(layout, source, packing_threads), bias);
    }

    std::vector<float> product(const Level& level, const float* from, int64_t rows, int threads = 1) const {
        std::vector<float> to(rows * layout.outputs + 1, -7.f);
        const Matmul matmul = on(level);
        matmul.run(from, rows, to.data(), Parallel{run_on_threads, &threads, threads});
        EXPECT(to.back() == -7.f, "%s wrote behind its output", level.name);
        to.pop_back();
        return to;
    }
};

// What rounding a row to int8 makes of it, in the words of ONNX Runtime's MatMulNBits, accuracy level 4.
std::vector<double> rounded(const float* row, int64_t inputs, int block) {
    std::vector<double> values(inputs);
    for (int64_t begin = 0; begin < inputs; begin += block) {
        const int64_t end = std::min<int64_t>(begin + block, inputs);
        float largest = 0;
        for (int64_t k = begin; k < end; ++k) largest = std::max(largest, std::fabs(row[k]));
        const float scale = largest / 127.f;
        for (int64_t k = begin; k < end; ++k)
            values[k] = largest == 0 ? 0 : std::nearbyint(row[k] * (127.f / largest)) * static_cast<double>(scale);
    }
    return values;
}

void check_case(const Case& c, int64_t rows, std::mt19937& random) {
    const Made made(c, random);
    // From an odd address: a caller's rows are not aligned to more than a float.
    const std::vector<float> values = normal(rows * c.inputs + 1, random);
    const float* from = values.data() + 1;
    const std::vector<float> reference = made.product(*choose_level("scalar"), from, rows);
    for (const Level* level : levels_here())
        EXPECT(same(made.product(*level, from, rows), reference),
               "%s differs from scalar: N %ld K %ld bits %d block %d zeros %d half %d rows %ld", level->name,
               static_cast<long>(c.outputs), static_cast<long>(c.inputs), c.bits, c.block, c.zero_points,
               c.half_scales, static_cast<long>(rows));
    for (int64_t row = 0; against_float64 && row < rows; ++row) {
        const float* exact = from + row * c.inputs;
        const std::vector<double> nearby = rounded(exact, c.inputs, c.block);
        for (int64_t output = 0; output < c.outputs; ++output) {
            double sum = c.bias ? made.bias[output] : 0, unrounded = sum, magnitude = std::fabs(sum), bound = 0;
            for (int64_t k = 0; k < c.inputs; ++k) {
                const double weight = made.weight(output, k);
                sum += weight * nearby[k];
                unrounded += weight * exact[k];
                magnitude += std::fabs(weight * nearby[k]);
                bound += std::fabs(weight * (nearby[k] - exact[k]));
            }
            const double got = reference[row * c.outputs + output];
            EXPECT(std::fabs(got - sum) <= 2e-6 * magnitude, "scalar is %.9g, float64 %.9g", got, sum);
            EXPECT(std::fabs(got - unrounded) <= bound + 2e-6 * magnitude, "rounding costs more than it may");
        }
    }
}

void every_shape(std::mt19937& random) {
    for (int bits : {4, 8})
        for (int block : {32, 64, 128})
            for (bool zero_points : {false, true})
                for (int64_t rows : {1, 2, 3, 4, 5, 12, 13, 33, 48})
                    for (int64_t inputs : {1, 31, 32, 33, 200, 256})
                        for (int64_t outputs : {1, 16, 37})
                            for (bool half_scales : {false, true})
                                check_case({outputs, inputs, bits, block, zero_points, rows % 2 == 0, half_scales}, rows, random);
}

void fuzz(std::mt19937& random, int rounds) {
    auto below = [&](int n) { return static_cast<int>(random() % n); };
    for (int i = 0; i < rounds; ++i)
        check_case({1 + below(200), 1 + below(600), below(2) ? 4 : 8, 32 << below(3), below(2) == 1, below(2) == 1, below(2) == 1},
                   1 + below(70), random);
}

void threads_and_batches(std::mt19937& random) {
    for (const Level* level : levels_here()) {
        const Made made({300, 520, 4, 32, true, true}, random);
        const int64_t rows = 45, inputs = 520, outputs = 300;
        const std::vector<float> from = normal(rows * inputs, random);
        const std::vector<float> alone = made.product(*level, from.data(), rows, 1);
        for (int threads = 2; threads <= 8; ++threads)
            EXPECT(same(made.product(*level, from.data(), rows, threads), alone), "%s on %d threads", level->name, threads);
        for (int64_t row : {0, 11, 44}) {
            const std::vector<float> one = made.product(*level, from.data() + row * inputs, 1);
            EXPECT(std::memcmp(one.data(), alone.data() + row * outputs, outputs * sizeof(float)) == 0,
                   "%s: row %ld depends on its batch", level->name, static_cast<long>(row));
        }
        // One product, several callers: each has its own activations.
        const Matmul shared = made.on(*level, 4);
        std::vector<std::thread> callers;
        for (int caller = 0; caller < 4; ++caller) callers.emplace_back([&, caller] {
            const int64_t first = 7 * caller, count = rows - first;
            std::vector<float> result(count * outputs);
            int threads = 2;
            for (int repeat = 0; repeat < 10; ++repeat) {
                shared.run(from.data() + first * inputs, count, result.data(), Parallel{run_on_threads, &threads, threads});
                EXPECT(std::memcmp(result.data(), alone.data() + first * outputs, result.size() * sizeof(float)) == 0,
                       "%s with several callers", level->name);
            }
        });
        for (std::thread& caller : callers) caller.join();
    }
}

// Few rows again and again, until panels are kept for them, while others come with one row and with many.
void repeated(std::mt19937& random) {
    for (const Level* level : levels_here()) {
        const Made made({300, 520, 4, 32, true, true}, random);
        const int64_t inputs = 520, outputs = 300;
        const std::vector<float> from = normal(30 * inputs, random);
        const std::vector<float> expected = made.product(*level, from.data(), 30, 1);
        const Matmul shared = made.on(*level);
        std::vector<std::thread> callers;
        for (int64_t count : {3, 2, 1, 30}) callers.emplace_back([&, count] {
            std::vector<float> result(count * outputs);
            int threads = 2;
            for (int repeat = 0; repeat < 20; ++repeat) {
                shared.run(from.data(), count, result.data(), Parallel{run_on_threads, &threads, threads});
                EXPECT(std::memcmp(result.data(), expected.data(), result.size() * sizeof(float)) == 0,
                       "%s: %ld rows for time %d", level->name, static_cast<long>(count), repeat + 1);
            }
        });
        for (std::thread& caller : callers) caller.join();
    }
}

void extremes(std::mt19937& random) {
    const int64_t rows = 3, inputs = 100, outputs = 20;
    const float infinity = std::numeric_limits<float>::infinity();
    for (int bits : {4, 8})
        for (bool zero_points : {false, true}) {
            const Made made({outputs, inputs, bits, 32, zero_points, false}, random);
            for (const Level* level : levels_here()) {
                EXPECT(made.product(*level, nullptr, 0).empty(), "%s: no rows", level->name);
                std::vector<float> from = normal(rows * inputs, random);
                const std::vector<float> before = made.product(*level, from.data(), rows);
                for (float wrong : {std::nanf(""), infinity, -infinity}) {
                    std::vector<float> broken = from;
                    broken[inputs + inputs - 1] = wrong;  // row 1
                    const std::vector<float> after = made.product(*level, broken.data(), rows);
                    for (int64_t i = 0; i < rows * outputs; ++i) {
                        if (i / outputs == 1) EXPECT(std::isnan(after[i]), "%s hides %g", level->name, wrong);
                        else EXPECT(after[i] == before[i], "%s: %g reaches another row", level->name, wrong);
                    }
                }
                // Zeros, denormals (0 here), and the largest and smallest magnitudes that are not.
                for (float scale : {0.f, FLT_TRUE_MIN, FLT_MIN, 2e-36f, 1e30f}) {
                    const std::vector<float> scaled = normal(rows * inputs, random, scale);
                    const std::vector<float> got = made.product(*level, scaled.data(), rows);
                    EXPECT(same(got, made.product(*choose_level("scalar"), scaled.data(), rows)), "%s at %g", level->name, scale);
                    for (float value : got) {
                        EXPECT(std::isfinite(value), "%s at %g", level->name, scale);
                        if (scale < 1e-37f) EXPECT(value == 0, "%s at %g", level->name, scale);
                    }
                }
                for (float scale : {1e-40f, 1e-30f, 1e30f}) {
                    const Made extreme({outputs, inputs, bits, 32, zero_points, false}, random, scale);
                    const std::vector<float> got = extreme.product(*level, from.data(), rows);
                    EXPECT(same(got, extreme.product(*choose_level("scalar"), from.data(), rows)), "%s, scales of %g", level->name, scale);
                }
                // Every activation at its largest against every code at its largest: no sum may saturate.
                Made largest({outputs, 512, bits, 128, zero_points, false}, random);
                for (uint8_t code : {0x00, 0xff, 0x80, 0x7f}) {
                    std::memset(largest.codes.data(), code, largest.codes.size());
                    for (float sign : {1.f, -1.f}) {
                        const std::vector<float> ones(512, sign);
                        EXPECT(same(largest.product(*level, ones.data(), 1),
                                    largest.product(*choose_level("scalar"), ones.data(), 1)), "%s saturates", level->name);
                    }
                }
            }
        }
}

// Scales that fit float16 are stored so, and nothing else changes.
void scales(std::mt19937& random) {
    for (int bits : {4, 8})
        for (int64_t inputs : {96, 128}) {
            Made half({17, inputs, bits, 32, false, false, true}, random);
            Made whole = half;  // another row, one of whose scales does not fit
            whole.layout.outputs = 18;
            whole.codes.resize(whole.codes.size() + whole.layout.blocks() * whole.layout.code_bytes());
            whole.scales.resize(whole.scales.size() + whole.layout.blocks(), 0.1f);
            EXPECT(half.on(*levels_here()[0]).layout().half_scales, "scales that fit are stored as float32");
            EXPECT(!whole.on(*levels_here()[0]).layout().half_scales, "0.1 is stored as float16");
            const std::vector<float> from = normal(inputs, random);
            for (const Level* level : levels_here())
                EXPECT(std::memcmp(half.product(*level, from.data(), 1).data(), whole.product(*level, from.data(), 1).data(), 17 * 4) == 0,
                       "%s: the kind of scales changes a product", level->name);
            for (float wrong : {std::ldexp(1.f, -60), FLT_TRUE_MIN, std::numeric_limits<float>::infinity(), std::nanf("")}) {
                Made far = half;
                far.scales[3] = wrong, far.scales[4] = 1;
                EXPECT(!far.on(*levels_here()[0]).layout().half_scales, "%g is stored as float16", wrong);
            }
        }
}

}  // namespace

void test_matmul_threads(std::mt19937& random) {
    threads_and_batches(random);
    repeated(random);
}

void test_matmul(std::mt19937& random, int rounds) {
    every_shape(random);
    extremes(random);
    scales(random);
    fuzz(random, rounds);
}

void overread(const char* what) {
    std::mt19937 random(1);
    const Level& level = *levels_here()[0];
    if (std::strcmp(what, "matrix") == 0 || std::strcmp(what, "panel") == 0) {  // one block, or one panel, too many
        const Made made({16, 32, 4, 32, false, false}, random);
        const Matrix matrix(made.layout, {made.codes.data(), made.scales.data(), nullptr}, 1);
        const int8_t codes[64] = {};
        const float scales[2] = {1, 1};
        const int32_t offsets[2] = {0, 0};
        const Tile tile = {codes, scales, offsets, 1};
        Rows rows = matrix.rows(0, nullptr);
        const std::unique_ptr<uint8_t, decltype(&std::free)> panel(
            static_cast<uint8_t*>(std::aligned_alloc(64, made.layout.panel_bytes())), std::free);
        level.arrange(rows, panel.get());
        float sums[2 * kPanelOutputs];
        if (*what == 'p') return level.multiply({panel.get(), nullptr, made.layout.panel_bytes(), 2, 1, 32, 4, false}, tile, sums);
        rows.blocks = 2;
        level.multiply_row(rows, tile, sums);
    } else {  // one position too many
        const std::vector<float> query = normal(64, random), cache = normal(3 * 64, random);
        const int64_t begin = 0, end = 4;
        float scores[kChunk], maximum, sum, context[64];
        level.attend({query.data(), &begin, &end, nullptr, 1, cache.data(), cache.data(), false, 64}, 0, 4, scores, {&maximum, &sum, context});
    }
}

}  // namespace llama_kernels
