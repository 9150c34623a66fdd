// com.microsoft::GroupQueryAttention as our graphs have it, computed by our kernels.
//
// An operator cannot hand a node back to ONNX Runtime: what it does not compute it refuses when a session is
// made, and the runtimes then load the graph without this library.
#include <stdexcept>
#include <string>

#include "attention.h"
#include "operator.h"

namespace llama_kernels {
namespace {

enum Input {
    kQuery,
    kKey,
    kValue,
    kPastKey,
    kPastValue,
    kLastSlots,
    kTotal,
    kCos,
    kSin,
    kPositionIds,
    kBias,
    kSink,
    kKeyScale,
    kValueScale,
    kInputs
};

[[noreturn]] void refuse(const std::string& what) { throw std::runtime_error("GroupQueryAttention: " + what); }

template <class Number>
Number attribute(const Ort::ConstKernelInfo& info, const char* name, Number otherwise) {
    try {
        return info.GetAttribute<Number>(name);
    } catch (const Ort::Exception&) { return otherwise; }
}

// Attributes that ask for something else than we compute, and the value that does not.
void check_attributes(const Ort::ConstKernelInfo& info, bool bytes) {
    const struct {
        const char* name;
        int64_t allowed, missing;
    } kNumbers[] = {
        {"rotary_interleaved", 0, 0}, {"causal", 1, 1}, {"qk_output", 0, 0}, {"sliding_window_cache", 0, 0}};
    for (const auto& number : kNumbers)
        if (attribute(info, number.name, number.missing) != number.allowed)
            refuse(std::string(number.name) + " other than " + std::to_string(number.allowed) + " is not supported");
    if (attribute<int64_t>(info, "smooth_softmax", -1) > 0) refuse("smooth_softmax is not supported");
    if (attribute(info, "softcap", 0.f) != 0) refuse("softcap is not supported");
    if (bytes && attribute<int64_t>(info, "kv_cache_bit_width", 8) != 8)
        refuse("a cache of other than 8 bits is not supported");
    for (const char* name : {"k_quant_type", "v_quant_type"}) {
        const std::string type = attribute<std::string>(info, name, "NONE");
        if (type != "NONE" && !(bytes && (type == "PER_TENSOR" || type == "PER_CHANNEL")))
            refuse(std::string(name) + " " + type + " is not supported with this cache");
        if (bytes && type == "NONE") refuse(std::string("an int8 cache needs ") + name);
    }
}

template <bool bytes>
class Attention {
public:
    explicit Attention(const Ort::ConstKernelInfo& info) : level_(level()) {
        check_attributes(info, bytes);
        if (has_input(info, kPositionIds)) refuse("position_ids are not supported");
        if (has_input(info, kSink)) refuse("head_sink is not supported");
        for (size_t i = kInputs; i < info.GetInputCount(); ++i)
            if (has_input(info, i)) refuse("input " + std::to_string(i) + " is not supported");
        kind_.heads = info.GetAttribute<int64_t>("num_heads");
        kind_.kv_heads = info.GetAttribute<int64_t>("kv_num_heads");
        if (kind_.heads < 1 || kind_.kv_heads < 1 || kind_.heads % kind_.kv_heads)
            refuse("num_heads must be a multiple of kv_num_heads");
        kind_.scale = attribute(info, "scale", 0.f);
        kind_.window = attribute<int64_t>(info, "local_window_size", -1);
        kind_.bytes = bytes;
        rotates_ = attribute<int64_t>(info, "do_rotary", 0) == 1;
        if (rotates_ && !(has_input(info, kCos) && has_input(info, kSin)))
            refuse("do_rotary needs cos_cache and sin_cache");
        by_channel_[0] = attribute<std::string>(info, "k_quant_type", "NONE") == "PER_CHANNEL";
        by_channel_[1] = attribute<std::string>(info, "v_quant_type", "NONE") == "PER_CHANNEL";
    }

    void compute(Ort::KernelContext& context) const {
        AttentionStep step{};
        const auto query = shape(context, kQuery, 3);
        step.rows = query[0], step.tokens = query[1];
        const auto key = context.GetInput(kKey);
        const int64_t H = kind_.heads, K = kind_.kv_heads, all_heads = key ? H : H + 2 * K;
        if (query[2] % all_heads)
            refuse("query has " + std::to_string(query[2]) + " values a token, needs a multiple of " +
                   std::to_string(all_heads));
        const int64_t D = step.dim = query[2] / all_heads;
        step.query = floats(context, kQuery);
        step.query_stride = step.key_stride = query[2];
        if (key) {
            expect(shape(context, kKey, 3), {step.rows, step.tokens, K * D}, "key");
            expect(shape(context, kValue, 3), {step.rows, step.tokens, K * D}, "value");
            step.key = floats(context, kKey), step.value = floats(context, kValue), step.key_stride = K * D;
        } else {
            step.key = step.query + H * D, step.value = step.key + K * D;
        }
        expect(shape(context, kLastSlots, 1), {step.rows}, "seqlens_k");
        step.last_slots = context.GetInput(kLastSlots).GetTensorData<int32_t>();
        step.total = *context.GetInput(kTotal).GetTensorData<int32_t>();
        if (step.total < step.tokens) refuse("total_sequence_length is less than the new tokens");
        add_cache(context, step);
        if (rotates_) add_angles(context, step);
        if (context.GetInputCount() > kBias && context.GetInput(kBias)) add_bias(context, step);
        step.output = context.GetOutput(0, {step.rows, step.tokens, H * D}).template GetTensorMutableData<float>();
        attend(level_, kind_, step, parallel(context));
    }

private:
    using Number = std::conditional_t<bytes, int8_t, float>;

