#include <cstring>

#include "level.h"

namespace llama_kernels {

extern const Level kScalar;
#if defined(LLAMA_KERNELS_AMX)
extern const Level kAmx;
#endif
#if defined(LLAMA_KERNELS_X86)
extern const Level kAvx512;
extern const Level kAvxVnni;
extern const Level kAvx2;
#elif defined(LLAMA_KERNELS_ARM)
extern const Level kNeon;
#endif

const Level* const* levels(size_t* count) {
    static const Level* const kLevels[] = {
#if defined(LLAMA_KERNELS_AMX)
        &kAmx,
#endif
#if defined(LLAMA_KERNELS_X86)
        &kAvx512,
        &kAvxVnni,
        &kAvx2,
#elif defined(LLAMA_KERNELS_ARM)
        &kNeon,
#endif
        &kScalar,
    };
    *count = sizeof kLevels / sizeof kLevels[0];
    return kLevels;
}

const Level* choose_level(const char* name) {
    size_t count;
    const Level* const* all = levels(&count);
    for (size_t i = 0; i < count; ++i)
        if ((name ? std::strcmp(name, all[i]->name) == 0 : all[i]->by_default) && all[i]->runs_here()) return all[i];
    return nullptr;
}

}  // namespace llama_kernels
