#include "graph_options.h"

#include <filesystem>

#include "cores.h"

namespace llama {
namespace {

constexpr int k_spins_briefly = 32;  // ONNX Runtime 1.32; older ones take no duration, and wait much longer

}  // namespace

Owned<OrtSessionOptions> session_options(const OrtApi& api, const std::string& folder, const Manifest& manifest, int threads) {
    OrtSessionOptions* made = nullptr;
    check(api, api.CreateSessionOptions(&made), "options");
    Owned<OrtSessionOptions> options = owned(made, api.ReleaseSessionOptions);
    const auto set = [&](OrtStatus* status) { check(api, status, "options"); };
    set(api.SetSessionLogSeverityLevel(made, ORT_LOGGING_LEVEL_ERROR));
    set(api.SetIntraOpNumThreads(made, threads > 0 ? threads : available_cores()));
    set(api.SetInterOpNumThreads(made, 1));
    // A memory pattern is kept for every input shape, and every decode has a new one.
    set(api.DisableMemPattern(made));
    // Threads that wait as long as it takes from one product to the next, where they can be told how long that is.
    const bool briefly = onnxruntime_minor() >= k_spins_briefly;
    set(api.AddSessionConfigEntry(made, "session.intra_op.allow_spinning", briefly ? "1" : "0"));
    if (briefly) set(api.AddSessionConfigEntry(made, "session.intra_op.spin_duration_us", "20"));
    if (manifest.precision == "float32") {
        // The weights stay in the mapped file; packing would copy every one of them, for many seconds.
        set(api.AddSessionConfigEntry(made, "session.disable_prepacking", "1"));
    }
    namespace fs = std::filesystem;
    const fs::path data = fs::weakly_canonical(fs::path(folder) / manifest.external_data_folder);
    if (data != fs::weakly_canonical(fs::path(folder) / manifest.model_path).parent_path()) {
        set(api.AddSessionConfigEntry(made, "session.model_external_initializers_file_folder_path", data.c_str()));
    }
    return options;
}

}  // namespace llama
