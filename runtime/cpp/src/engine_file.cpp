#include "engine_file.h"

#include <algorithm>
#include <filesystem>
#include <set>
#include <sstream>

#include "errors.h"
#include "fields.h"
#include "files.h"
#include "sha256.h"

namespace llama {
namespace {

constexpr size_t k_max_bytes = size_t{16} << 20;
constexpr int64_t k_max_count = int64_t{1} << 31;

std::vector<std::string> engine_names(const std::string& folder) {
    namespace fs = std::filesystem;
    std::error_code error;
    std::vector<std::string> found;
    for (const auto& entry : fs::directory_iterator(fs::path(folder) / "trt", error)) {
        if (entry.path().extension() == ".json") found.push_back(entry.path().stem().string());
    }
    std::sort(found.begin(), found.end());
    return found;
}

std::string joined(const std::vector<std::string>& words, const char* between) {
    std::string text;
    for (const std::string& word : words) text += (text.empty() ? "" : between) + word;
    return text;
}

// The parts of "11.4.0.106" that are numbers.
std::vector<long> numbers(const std::string& version) {
    std::vector<long> found;
    std::istringstream parts(version);
    for (std::string part; std::getline(parts, part, '.');) {
        if (!part.empty() && part.find_first_not_of("0123456789") == part.npos) found.push_back(std::atol(part.c_str()));
    }
    return found;
}

bool version_fits(const EngineFile& file, const std::string& installed) {
    if (installed == file.product_version || !file.version_compatible) return installed == file.product_version;
    const auto built = numbers(file.product_version), here = numbers(installed);
    return !built.empty() && !here.empty() && built[0] == here[0] && here >= built;
}

// What is bound and fed depends on these: a sidecar that contradicts itself is refused before anything runs.
void check(const EngineFile& file) {
    const auto rising = [&] { return std::adjacent_find(file.buckets.begin(), file.buckets.end(), std::greater_equal<>()) == file.buckets.end(); };
    if (!file.buckets.empty() && (!rising() || file.buckets.back() != file.max_seq)) refuse_document("buckets do not rise to max_seq");
    if (file.profiles != file.buckets.size() + 1) refuse_document("profiles are not one more than buckets");
    if (file.buckets.empty() != file.aliases.empty()) refuse_document("aliases and buckets are given together or not at all");
    if (file.plan.has_value() == file.product.empty()) refuse_document("plan and product are given together or not at all");
    std::set<std::string> outputs;
    for (const TensorSpec& spec : file.outputs) outputs.insert(spec.name);
    for (const auto& [output, input] : file.aliases) {
        const auto found = std::find_if(file.inputs.begin(), file.inputs.end(), [&, &input = input](const TensorSpec& s) { return s.name == input; });
        if (found == file.inputs.end() || !outputs.count(output)) refuse_document("aliases name " + output + ", which is no output of an input's memory");
        double bytes = 8;  // an upper bound of a hostile file's product
        if (found->shape.size() != 4 || found->shape[2] != std::to_string(file.max_seq)) refuse_document(input + " is not [rows, heads, max_seq, size]");
        for (size_t i = 1; i < 4; ++i) bytes *= std::atof(found->shape[i].c_str());
        if (!(bytes >= 8 && bytes < 1e15)) refuse_document(input + " has no size, or no possible one");
    }
}

EngineFile read(const Field& root) {
    const auto text = [](const Field& f) { return f.string(); };
    const auto triple = [](const Field& f) { return f.list([](const Field& n) { return n.integer(1, k_max_count); }); };
    EngineFile file;
    for (const char* name : {"max_batch", "onnx", "build_seconds"}) (void)root[name];
    file.task = root["task"].string(), file.precision = root["precision"].string();
    file.product = root["product"].optional(text).value_or(""), file.product_version = root["product_version"].optional(text).value_or("");
    if (!file.product.empty()) root["product"].one_of({"tensorrt", "tensorrt-rtx"});
    file.compute_capabilities = root["compute_capabilities"].list(text), file.rebuild = root["rebuild"].list(text);
    file.dtype = root["dtype"].one_of({"float32", "float16", "bfloat16"});
    file.max_seq = root["max_seq"].integer(1, k_max_count), file.prefill_chunk = root["prefill_chunk"].integer(1, k_max_count);
    file.buckets = triple(root["buckets"]);
    file.profiles = root["profiles"].list([&](const Field& f) { return triple(f["tokens"]).size(); }).size();
    file.inputs = root["inputs"].list(read_spec), file.outputs = root["outputs"].list(read_spec);
    root["aliases"].items([&](const std::string& output, const Field& input) { file.aliases[output] = input.string(); });
    file.plan = root["plan"].optional([](const Field& f) {
        return Plan{f["path"].path(), f["sha256"].string(), static_cast<uint64_t>(f["size_bytes"].integer(1))};
    });
    file.version_compatible = root["version_compatible"].boolean();
    (void)root["refittable"].boolean();
    if (root["stripped"].boolean()) {
        throw Error(LR_ERROR_MANIFEST, "the engine's plan has no weights, which the C++ runtime does not put in",
                    "build one that has them, without --stripped, or use the Python runtime");
    }
    check(file);
    return file;
}

}  // namespace

bool EngineFile::is_cache(const std::string& input) const {
    return std::any_of(aliases.begin(), aliases.end(), [&](const auto& pair) { return pair.second == input; });
}

std::string EngineFile::rebuild_command(const std::string& folder) const {
    return "llama-export trt " + folder + (rebuild.empty() ? "" : " " + joined(rebuild, " ")) + " --force";
}

EngineFile parse_engine_file(const std::string& text, const std::string& where) {
    try {
        const json document = parse_document(text, "an engine", "llama-export-engine");
        return read(Field(document, ""));
    } catch (Error& error) {
        error.message = where + ": " + error.message;
        throw;
    }
}

EngineFile read_engine_file(const std::string& folder, const std::string& name) {
    const auto names = engine_names(folder);
    if (names.empty()) throw Error(LR_ERROR_MANIFEST, folder + ": has no engine", "llama-export trt " + folder + " makes one");
    if (name.empty() && names.size() > 1) {
        throw Error(LR_ERROR_MANIFEST, folder + ": has engines " + joined(names, ", "), "name one, such as " + names[0]);
    }
    if (!name.empty() && !std::count(names.begin(), names.end(), name)) {
        throw Error(LR_ERROR_MANIFEST, folder + ": has no engine " + name + ", but " + joined(names, ", "), "name one of these");
    }
    const std::string path = folder + "/trt/" + (name.empty() ? names[0] : name) + ".json";
    const std::vector<uint8_t> content = read_file(path, k_max_bytes, LR_ERROR_MANIFEST);
    return parse_engine_file(std::string(content.begin(), content.end()), path);
}

std::vector<uint8_t> read_plan(const std::string& folder, const EngineFile& file) {
    const std::string again = file.rebuild_command(folder);
    if (!file.plan) throw Error(LR_ERROR_MANIFEST, folder + ": the engine's graph was written, but no engine built from it", again);
    const std::string path = folder + "/" + file.plan->path;
    if (file_bytes(path).value_or(0) != file.plan->size_bytes) {
        throw Error(LR_ERROR_MANIFEST, path + ": missing, or not of the " + std::to_string(file.plan->size_bytes) + " bytes that its sidecar lists", again);
    }
    std::vector<uint8_t> content = read_file(path, file.plan->size_bytes, LR_ERROR_MANIFEST);
    const std::string found = sha256(content);
    if (found != file.plan->sha256) throw Error(LR_ERROR_MANIFEST, path + ": SHA-256 is " + found + ", its sidecar lists " + file.plan->sha256, again);
    return content;
}

void check_runs_here(const std::string& folder, const EngineFile& file, const std::string& product,
                     const std::string& version, const std::string& capability) {
    const std::string again = file.rebuild_command(folder), where = folder + "/trt: the engine ";
    if (file.product != product || !version_fits(file, version)) {
        throw Error(LR_ERROR_SESSION, where + "was built with " + file.product + " " + file.product_version + ", " + product + " " + version + " is here", again);
    }
    if (!std::count(file.compute_capabilities.begin(), file.compute_capabilities.end(), capability)) {
        throw Error(LR_ERROR_SESSION, where + "is for compute capability " + joined(file.compute_capabilities, ", ") + ", this GPU has " + capability,
                    again + " --compute-capability " + capability);
    }
}

}  // namespace llama
