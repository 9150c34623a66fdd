// Work shared out to threads that somebody else owns.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace llama_kernels {

// Whoever has threads: runs task(data, i) for each i below `tasks`, in any order, on any threads.
struct Parallel {
    void (*run)(void* pool, size_t tasks, void (*task)(void* data, size_t index), void* data);
    void* pool;
    int threads;  // a guess: into how many streams the work is cut
};

constexpr int kMaxStreams = 64;

// Items cut into streams, one for each thread: a thread reads its own front to back, then helps with others'.
class Streams {
public:
    Streams(int64_t items, int count) : items_(items), count_(count) {
        for (int s = 0; s < count; ++s) next_[s].value.store(begin(s), std::memory_order_relaxed);
    }

    template <class Work>
    void work(int stream, Work&& item) {
        for (int turn = 0; turn < count_; ++turn) {
            const int s = (stream + turn) % count_;
            for (;;) {
                const int64_t index = next_[s].value.fetch_add(1, std::memory_order_relaxed);
                if (index >= begin(s + 1)) break;
                item(index);
            }
        }
    }

private:
    int64_t begin(int stream) const { return stream * items_ / count_; }
    struct alignas(64) Next {
        std::atomic<int64_t> value;
    };
    int64_t items_;
    int count_;
    Next next_[kMaxStreams];
};

template <class Task>
void run_tasks(const Parallel& parallel, size_t tasks, Task&& task) {
    if (tasks == 1) return task(size_t{0});
    auto call = [](void* data, size_t index) { (*static_cast<std::remove_reference_t<Task>*>(data))(index); };
    parallel.run(parallel.pool, tasks, call, &task);
}

// Runs item(i) for each i below `items`, on one thread or on several.
template <class Work>
void for_each_item(const Parallel& parallel, int64_t items, int threads, Work&& item) {
    Streams streams(items, threads);
    run_tasks(parallel, threads, [&](size_t stream) { streams.work(static_cast<int>(stream), item); });
}

}  // namespace llama_kernels
