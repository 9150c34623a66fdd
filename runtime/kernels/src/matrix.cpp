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
constexpr size_t kWorthAThread = size_t{4} << 20;

uint8_t zero_point(const Layout& layout, const uint8_t* row, int64_t block) {
    if (layout.bits == 8) return row[block];
    return block % 2 ? row[block / 2] >> 4 : row[block / 2] & 15;
}

constexpr int kNoExponent = -1000;

// The power of two of the largest scale, where all are float16 times some one; otherwise kNoExponent.
int common_exponent(const Layout& layout, const float* scales) {
    int most = kNoExponent, least = 1000;
    for (int64_t i = 0; i < layout.outputs * layout.blocks(); ++i) {
        uint32_t bits;
        std::memcpy(&bits, scales + i, sizeof bits);
        const int exponent = static_cast<int>(bits >> 23 & 255);
        if (!(bits & 0x7fffffffu)) continue;
        if (bits & 0x1fff || exponent == 0 || exponent == 255) return kNoExponent;
        most = std::max(most, exponent - 127), least = std::min(least, exponent - 127);
    }
    return most - least < 30 ? most : kNoExponent;  // as many as float16 has without its denormals
}

// A scale, times the power of two that takes the largest to 2^15: exact.
uint16_t half(float scale, int exponent) {
    uint32_t bits;
    std::memcpy(&bits, &scale, sizeof bits);
    const uint32_t sign = bits >> 16 & 0x8000;
    if (!(bits & 0x7fffffffu)) return static_cast<uint16_t>(sign);
    const int shifted = static_cast<int>(bits >> 23 & 255) - 127 - exponent + 30;
    return static_cast<uint16_t>(sign | static_cast<uint32_t>(shifted) << 10 | (bits >> 13 & 0x3ff));
}

void pack_panel(const Layout& layout, const Source& source, int exponent, int64_t panel, uint8_t* to) {
    const int64_t blocks = layout.blocks(), first = panel * kPanelOutputs;
    const int outputs = static_cast<int>(std::min<int64_t>(kPanelOutputs, layout.outputs - first));
    const size_t code_bytes = layout.code_bytes();
    const int together = layout.half_scales ? 2 : 1;
    for (int64_t block = 0; block < blocks; ++block) {
        uint8_t* record = to + block / together * layout.record_bytes();
        uint8_t* codes = record + 64 + block % together * code_bytes * kPanelOutputs;
        for (int i = 0; i < outputs; ++i) {
            const float scale = source.scales[(first + i) * blocks + block];
            if (layout.half_scales) {
                const uint16_t packed = half(scale, exponent);
                std::memcpy(record + (block % 2 * kPanelOutputs + i) * sizeof packed, &packed, sizeof packed);
            } else {
                std::memcpy(record + i * sizeof scale, &scale, sizeof scale);
            }
            const uint8_t* from = source.codes + ((first + i) * blocks + block) * code_bytes;
            for (size_t byte = 0; byte < code_bytes; byte += 4)
                std::memcpy(codes + byte * kPanelOutputs + i * 4, from + byte, 4);
        }
    }
    if (!layout.zero_points) return;
    uint8_t* zeros = to + layout.records() * layout.record_bytes();
    const size_t row_bytes = static_cast<size_t>(blocks * layout.bits + 7) / 8;
    for (int64_t block = 0; block < blocks; ++block)
        for (int i = 0; i < outputs; ++i)
            zeros[block * kPanelOutputs + i] =
                zero_point(layout, source.zero_points + (first + i) * row_bytes, block);
}

Layout with_scales(Layout layout, const Source& source) {
    layout.half_scales = common_exponent(layout, source.scales) != kNoExponent;
    return layout;
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
    : layout_(with_scales(layout, source)),
      factor_(1),
      pages_(static_cast<size_t>(layout_.panels()) * layout_.panel_bytes()) {
    const int64_t panels = layout.panels();
    const size_t bytes = panels * layout_.panel_bytes();
    const int exponent = common_exponent(layout, source.scales);
    if (layout_.half_scales) factor_ = std::ldexp(1.f, exponent - 15);
    const int64_t workers = std::clamp<int64_t>(static_cast<int64_t>(bytes / kWorthAThread), 1, std::max(threads, 1));
    auto pack = [&](int64_t worker) {
        for (int64_t p = worker * panels / workers; p < (worker + 1) * panels / workers; ++p)
            pack_panel(layout_, source, exponent, p, pages_.data() + p * layout_.panel_bytes());
    };
    std::vector<std::thread> others;
    for (int64_t worker = 1; worker < workers; ++worker) others.emplace_back(pack, worker);
    pack(0);
    for (std::thread& other : others) other.join();
}

}  // namespace llama_kernels
