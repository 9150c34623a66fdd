// The library as ONNX Runtime sees it: operators of com.microsoft and functions of ours, computed by our kernels.
//
// ONNX Runtime asks the operators of a session's own libraries first, so a graph need not know of this one:
// with it the graph is faster, without it the graph is the same.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "operator.h"
#include "rounding.h"

namespace llama_kernels {
namespace {

constexpr const char* kDomain = "com.microsoft";
constexpr const char* kOwnDomain = "llama_export";
constexpr const char* kLevelVariable = "LLAMA_EXPORT_KERNELS";
constexpr int kVersion = 1;

// The level of this processor, or the one that the variable names; null where there is none.
const Level* wanted_level() {
    const char* name = std::getenv(kLevelVariable);
    return choose_level(name && *name ? name : nullptr);
}

}  // namespace

const Level& level() {
    const Level* chosen = wanted_level();
    if (!chosen) throw std::runtime_error(std::string("no level for this processor, or ") + kLevelVariable + " names none");
    return *chosen;
}

}  // namespace llama_kernels

#define LLAMA_KERNELS_EXPORT extern "C" __attribute__((visibility("default")))

// What the runtimes ask before they hand the library to ONNX Runtime.
LLAMA_KERNELS_EXPORT int llama_kernels_version() { return llama_kernels::kVersion; }
LLAMA_KERNELS_EXPORT const char* llama_kernels_level() {
    const llama_kernels::Level* level = llama_kernels::wanted_level();
    return level ? level->name : nullptr;
}

// What the exporter calls, of any thread; returns whether all values are finite.
LLAMA_KERNELS_EXPORT bool llama_kernels_round_rows(const llama_kernels::Rounding* rounding) {
    return llama_kernels::round_rows(*rounding);
}

LLAMA_KERNELS_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
    const OrtApi* api = base->GetApi(ORT_API_VERSION);
    if (!api) return base->GetApi(1)->CreateStatus(ORT_FAIL, "this ONNX Runtime is older than the library was made for");
    Ort::InitApi(api);
    try {
        llama_kernels::level();  // a wrong name is refused here, before any graph
        // Never destroyed: at exit, ONNX Runtime may be gone already.
        static auto& domain = *[] {
            auto* made = new Ort::CustomOpDomain{llama_kernels::kDomain};
            made->Add(llama_kernels::matmul_operator());
            made->Add(llama_kernels::attention_operator());
            made->Add(llama_kernels::attention_operator_int8());
            return made;
        }();
        static auto& own = *[] {
            auto* made = new Ort::CustomOpDomain{llama_kernels::kOwnDomain};
            made->Add(llama_kernels::widen_operator());
            return made;
        }();
        Ort::ThrowOnError(api->AddCustomOpDomain(options, domain));
        Ort::ThrowOnError(api->AddCustomOpDomain(options, own));
        return nullptr;
    } catch (const std::exception& error) {
        return api->CreateStatus(ORT_FAIL, error.what());
    }
}
