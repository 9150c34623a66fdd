#include "matrix.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <thread>
#include <vector>

// A memory checker sees what is read behind a block of the heap, but not behind pages of our own.
#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__)
#define LLAMA_KERNELS_PAGES
#include <sys/mman.h>
#endif

namespace llama_kernels {

namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kWorthAThread = size_t{1} << 19;

uint8_t zero_point(const Layout& layout, const uint8_t* row, int64_t block) {
    if (layout.bits == 8) return row[block];
    return block % 2 ? row[block / 2] >> 4 : row[block / 2] & 15;
}

constexpr int kNoExponent = -1000;

uint32_t magnitude(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits & 0x7fffffffu;
}

// The power of two of the largest scale, where all are float16 times some one; otherwise kNoExponent. Without
// branches: there are as many scales as a 16th or a 64th of the codes' bytes.
int common_exponent(const Layout& layout, const float* scales) {
    uint32_t most = 0, least = UINT32_MAX, rest = 0;  // magnitudes; those of 0 are neither
    for (int64_t i = 0; i < layout.outputs * layout.blocks(); ++i) {
        const uint32_t bits = magnitude(scales[i]);
        most = std::max(most, bits), least = std::min(least, bits - 1), rest |= bits & 0x1fff;
    }
    if (most == 0) return kNoExponent;
    const int first = static_cast<int>((least + 1) >> 23), last = static_cast<int>(most >> 23);
    if (rest || first == 0 || last == 255) return kNoExponent;
    return last - first < 30 ? last - 127 : kNoExponent;  // as many as float16 has without its denormals
}

// A scale, times the power of two that takes the largest to 2^15: exact.
uint16_t half(float scale, int exponent) {
    uint32_t bits;
    std::memcpy(&bits, &scale, sizeof bits);
    const uint32_t positive = bits & 0x7fffffffu;
    const uint32_t shifted = (positive >> 13) - (static_cast<uint32_t>(exponent + 127 - 30) << 10);
    return static_cast<uint16_t>((bits >> 16 & 0x8000) | (positive ? shifted : 0));
}

// `scales` [outputs][blocks] to `to` [blocks][16].
template <class Number, class Convert>
void copy_across(const float* scales, int outputs, int64_t blocks, uint8_t* to, Convert&& convert) {
    Number* numbers = reinterpret_cast<Number*>(to);
    for (int i = 0; i < outputs; ++i)
        for (int64_t block = 0; block < blocks; ++block)
            numbers[block * kPanelOutputs + i] = convert(scales[i * blocks + block]);
}

void copy_scales(const Layout& layout, const Source& source, int exponent, int64_t panel, uint8_t* to) {
    const int64_t blocks = layout.blocks(), first = panel * kPanelOutputs;
    const int outputs = static_cast<int>(std::min<int64_t>(kPanelOutputs, layout.outputs - first));
    const float* scales = source.scales + first * blocks;
    if (layout.half_scales) {
        copy_across<uint16_t>(scales, outputs, blocks, to, [=](float scale) { return half(scale, exponent); });
    } else {
        copy_across<float>(scales, outputs, blocks, to, [](float scale) { return scale; });
    }
    if (!layout.zero_points) return;
    uint8_t* zeros = to + layout.records() * 64;
    const size_t row_bytes = static_cast<size_t>(blocks * layout.bits + 7) / 8;
    for (int64_t block = 0; block < blocks; ++block)
        for (int i = 0; i < outputs; ++i)
            zeros[block * kPanelOutputs + i] =
                zero_point(layout, source.zero_points + (first + i) * row_bytes, block);
}

}  // namespace

#if defined(LLAMA_KERNELS_PAGES)

// The mapping begins on a huge page and ends with the data: no huge page is touched for a few last bytes.
Pages::Pages(size_t bytes) : bytes_(bytes + (bytes >= kHugePage ? kHugePage : 0)) {
    mapped_ = bytes_ ? mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) : nullptr;
    if (mapped_ == MAP_FAILED) throw std::bad_alloc();
    data_ = static_cast<uint8_t*>(mapped_);
    if (bytes >= kHugePage) {
        data_ += (kHugePage - reinterpret_cast<uintptr_t>(mapped_) % kHugePage) % kHugePage;
        madvise(data_, bytes, MADV_HUGEPAGE);
    }
}

Pages::~Pages() {
    if (mapped_) munmap(mapped_, bytes_);
}

#else

Pages::Pages(size_t bytes) : mapped_(std::aligned_alloc(64, (bytes + 63) / 64 * 64)), bytes_(bytes) {
    if (!mapped_ && bytes) throw std::bad_alloc();
    data_ = static_cast<uint8_t*>(mapped_);
    if (bytes) std::memset(data_, 0, bytes);
}

Pages::~Pages() { std::free(mapped_); }

#endif

Matrix::Matrix(const Layout& layout, const Source& source, int threads)
    : layout_(layout), codes_(source.codes), factor_(1) {
    const int exponent = common_exponent(layout, source.scales);
    layout_.half_scales = exponent != kNoExponent;
    if (layout_.half_scales) factor_ = std::ldexp(1.f, exponent - 15);
    const int64_t panels = layout_.panels();
    const size_t bytes = panels * layout_.scales_bytes();
    scales_ = std::make_unique<Pages>(bytes);
    const int64_t workers = std::clamp<int64_t>(static_cast<int64_t>(bytes / kWorthAThread), 1, std::max(threads, 1));
    auto copy = [&](int64_t worker) {
        for (int64_t p = worker * panels / workers; p < (worker + 1) * panels / workers; ++p)
            copy_scales(layout_, source, exponent, p, scales_->data() + p * layout_.scales_bytes());
    };
    std::vector<std::thread> others;
    for (int64_t worker = 1; worker < workers; ++worker) others.emplace_back(copy, worker);
    copy(0);
    for (std::thread& other : others) other.join();
}

Rows Matrix::rows(int64_t panel, uint8_t* room) const {
    const int64_t first = panel * kPanelOutputs;
    const size_t row_bytes = layout_.row_bytes();
    const uint8_t *codes = codes_ + first * row_bytes, *scales = scales_->data() + panel * layout_.scales_bytes();
    if (first + kPanelOutputs > layout_.outputs) {
        const size_t there = (layout_.outputs - first) * row_bytes;
        std::memcpy(room, codes, there);
        std::memset(room + there, 0, kPanelOutputs * row_bytes - there);
        codes = room;
    }
    const uint8_t* zeros = layout_.zero_points ? scales + layout_.records() * 64 : nullptr;
    return {codes, row_bytes, scales, zeros, layout_.scales_bytes(), layout_.blocks(), layout_.block, layout_.bits,
            layout_.half_scales};
}

}  // namespace llama_kernels
