#include "matrix.h"

#include <algorithm>
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

void pack_panel(const Layout& layout, const Source& source, int64_t panel, uint8_t* to) {
    const int64_t blocks = layout.blocks(), first = panel * kPanelOutputs;
    const int outputs = static_cast<int>(std::min<int64_t>(kPanelOutputs, layout.outputs - first));
    const size_t code_bytes = layout.code_bytes();
    for (int64_t block = 0; block < blocks; ++block, to += layout.record_bytes()) {
        float scales[kPanelOutputs] = {};
        for (int i = 0; i < outputs; ++i) scales[i] = source.scales[(first + i) * blocks + block];
        std::memcpy(to, scales, sizeof scales);
        uint8_t* codes = to + sizeof scales;
        for (int i = 0; i < outputs; ++i) {
            const uint8_t* from = source.codes + ((first + i) * blocks + block) * code_bytes;
            for (size_t byte = 0; byte < code_bytes; byte += 4)
                std::memcpy(codes + byte * kPanelOutputs + i * 4, from + byte, 4);
        }
    }
    if (!layout.zero_points) return;
    const size_t row_bytes = static_cast<size_t>(blocks * layout.bits + 7) / 8;
    for (int64_t block = 0; block < blocks; ++block)
        for (int i = 0; i < outputs; ++i)
            to[block * kPanelOutputs + i] =
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
    : layout_(layout), pages_(static_cast<size_t>(layout.panels()) * layout.panel_bytes()) {
    const int64_t panels = layout.panels();
    const size_t bytes = panels * layout.panel_bytes();
    const int64_t workers = std::clamp<int64_t>(static_cast<int64_t>(bytes / kWorthAThread), 1, std::max(threads, 1));
    auto pack = [&](int64_t worker) {
        for (int64_t p = worker * panels / workers; p < (worker + 1) * panels / workers; ++p)
            pack_panel(layout, source, p, pages_.data() + p * layout.panel_bytes());
    };
    std::vector<std::thread> others;
    for (int64_t worker = 1; worker < workers; ++worker) others.emplace_back(pack, worker);
    pack(0);
    for (std::thread& other : others) other.join();
}

}  // namespace llama_kernels
