// Products with 16-bit weights: every level against the scalar reference, bit by bit, and that against float64.
#include <limits>

#include "testing.h"
#include "widen.h"

namespace llama_kernels {

namespace {

uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

// What a float16 is worth, from its definition.
double float16_value(uint16_t half) {
    const int exponent = half >> 10 & 31, fraction = half & 1023;
    const double sign = half & 0x8000 ? -1 : 1;
    if (exponent == 31) return fraction ? std::numeric_limits<double>::quiet_NaN() : sign * HUGE_VAL;
    return sign * (exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24));
}

double bfloat16_value(uint16_t narrow) {
    const uint32_t bits = static_cast<uint32_t>(narrow) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

struct Made {
    Narrow narrow;
    int64_t outputs, inputs;
    std::vector<uint16_t> weights;  // begin at an odd place
    std::vector<float> bias;

    Made(Narrow narrow, int64_t outputs, int64_t inputs, bool with_bias, std::mt19937& random)
        : narrow(narrow), outputs(outputs), inputs(inputs), weights(outputs * inputs + 1) {
        std::normal_distribution<float> normal;
        for (uint16_t& weight : weights) {
            if (narrow == Narrow::kBfloat16) weight = static_cast<uint16_t>(bits_of(normal(random)) >> 16);
            // Denormals too, nothing infinite.
            else weight = static_cast<uint16_t>(random() % 0x4400 | (random() % 2 ? 0x8000 : 0));
        }
        for (int64_t i = 0; with_bias && i < outputs; ++i) bias.push_back(normal(random));
    }

    double weight(int64_t output, int64_t k) const {
        const uint16_t stored = weights[1 + output * inputs + k];
        return narrow == Narrow::kBfloat16 ? bfloat16_value(stored) : float16_value(stored);
    }

    std::vector<float> product(const Level& level, const float* from, int64_t rows, int threads = 1) const {
        std::vector<float> to(rows * outputs + 1, -7.f);
        const WidenGemm gemm = {narrow, weights.data() + 1, bias.empty() ? nullptr : bias.data(), outputs, inputs};
        gemm.run(level, from, rows, to.data(), {run_on_threads, &threads, threads});
        EXPECT(to.back() == -7.f, "%s writes behind its result", level.name);
        to.pop_back();
        return to;
    }
};

void check(const Made& made, int64_t rows, std::mt19937& random) {
    const std::vector<float> from = normal(rows * made.inputs, random);
    const Level& reference = *choose_level("scalar");
    const std::vector<float> expected = made.product(reference, from.data(), rows);
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t output = 0; output < made.outputs; ++output) {
            double sum = made.bias.empty() ? 0 : made.bias[output], size = std::fabs(sum);
            for (int64_t k = 0; k < made.inputs; ++k) {
                const double product = from[row * made.inputs + k] * made.weight(output, k);
                sum += product, size += std::fabs(product);
            }
            const float found = expected[row * made.outputs + output];
            EXPECT(std::fabs(found - sum) <= 1e-6 * size + 1e-30, "scalar: %g, exactly %g", found, sum);
        }
    for (const Level* level : levels_here()) {
        const int threads = 1 + static_cast<int>(random() % 8);
        EXPECT(same(made.product(*level, from.data(), rows, threads), expected),
               "%s differs from scalar: [%d, %d] times %d rows, %d threads", level->name, static_cast<int>(made.outputs),
               static_cast<int>(made.inputs), static_cast<int>(rows), threads);
        const int64_t row = static_cast<int64_t>(random() % rows);
        const std::vector<float> alone = made.product(*level, from.data() + row * made.inputs, 1);
        EXPECT(std::memcmp(alone.data(), expected.data() + row * made.outputs, alone.size() * sizeof(float)) == 0,
               "%s: a row depends on the others", level->name);
    }
}

// Every float16 there is, one by one: infinities and NaN with the rest.
void every_float16() {
    for (const Level* level : levels_here()) {
        std::vector<uint16_t> weights(1 << 16);
        for (int i = 0; i < 1 << 16; ++i) weights[i] = static_cast<uint16_t>(i);
        const WidenGemm gemm = {Narrow::kFloat16, weights.data(), nullptr, 1 << 16, 1};
        std::vector<float> to(1 << 16);
        const float one = 1;
        int threads = 2;
        gemm.run(*level, &one, 1, to.data(), {run_on_threads, &threads, threads});
        for (int i = 0; i < 1 << 16; ++i) {
            const double value = float16_value(static_cast<uint16_t>(i));
            EXPECT(std::isnan(value) ? std::isnan(to[i]) : to[i] == value, "%s: float16 %04x is %g", level->name, i, to[i]);
        }
    }
}

}  // namespace

void test_widen(std::mt19937& random, int rounds) {
    every_float16();
    auto upto = [&](int most) { return static_cast<int64_t>(1 + random() % most); };
    for (int round = 0; round < rounds; ++round) {
        const Narrow narrow = random() % 2 ? Narrow::kBfloat16 : Narrow::kFloat16;
        const Made made(narrow, upto(150), upto(300), random() % 2, random);
        check(made, upto(random() % 4 ? 9 : 40), random);
    }
    check(Made(Narrow::kBfloat16, 192, 2048, false, random), 3, random);
    std::vector<float> nothing;
    EXPECT(Made(Narrow::kBfloat16, 5, 7, true, random).product(*levels_here()[0], nullptr, 0).empty(), "no rows");
}

}  // namespace llama_kernels
