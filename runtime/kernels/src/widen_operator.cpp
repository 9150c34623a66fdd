// llama_export::WidenGemm, a function of our graphs (FORMAT.md), computed without widening the weights in memory.
#include <stdexcept>
#include <string>

#include "operator.h"
#include "widen.h"

namespace llama_kernels {
namespace {

enum Input { kActivations, kWeights, kBias };

Narrow narrow_type(ONNXTensorElementDataType type) {
    if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16) return Narrow::kBfloat16;
    if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16) return Narrow::kFloat16;
    throw std::runtime_error("WidenGemm: the weights must be bfloat16 or float16");
}

class WidenGemmKernel {
public:
    explicit WidenGemmKernel(const Ort::ConstKernelInfo& info) : level_(level()), has_bias_(has_input(info, kBias)) {}

    void compute(Ort::KernelContext& context) const {
        const auto activations = context.GetInput(kActivations), weights = context.GetInput(kWeights);
        const auto shape = activations.GetTensorTypeAndShapeInfo().GetShape();
        const auto facts = weights.GetTensorTypeAndShapeInfo();
        const auto matrix = facts.GetShape();
        if (shape.size() != 2 || matrix.size() != 2 || shape[1] != matrix[1])
            throw std::runtime_error("WidenGemm: needs [M, K] and [N, K]");
        const float* bias = nullptr;
        if (has_bias_) {
            const auto given = context.GetInput(kBias);
            if (given.GetTensorTypeAndShapeInfo().GetShape() != std::vector<int64_t>{matrix[0]})
                throw std::runtime_error("WidenGemm: the bias must be [N]");
            bias = given.GetTensorData<float>();
        }
        const WidenGemm product = {narrow_type(facts.GetElementType()), static_cast<const uint16_t*>(weights.GetTensorRawData()),
                                   bias, matrix[0], matrix[1]};
        auto output = context.GetOutput(0, {shape[0], matrix[0]});
        product.run(level_, activations.GetTensorData<float>(), shape[0], output.GetTensorMutableData<float>(),
                    parallel(context));
    }

private:
    const Level& level_;
    bool has_bias_;
};

struct WidenGemmOperator : OperatorBase<WidenGemmOperator, WidenGemmKernel> {
    const char* GetName() const { return "WidenGemm"; }
    size_t GetInputTypeCount() const { return 3; }
    ONNXTensorElementDataType GetInputType(size_t index) const {
        // Any: the kernel looks.
        return index == kWeights ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    }
    OrtCustomOpInputOutputCharacteristic GetInputCharacteristic(size_t index) const {
        return index == kBias ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
    }
    size_t GetOutputTypeCount() const { return 1; }
    ONNXTensorElementDataType GetOutputType(size_t) const { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; }
};

}  // namespace

const OrtCustomOp* widen_operator() {
    static const WidenGemmOperator made;
    return &made;
}

}  // namespace llama_kernels
