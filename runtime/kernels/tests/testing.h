// What the tests of the kernels share.
#pragma once

#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "level.h"
#include "parallel.h"

namespace llama_kernels {

inline std::atomic<int> failures{0};

#define EXPECT(condition, ...)                                     \
    do {                                                           \
        if (!(condition)) {                                        \
            std::printf("%s:%d: ", __FILE__, __LINE__);            \
            std::printf(__VA_ARGS__);                              \
            std::printf("\n");                                     \
            if (++failures == 20) std::exit(1);                    \
        }                                                          \
    } while (0)

inline const std::vector<const Level*>& levels_here() {
    static const std::vector<const Level*> here = [] {
        size_t count;
        const Level* const* all = levels(&count);
        std::vector<const Level*> found;
        for (size_t i = 0; i < count; ++i) {
            if (all[i]->runs_here()) found.push_back(all[i]);
            else std::printf("not tested, this processor has not: %s\n", all[i]->name);
        }
        return found;
    }();
    return here;
}

// Threads of its own for every run: slow, and in no order.
inline void run_on_threads(void* threads, size_t tasks, void (*task)(void*, size_t), void* data) {
    const size_t count = *static_cast<int*>(threads);
    std::vector<std::thread> running;
    for (size_t t = 0; t < count; ++t)
        running.emplace_back([=] { for (size_t i = t; i < tasks; i += count) task(data, i); });
    for (std::thread& thread : running) thread.join();
}

inline std::vector<float> normal(size_t count, std::mt19937& random, float scale = 1) {
    std::normal_distribution<float> distribution;
    std::vector<float> values(count);
    for (float& value : values) value = distribution(random) * scale;
    return values;
}

inline bool same(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

inline bool against_float64 = true;

// The tests of a file: what threads and batches may not change, and the others; `rounds` is how many random shapes.
void test_matmul_threads(std::mt19937& random);
void test_attention_threads(std::mt19937& random);
void test_matmul(std::mt19937& random, int rounds);
void test_attention(std::mt19937& random, int rounds);
void test_widen(std::mt19937& random, int rounds);
void test_rounding(std::mt19937& random, int rounds);

// Reads behind a matrix and behind a cache: memory checkers must not let it pass.
void overread(const char* what);

}  // namespace llama_kernels
