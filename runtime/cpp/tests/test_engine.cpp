// The engine's session over an engine that only writes down what it is asked: buckets, profiles, chunks, bounds.

#include <cmath>

#include "engine_sample.h"
#include "engine_session.h"
#include "harness.h"
#include "sha256.h"

using namespace llama;

namespace {

// Every run as "profile: ids @ first slot / bucket".
class Recorder : public Engine {
public:
    explicit Recorder(std::vector<std::string>& log) : log_(log) {}
    std::unique_ptr<EngineMemory> allocate() override {
        log_.push_back("allocate");
        return std::make_unique<EngineMemory>();
    }
    Outputs run(size_t profile, const std::vector<Feed>& feeds, EngineMemory* memory) override {
        const auto values = [&](const std::string& name) {
            for (const Feed& feed : feeds) {
                if (feed.name == name) return feed.values;
            }
            return std::vector<int64_t>();
        };
        const auto ids = values("input_ids"), positions = values("position_ids");
        for (size_t i = 0; i < ids.size(); ++i) EQUAL(positions.at(i), values("write_indices").at(0) + static_cast<int64_t>(i));
        std::string line = std::to_string(profile) + ":";
        for (const int64_t id : ids) line += " " + std::to_string(id);
        line += " @" + std::to_string(positions.at(0)) + "/" + std::to_string(values("kv_bucket").at(0));
        if (!values("rope_length").empty()) line += " of " + std::to_string(values("rope_length")[0]);
        log_.push_back(line);
        EQUAL(memory != nullptr, true);
        Outputs found;
        found["logits"].values = std::vector<float>(wrong ? 4 : 5, static_cast<float>(ids.back()));
        return found;
    }
    bool wrong = false;

private:
    std::vector<std::string>& log_;
};

Manifest manifest() {
    Manifest m;
    m.task = "text-generation", m.vocab_size = 5, m.max_positions = 16, m.rope_depends_on_length = false;
    m.cache = CacheSpec{1, 2, 4, "float16", "", "", "", "", true};
    return m;
}

void state_machine() {
    using Log = std::vector<std::string>;
    Log log;
    Manifest m = manifest();
    const EngineFile file = parse_engine_file(k_engine_sample, "fp16.json");
    auto recorder = std::make_unique<Recorder>(log);
    Recorder* engine = recorder.get();
    const EngineSession session(std::move(recorder), file, m, 512);
    auto cache = session.new_cache(16);
    // Chunks of at most prefill_chunk, each in the smallest bucket that holds its end; a chunk of one is a decode.
    EQUAL(session.prefill({1, 2, 3, 4, 1, 2, 3}, *cache), Logits(5, 3.0f));
    EQUAL(log, (Log{"allocate", "3: 1 2 3 @0/4", "3: 4 1 2 @3/8", "1: 3 @6/8"}));
    log.clear();
    EQUAL(session.decode(4, *cache), Logits(5, 4.0f));
    session.decode(0, *cache);
    EQUAL(log, (Log{"1: 4 @7/8", "2: 0 @8/16"}));
    log.clear();
    session.truncate(*cache, 3);
    session.decode(2, *cache);
    EQUAL(log, (Log{"0: 2 @3/4"}));
    // Bounds, before anything runs: of the engine's slots, of the cache, of the vocabulary.
    log.clear();
    REFUSES(LR_ERROR_PROMPT, "13 more tokens after 4, the cache has room for 16", session.prefill(Ids(13, 1), *cache));
    REFUSES(LR_ERROR_PROMPT, "token id 5, the vocabulary is 0 to 4", session.decode(5, *cache));
    REFUSES(LR_ERROR_PROMPT, "a cache of 17 positions", session.new_cache(17));
    REFUSES(LR_ERROR_PROMPT, "a cache of 17 positions", session.enlarge(*cache, 17));
    m.max_positions = 99;
    session.enlarge(*cache, 99);
    REFUSES(LR_ERROR_PROMPT, "3 tokens from slot 16 on, the engine has 16", session.prefill(Ids(20, 1), *cache));
    EQUAL(log.size(), 4u);  // chunks up to the last slot, none behind it
    REFUSES(LR_ERROR_SESSION, "generates texts, and gives nothing else", session.run_text({1}, {"logits"}));
    log.clear();
    // Memory that nobody holds serves the next cache; that which is held does not.
    cache.reset();
    cache = session.new_cache(8);
    const auto second = session.new_cache(8);
    EQUAL(log, (Log{"allocate"}));
    engine->wrong = true;
    REFUSES(LR_ERROR_SESSION, "no logits of the vocabulary's size", session.decode(1, *cache));
    EQUAL(cache->length, 0u);
}

void length_dependent_angles() {
    std::vector<std::string> log;
    Manifest m = manifest();
    m.rope_depends_on_length = true;
    const EngineSession session(std::make_unique<Recorder>(log), parse_engine_file(k_engine_sample, "fp16.json"), m, 2);
    const auto cache = session.new_cache(16);
    session.prefill({1, 2, 3}, *cache);
    session.decode(4, *cache);
    // The whole prompt's length in each of its chunks; 0, the length so far, when decoding.
    EQUAL(log, (std::vector<std::string>{"allocate", "3: 1 2 @0/4 of 3", "0: 3 @2/4 of 3", "0: 4 @3/4 of 0"}));
}

void sidecar() {
    const EngineFile file = parse_engine_file(k_engine_sample, "fp16.json");
    EQUAL(file.is_cache("past_key_values.0.key") && !file.is_cache("input_ids"), true);
    EQUAL(file.rebuild_command("b"), "llama-export trt b --precision fp16 --force");
    const auto runs = [&](const std::string& version) { check_runs_here("b", file, "tensorrt", version, "8.9"); };
    runs("11.4.0.106"), runs("11.5.0.1");  // compatible with later ones of the same major version
    REFUSES(LR_ERROR_SESSION, "was built with tensorrt 11.4.0.106, tensorrt 11.3.9 is here", runs("11.3.9"));
    REFUSES(LR_ERROR_SESSION, "tensorrt 12.0.0.1 is here", runs("12.0.0.1"));
    const auto refused = [](const std::string& from, const std::string& to, const std::string& told) {
        std::string text = k_engine_sample;
        text.replace(text.find(from), from.size(), to);
        REFUSES(LR_ERROR_MANIFEST, told, parse_engine_file(text, "fp16.json"));
    };
    refused("\"max_seq\": 16", "\"max_seq\": 1e9", "max_seq is 1000000000.0, needs an integer");
    refused("\"max_seq\": 16", "\"max_seq\": 32", "buckets do not rise to max_seq");
    refused("[4, 8, 16]", "[4, 4, 16]", "buckets do not rise to max_seq");
    refused("\"batch_size\", 2, 16, 4", "\"batch_size\", 2, 16, \"x\"", "has no size, or no possible one");
    refused("\"batch_size\", 2, 16, 4", "\"batch_size\", 4000000000, 16, 4000000000", "has no size, or no possible one");
    refused("\"batch_size\", 2, 16, 4", "\"batch_size\", 2, 8, 4", "is not [rows, heads, max_seq, size]");
    refused("\"tensorrt\"", "\"other\"", "product is \"other\", needs one of tensorrt, tensorrt-rtx");
    refused("\"stripped\": false", "\"stripped\": true", "fp16.json: the engine's plan has no weights");
    refused("\"trt/fp16.plan\"", "\"/etc/passwd\"", "plan.path is ");
}

void digests() {
    const auto digest = [](size_t count) { return sha256(std::vector<uint8_t>(count, 'a')).substr(0, 16); };
    EQUAL(sha256({'a', 'b', 'c'}), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    EQUAL(sha256({}), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    EQUAL(digest(55), "9f4390f8d30c2dd9");
    EQUAL(digest(56), "b35439a4ac6f0948");
    EQUAL(digest(64), "ffe054fe7ae0cb6d");
    EQUAL(digest(1000000), "cdc76e5c9914fb92");
}

}  // namespace

int main() {
    state_machine(), length_dependent_angles(), sidecar(), digests();
    std::printf("%d failures\n", harness::failures);
    return harness::failures != 0;
}
