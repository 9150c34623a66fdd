// com.microsoft::MatMulNBits, computed by our kernels.
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "matmul.h"
#include "operator.h"

namespace llama_kernels {
namespace {

enum Input { kActivations, kCodes, kScales, kZeroPoints, kGroups, kBias };

// A constant input; null where the node has none of that number.
Ort::ConstValue constant(const Ort::ConstKernelInfo& info, size_t index) {
    if (!has_input(info, index)) return Ort::ConstValue{nullptr};
    int is_constant = 0;
    return info.GetTensorConstantInput(index, &is_constant);
}

std::vector<float> floats(const Ort::ConstValue& value) {
    const float* data = value.GetTensorData<float>();
    return {data, data + value.GetTensorTypeAndShapeInfo().GetElementCount()};
}

Matmul build(const Ort::ConstKernelInfo& info) {
    Layout layout{};
    layout.outputs = info.GetAttribute<int64_t>("N");
    layout.inputs = info.GetAttribute<int64_t>("K");
    layout.bits = static_cast<int>(info.GetAttribute<int64_t>("bits"));
    layout.block = static_cast<int>(info.GetAttribute<int64_t>("block_size"));
    if ((layout.bits != 4 && layout.bits != 8) || (layout.block != 32 && layout.block != 64 && layout.block != 128))
        throw std::runtime_error("MatMulNBits: needs 4 or 8 bits in blocks of 32, 64 or 128");
    if (has_input(info, kGroups)) throw std::runtime_error("MatMulNBits: g_idx is not supported");
    const auto codes = constant(info, kCodes), scales = constant(info, kScales);
    if (!codes || !scales) throw std::runtime_error("MatMulNBits: the weights must be constants");
    const auto zeros = constant(info, kZeroPoints), bias = constant(info, kBias);
    layout.zero_points = zeros != nullptr;
    const Source source = {codes.GetTensorData<uint8_t>(), scales.GetTensorData<float>(),
                           zeros ? zeros.GetTensorData<uint8_t>() : nullptr};
    auto matrix = std::make_unique<const Matrix>(layout, source, hardware_threads());
    return Matmul(level(), std::move(matrix), bias ? floats(bias) : std::vector<float>());
}

class MatMulNBits {
public:
    explicit MatMulNBits(const Ort::ConstKernelInfo& info) : matmul_(build(info)) {}

    void compute(Ort::KernelContext& context) const {
        const auto activations = context.GetInput(kActivations);
        auto shape = activations.GetTensorTypeAndShapeInfo().GetShape();
        const Layout& layout = matmul_.layout();
        if (shape.empty() || shape.back() != layout.inputs)
            throw std::runtime_error("MatMulNBits: the last axis must have " + std::to_string(layout.inputs) +
                                     " values");
        int64_t rows = 1;
        for (size_t i = 0; i + 1 < shape.size(); ++i) rows *= shape[i];
        shape.back() = layout.outputs;
        auto output = context.GetOutput(0, shape);
        matmul_.run(activations.GetTensorData<float>(), rows, output.GetTensorMutableData<float>(), parallel(context));
    }

private:
    Matmul matmul_;
};

struct MatMulNBitsOperator : OperatorBase<MatMulNBitsOperator, MatMulNBits> {
    const char* GetName() const { return "MatMulNBits"; }
    size_t GetInputTypeCount() const { return 6; }
    ONNXTensorElementDataType GetInputType(size_t index) const {
        switch (index) {
            case kCodes:
            case kZeroPoints: return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
            case kGroups: return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
            default: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
        }
    }
    OrtCustomOpInputOutputCharacteristic GetInputCharacteristic(size_t index) const {
        return index < kZeroPoints ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL;
    }
    size_t GetOutputTypeCount() const { return 1; }
    ONNXTensorElementDataType GetOutputType(size_t) const { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; }
};

}  // namespace

const OrtCustomOp* matmul_operator() {
    static const MatMulNBitsOperator made;
    return &made;
}

}  // namespace llama_kernels
