// AMX: 16 rows times 16 outputs at a time. Few rows, attention and all else are those of AVX-512.
//
// While tiles are at work, a core has one unit for 512-bit products of floats instead of two, so what is done
// to each sum of a block (converted, scaled, added: three operations) bounds small blocks, and reading and
// writing tiles the large ones.
#include <cpuid.h>
#include <immintrin.h>

#include "level_amx.h"
#include "matrix.h"

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace llama_kernels {
namespace {

constexpr int kChunkValues = 512;  // of K: activations and weights of a chunk stay in the nearest cache
constexpr int kSmallestBlock = 32;

// Some blocks of one panel as int8, times 4 rows of a tile of weights for each 16.
struct alignas(64) Chunk {
    int8_t codes[kChunkValues / 4 * kPanelOutputs * 4];  // [blocks][block / 4][16][4]
    float scales[kChunkValues / kSmallestBlock * kPanelOutputs];
    const uint8_t* zero_points;  // [blocks][16], or null: they have been subtracted
};

// Codes minus their zero. Where that does not fit (8 bits with zero points) they stay as they are, unsigned.
void unpack(const Panels& panel, int64_t first, int blocks, Chunk* to) {
    const size_t code_bytes = static_cast<size_t>(kPanelOutputs) * panel.block * panel.bits / 8;
    const int together = panel.half_scales ? 2 : 1;
    const __m512i low = _mm512_set1_epi8(15);
    const bool as_they_are = panel.bits == 8 && panel.zero_points;
    to->zero_points = as_they_are ? panel.zero_points + first * kPanelOutputs : nullptr;
    __m512i zero = _mm512_set1_epi8(static_cast<char>(as_they_are ? 0 : 1 << (panel.bits - 1)));
    int8_t* codes = to->codes;
    for (int64_t b = first; b < first + blocks; ++b) {
        const uint8_t* record = panel.records + b / together * (64 + together * code_bytes);
        const __m512 scales = panel.half_scales
                                  ? _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(record) + b % 2))
                                  : _mm512_load_ps(record);
        _mm512_store_ps(to->scales + (b - first) * kPanelOutputs, scales);
        if (panel.bits == 4 && panel.zero_points) {  // each of 16 bytes, four times
            const void* sixteen = panel.zero_points + b * kPanelOutputs;
            const __m512i lanes = _mm512_cvtepu8_epi32(_mm_load_si128(static_cast<const __m128i*>(sixteen)));
            zero = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(0x01010101));
        }
        const uint8_t* line = record + 64 + b % together * code_bytes;
        for (const uint8_t* end = line + code_bytes; line < end; line += 64) {
            const __m512i bytes = _mm512_load_si512(line);
            const __m512i first_codes = panel.bits == 4 ? _mm512_and_si512(bytes, low) : bytes;
            _mm512_store_si512(codes, _mm512_sub_epi8(first_codes, zero));
            codes += 64;
            if (panel.bits == 8) continue;
            const __m512i second_codes = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low);
            _mm512_store_si512(codes, _mm512_sub_epi8(second_codes, zero));
            codes += 64;
        }
    }
}

// Tiles 0 and 1 are the sums of a block and of the next one, 2 and 3 activations [rows][64 or 32], 4 and 5 weights
// [16 or 8][16][4]; blocks of 128 are two of each.
struct alignas(64) TileShapes {
    uint8_t palette = 1;
    uint8_t rest[15] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

void shape_tiles(int rows, int block) {
    const int values = block < 64 ? block : 64;
    TileShapes shapes;
    auto shape = [&](int tile, int count, int bytes) {
        shapes.rows[tile] = static_cast<uint8_t>(count);
        shapes.row_bytes[tile] = static_cast<uint16_t>(bytes);
    };
    for (int half = 0; half < 2; ++half) {
        shape(half, rows, 64);
        shape(2 + half, rows, values);
        shape(4 + half, values / 4, 64);
    }
    asm volatile("ldtilecfg %0" : : "m"(shapes));
}

// A block of activations [rows][block] times one of weights [block / 4][16][4], into tile 0 or 1.
template <int tile, int block, bool is_unsigned>
inline void start_block(const int8_t* activations, const int8_t* weights) {
    constexpr int64_t kLine = 64, kRow = block;
    asm volatile(
        "tilezero %%tmm%c4\n"
        "tileloadd (%0,%1,1), %%tmm2\n"
        "tileloadd (%2,%3,1), %%tmm4\n"
        : : "r"(activations), "r"(kRow), "r"(weights), "r"(kLine), "i"(tile) : "memory");
    if (is_unsigned) asm volatile("tdpbsud %%tmm4, %%tmm2, %%tmm%c0" : : "i"(tile));
    else asm volatile("tdpbssd %%tmm4, %%tmm2, %%tmm%c0" : : "i"(tile));
    if (block < 128) return;
    asm volatile(
        "tileloadd (%0,%1,1), %%tmm3\n"
        "tileloadd (%2,%3,1), %%tmm5\n"
        : : "r"(activations + 64), "r"(kRow), "r"(weights + 1024), "r"(kLine) : "memory");
    if (is_unsigned) asm volatile("tdpbsud %%tmm5, %%tmm3, %%tmm%c0" : : "i"(tile));
    else asm volatile("tdpbssd %%tmm5, %%tmm3, %%tmm%c0" : : "i"(tile));
}

template <int tile>
inline void store_sums(int32_t* sums) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(sums), "r"(int64_t{64}), "i"(tile) : "memory");
}

