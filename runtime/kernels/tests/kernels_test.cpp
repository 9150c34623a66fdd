// Tests of the kernels: all levels of instructions that this processor has.
//
//   kernels_test [rounds [seed]]
//   kernels_test quick                        the levels against the reference alone
//   kernels_test threads                      what several threads do, alone
//   kernels_test overread matrix|panel|cache  reads too much on purpose
#include "testing.h"

using namespace llama_kernels;

namespace {

void choosing() {
    const Level* best = levels_here()[0];
    EXPECT(choose_level(nullptr) == (best->by_default ? best : nullptr), "not the best level of those that are faster");
    EXPECT(choose_level("scalar") != nullptr, "no reference");
    EXPECT(choose_level("abacus") == nullptr, "an unknown level is chosen");
}

}  // namespace

int main(int argc, char** argv) {
    if (argc == 3 && std::strcmp(argv[1], "overread") == 0) {
        overread(argv[2]);
        return 0;
    }
    const bool only_threads = argc == 2 && std::strcmp(argv[1], "threads") == 0;
    against_float64 = !(argc == 2 && std::strcmp(argv[1], "quick") == 0);
    const int rounds = argc > 1 ? std::atoi(argv[1]) : 100;
    const unsigned seed = argc > 2 ? std::atoi(argv[2]) : 1;
    std::mt19937 random(seed);
    choosing();
    test_matmul_threads(random);
    test_attention_threads(random);
    if (!only_threads) {
        test_matmul(random, rounds);
        test_attention(random, rounds);
        test_widen(random, rounds);
        test_rounding(random, rounds);
    }
    std::printf("levels:");
    for (const Level* level : levels_here()) std::printf(" %s", level->name);
    std::printf("; %d random shapes, seed %u; %s\n", rounds, seed, failures ? "FAILED" : "ok");
    return failures != 0;
}