    void add_cache(Ort::KernelContext& context, AttentionStep& step) const {
        const bool has_past = static_cast<bool>(context.GetInput(kPastKey));
        if (has_past) {
            const auto past = shape(context, kPastKey, 4);
            step.past_capacity = past[2];
            for (Input input : {kPastKey, kPastValue})
                expect(shape(context, input, 4), {step.rows, kind_.kv_heads, past[2], step.dim}, "the past");
            step.past_keys = context.GetInput(kPastKey).GetTensorData<Number>();
            step.past_values = context.GetInput(kPastValue).GetTensorData<Number>();
        }
        step.capacity = std::max(step.total, step.past_capacity);
        const std::vector<int64_t> cache = {step.rows, kind_.kv_heads, step.capacity, step.dim};
        step.keys = context.GetOutput(1, cache).template GetTensorMutableData<Number>();
        step.values = context.GetOutput(2, cache).template GetTensorMutableData<Number>();
        if (!bytes) return;
        step.key_scale = scale(context, kKeyScale, step.dim);
        step.value_scale = scale(context, kValueScale, step.dim);
    }

    CacheScale scale(Ort::KernelContext& context, Input input, int64_t dim) const {
        const bool by_channel = by_channel_[input - kKeyScale];
        const auto value =
            context.GetInputCount() > static_cast<size_t>(input) ? context.GetInput(input) : Ort::ConstValue{nullptr};
        const size_t wanted = by_channel ? kind_.kv_heads * dim : 1;
        if (!value || value.GetTensorTypeAndShapeInfo().GetElementCount() != wanted)
            refuse("k_scale and v_scale must be " + std::to_string(wanted) + " values");
        return {value.template GetTensorData<float>(), by_channel};
    }

    void add_angles(Ort::KernelContext& context, AttentionStep& step) const {
        const auto cos = shape(context, kCos, 2);
        expect(shape(context, kSin, 2), cos, "sin_cache");
        if (2 * cos[1] > step.dim) refuse("cos_cache has more than half a head's values");
        step.cos = floats(context, kCos), step.sin = floats(context, kSin);
        step.angle_rows = cos[0], step.angles = cos[1];
    }

    void add_bias(Ort::KernelContext& context, AttentionStep& step) const {
        const auto bias = shape(context, kBias, 4);
        if ((bias[0] != 1 && bias[0] != step.rows) || (bias[1] != 1 && bias[1] != kind_.heads) ||
            bias[2] != step.tokens)
            refuse("attention_bias must be [batch or 1, heads or 1, tokens, positions]");
        step.bias = floats(context, kBias);
        step.bias_by_row = bias[0] != 1, step.bias_by_head = bias[1] != 1, step.bias_width = bias[3];
    }

    static const float* floats(Ort::KernelContext& context, Input input) {
        return context.GetInput(input).GetTensorData<float>();
    }

    static std::vector<int64_t> shape(Ort::KernelContext& context, Input input, size_t axes) {
        const auto value = context.GetInput(input);
        auto found = value ? value.GetTensorTypeAndShapeInfo().GetShape() : std::vector<int64_t>();
        if (found.size() != axes)
            refuse("input " + std::to_string(input) + " has " + std::to_string(found.size()) + " axes, needs " +
                   std::to_string(axes));
        return found;
    }

    static void expect(const std::vector<int64_t>& found, const std::vector<int64_t>& wanted, const char* what) {
        if (found != wanted) refuse(std::string(what) + " does not have the shape that query needs");
    }

    const Level& level_;
    AttentionKind kind_{};
    bool rotates_, by_channel_[2];
};

template <bool bytes>
struct AttentionOperator : OperatorBase<AttentionOperator<bytes>, Attention<bytes>> {
    static constexpr auto kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    static constexpr auto kCache = bytes ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8 : kFloat;

    const char* GetName() const { return "GroupQueryAttention"; }
    size_t GetInputTypeCount() const { return kInputs; }
    ONNXTensorElementDataType GetInputType(size_t index) const {
        switch (index) {
            case kPastKey:
            case kPastValue: return kCache;
            case kLastSlots:
            case kTotal: return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
            case kPositionIds: return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
            default: return kFloat;
        }
    }
    OrtCustomOpInputOutputCharacteristic GetInputCharacteristic(size_t index) const {
        return index == kQuery || index == kLastSlots || index == kTotal ? INPUT_OUTPUT_REQUIRED
                                                                         : INPUT_OUTPUT_OPTIONAL;
    }
    size_t GetOutputTypeCount() const { return 3; }
    ONNXTensorElementDataType GetOutputType(size_t index) const { return index == 0 ? kFloat : kCache; }
};

}  // namespace

const OrtCustomOp* attention_operator() {
    static const AttentionOperator<false> made;
    return &made;
}

const OrtCustomOp* attention_operator_int8() {
    static const AttentionOperator<true> made;
    return &made;
}

}  // namespace llama_kernels