// Adds a chunk's products to totals[R][16], which stay in registers meanwhile. The next block is begun before a
// block's sums are stored, and these are used when the next are.
template <int block, bool zeros, int R>
void multiply_chunk(const Chunk& chunk, int blocks, const Tile& tile, float* out) {
    alignas(64) int32_t even[R * kPanelOutputs], odd[R * kPanelOutputs];
    __m512 totals[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) totals[r] = _mm512_load_ps(out + r * kPanelOutputs);
    auto add = [&](int b, const int32_t* sums) __attribute__((always_inline)) {
        const __m512 scale = _mm512_load_ps(chunk.scales + b * kPanelOutputs);
        __m512i zero;
        if (zeros) {
            const void* sixteen = chunk.zero_points + b * kPanelOutputs;
            zero = _mm512_cvtepu8_epi32(_mm_load_si128(static_cast<const __m128i*>(sixteen)));
        }
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            __m512i sum = _mm512_load_si512(sums + r * kPanelOutputs);
            if (zeros) {  // as in level_avx512.cpp
                const __m512i offset = _mm512_set1_epi32(tile.offsets[b * R + r]);
                sum = _mm512_add_epi32(sum, _mm512_madd_epi16(zero, offset));
            }
            const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(tile.scales[b * R + r]));
            totals[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), both, totals[r]);
        }
    };
    const int8_t *activations = tile.codes, *weights = chunk.codes;
    constexpr int kRows = R * block, kWeights = kPanelOutputs * block;  // bytes of a block
    start_block<0, block, zeros>(activations, weights);
    for (int b = 0; b < blocks; b += 2, activations += 2 * kRows, weights += 2 * kWeights) {
        if (b + 1 < blocks) start_block<1, block, zeros>(activations + kRows, weights + kWeights);
        store_sums<0>(even);
        if (b > 0) add(b - 1, odd);
        if (b + 2 < blocks) start_block<0, block, zeros>(activations + 2 * kRows, weights + 2 * kWeights);
        if (b + 1 < blocks) store_sums<1>(odd);
        add(b, even);
    }
    if (blocks % 2 == 0) add(blocks - 1, odd);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) _mm512_store_ps(out + r * kPanelOutputs, totals[r]);
}

template <int block, bool zeros, int R>
void multiply_tiles(const Chunk* chunks, const Panels& panels, int64_t first, int blocks, const Tile& rows, int begin,
                    int end, float* sums) {
    if (begin == end) return;
    shape_tiles(R, block);
    for (int row = begin; row < end; row += R) {
        const int64_t place = row * panels.blocks + first * R;
        const Tile tile = {rows.codes + place * block, rows.scales + place, rows.offsets + place, R};
        for (int p = 0; p < panels.count; ++p)
            multiply_chunk<block, zeros, R>(chunks[p], blocks, tile, sums + (p * rows.rows + row) * kPanelOutputs);
    }
}

template <int block, bool zeros>
void multiply_blocks(const Panels& panels, const Tile& rows, float* sums) {
    constexpr int kBlocks = kChunkValues / block;
    const int whole = rows.rows / kManyTileRows * kManyTileRows;
    Chunk chunks[kManyPanels];
    for (int64_t first = 0; first < panels.blocks; first += kBlocks) {
        const int blocks = static_cast<int>(panels.blocks - first < kBlocks ? panels.blocks - first : kBlocks);
        for (int p = 0; p < panels.count; ++p) unpack(panels.only(p), first, blocks, chunks + p);
        multiply_tiles<block, zeros, 16>(chunks, panels, first, blocks, rows, 0, whole, sums);
        multiply_tiles<block, zeros, 8>(chunks, panels, first, blocks, rows, whole, rows.rows, sums);
    }
    asm volatile("tilerelease" ::);
}

template <int block>
void multiply_many(const Panels& panels, const Tile& rows, float* sums) {
    const bool zeros = panels.bits == 8 && panels.zero_points;
    zeros ? multiply_blocks<block, true>(panels, rows, sums) : multiply_blocks<block, false>(panels, rows, sums);
}

// CPUID leaf 7, bits 24 and 25 of EDX: tiles, and their products of int8.
bool has_amx() {
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx >> 24 & 3) == 3;
}

// Linux gives a process room for tiles when it asks.
bool asked_for_tiles() {
#if defined(__linux__)
    constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
    return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
    return false;
#endif
}

}  // namespace

void multiply_with_tiles(const Panels& panels, const Tile& rows, float* sums) {
    __builtin_memset(sums, 0, sizeof(float) * panels.count * rows.rows * kPanelOutputs);
    switch (panels.block) {
        case 32: return multiply_many<32>(panels, rows, sums);
        case 64: return multiply_many<64>(panels, rows, sums);
        default: return multiply_many<128>(panels, rows, sums);
    }
}

bool tiles_run_here() {
    static const bool run = has_amx() && asked_for_tiles();
    return run;
}

}  // namespace llama_kernels
