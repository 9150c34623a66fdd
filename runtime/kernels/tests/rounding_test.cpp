// Rounding weights: every level against the scalar reference, bit by bit, and that against float64.
#include <algorithm>

#include "rounding.h"
#include "testing.h"

namespace llama_kernels {

namespace {

struct Rounded {
    std::vector<uint8_t> codes, zero_points;
    std::vector<float> scales;
    bool finite;

    bool operator==(const Rounded& other) const {
        return codes == other.codes && zero_points == other.zero_points && same(scales, other.scales) &&
               finite == other.finite;
    }
};

struct Given {
    std::vector<char> bytes;
    Stored stored;
    int64_t rows, columns;

    Rounded round(const RoundingLevel& level, int bits, int block, bool symmetric, bool searched) const {
        Rounding rounding = {bytes.data(), stored, rows, columns, bits, block, searched, nullptr, nullptr, nullptr};
        const size_t count = rows * rounding.blocks(), code_bytes = count * block * bits / 8;
        Rounded made = {std::vector<uint8_t>(code_bytes + 1, 77), {}, std::vector<float>(count + 1, -7.f), false};
        if (!symmetric) made.zero_points.resize(count + 1, 77);
        rounding.codes = made.codes.data(), rounding.scales = made.scales.data();
        if (!symmetric) rounding.zero_points = made.zero_points.data();
        made.finite = level.round(rounding);
        EXPECT(made.codes.back() == 77 && made.scales.back() == -7.f && (symmetric || made.zero_points.back() == 77),
               "%s writes behind its result", level.name);
        return made;
    }
};

// Of a matrix whose values are `values`, as far as the dtype has them; and what they are then.
Given store(std::vector<float>& values, Stored stored, int64_t rows, int64_t columns) {
    const int bytes = stored == Stored::kFloat32 ? 4 : 2;
    Given given = {std::vector<char>(values.size() * bytes), stored, rows, columns};
    for (size_t i = 0; i < values.size(); ++i) {
        uint32_t bits;
        std::memcpy(&bits, &values[i], sizeof bits);
        if (stored == Stored::kFloat32) {
            std::memcpy(given.bytes.data() + 4 * i, &bits, 4);
            continue;
        }
        uint16_t narrow = static_cast<uint16_t>(bits >> 16);
        if (stored == Stored::kFloat16) {  // any of them that is finite, denormals too
            narrow = static_cast<uint16_t>((bits * 2654435761u) >> 16 & 0xbbff);
            const int exponent = narrow >> 10 & 31, fraction = narrow & 1023;
            const double size = exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
            values[i] = static_cast<float>(narrow & 0x8000 ? -size : size);
        } else {
            bits &= 0xffff0000u;
            std::memcpy(&values[i], &bits, sizeof bits);
        }
        std::memcpy(given.bytes.data() + 2 * i, &narrow, 2);
    }
    return given;
}

// What a code stands for must be within `steps` steps of its value, a step being the block's range over its codes.
void check_values(const std::vector<float>& values, const Given& given, const Rounded& made, int bits, int block,
                  double steps) {
    const int64_t blocks = (given.columns + block - 1) / block;
    for (int64_t row = 0; row < given.rows; ++row)
        for (int64_t b = 0; b < blocks; ++b) {
            const int64_t begin = b * block, end = std::min(begin + block, given.columns);
            const float* block_values = values.data() + row * given.columns;
            double low = 0, high = 0;
            for (int64_t k = begin; k < end; ++k)
                low = std::min<double>(low, block_values[k]), high = std::max<double>(high, block_values[k]);
            const bool symmetric = made.zero_points.empty();
            const double range = symmetric ? 2 * std::max(-low, high) : high - low;
            const int64_t index = row * blocks + b;
            const int zero = symmetric ? 1 << (bits - 1) : made.zero_points[index];
            for (int64_t k = begin; k < end; ++k) {
                const int64_t at = index * block + k - begin;
                const int code = bits == 8 ? made.codes[at] : made.codes[at / 2] >> (at % 2 * 4) & 15;
                const double value = (code - zero) * static_cast<double>(made.scales[index]);
                EXPECT(std::fabs(value - block_values[k]) <= steps * range / ((1 << bits) - 1) + 1e-36,
                       "a value of %g became %g, with a scale of %g", block_values[k], value, made.scales[index]);
            }
        }
}

void check(int64_t rows, int64_t columns, std::mt19937& random) {
    size_t count;
    const RoundingLevel* const* levels = rounding_levels(&count);
    const RoundingLevel& reference = *levels[count - 1];
    const Stored stored = static_cast<Stored>(random() % 3);
    std::vector<float> values = normal(rows * columns, random, std::ldexp(1.f, static_cast<int>(random() % 200) - 110));
    if (random() % 4 == 0)
        for (float& value : values) value = random() % 2 ? 0.f : random() % 9 ? -0.f : value;
    Given given = store(values, stored, rows, columns);
    const int bits = random() % 2 ? 4 : 8, block = 16 << random() % 4;
    const bool symmetric = random() % 2, searched = random() % 2;
    const Rounded expected = given.round(reference, bits, block, symmetric, searched);
    EXPECT(expected.finite, "finite values are refused");
    // A symmetric block has one code less on one side; a searched one may cut its largest values off.
    check_values(values, given, expected, bits, block, searched ? (bits == 4 ? 2.5 : 40) : symmetric ? 1.1 : 0.6);
    for (size_t i = 0; i < count; ++i)
        if (levels[i]->runs_here())
            EXPECT(given.round(*levels[i], bits, block, symmetric, searched) == expected,
                   "%s differs from scalar: [%d, %d] in %d bits, blocks of %d", levels[i]->name,
                   static_cast<int>(rows), static_cast<int>(columns), bits, block);

    const size_t at = random() % values.size();
    const uint32_t wide = random() % 2 ? 0x7fc00000u : 0xff800000u;
    const uint16_t narrow = static_cast<uint16_t>(stored == Stored::kBfloat16 ? wide >> 16 : random() % 2 ? 0x7c00 : 0xfe01);
    if (stored == Stored::kFloat32) std::memcpy(given.bytes.data() + 4 * at, &wide, 4);
    else std::memcpy(given.bytes.data() + 2 * at, &narrow, 2);
    for (size_t i = 0; i < count; ++i)
        if (levels[i]->runs_here())
            EXPECT(!given.round(*levels[i], bits, block, symmetric, searched).finite, "%s takes a value that is not finite",
                   levels[i]->name);
}

}  // namespace

void test_rounding(std::mt19937& random, int rounds) {
    for (int round = 0; round < rounds; ++round) check(1 + random() % 40, 1 + random() % 300, random);
    check(3, 4096, random);
}

}  // namespace llama_kernels
