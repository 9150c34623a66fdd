// float32 [M, K] times a quantized matrix [N, K], on however many threads there are.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "level.h"
#include "matrix.h"
#include "parallel.h"

namespace llama_kernels {

class Matmul {
public:
    // `bias` is [N] or empty.
    Matmul(const Level& level, std::unique_ptr<const Matrix> matrix, std::vector<float> bias);

    // to[rows, N] = from[rows, K] * matrix^T + bias. May be called by several threads at once.
    void run(const float* from, int64_t rows, float* to, const Parallel& parallel) const;

    const Layout& layout() const { return matrix_->layout(); }

private:
    class Activations;
    void run_few(const float* from, int64_t rows, float* to, const Parallel& parallel, int threads) const;
    void run_many(const float* from, int64_t rows, float* to, const Parallel& parallel, int threads) const;
    void run_row(const float* from, float* to, const Parallel& parallel, int threads) const;
    void keep_panels(const Parallel& parallel, int threads) const;
    Panels panels(int64_t first, int count) const;
    void finish(const float* sums, int64_t sum_rows, int64_t panel, int count, float* to, int64_t rows) const;

    const Level& level_;
    std::unique_ptr<const Matrix> matrix_;
    std::vector<float> bias_;
    mutable std::atomic<int> few_rows_{0};  // products so far whose rows are one tile, but more than one row
    mutable std::unique_ptr<Pages> kept_;
    mutable std::atomic<const uint8_t*> panels_{nullptr};  // all of them, once they are kept
};

}  // namespace llama_kernels
