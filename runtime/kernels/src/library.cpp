// The library as ONNX Runtime sees it: com.microsoft::MatMulNBits, computed by our kernels.
//
// ONNX Runtime asks the operators of a session's own libraries first, so a graph need not know of this one:
// with it the graph is faster, without it the graph is the same.
#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>
#undef ORT_API_MANUAL_INIT

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <thread>

#include "matmul.h"

namespace llama_kernels {
namespace {

constexpr const char* kDomain = "com.microsoft";
constexpr const char* kLevelVariable = "LLAMA_EXPORT_KERNELS";
constexpr int kVersion = 1;

int hardware_threads() {
    static const int count = std::max(1u, std::thread::hardware_concurrency());
    return count;
}

// The level of this processor, or the one that the variable names; null where there is none.
const Level* wanted_level() {
    const char* name = std::getenv(kLevelVariable);
    return choose_level(name && *name ? name : nullptr);
}

const Level& level() {
    const Level* chosen = wanted_level();
    if (!chosen) throw std::runtime_error(std::string("no level for this processor, or ") + kLevelVariable + " names none");
    return *chosen;
}

std::vector<float> floats(const Ort::ConstValue& value) {
    const float* data = value.GetTensorData<float>();
    return {data, data + value.GetTensorTypeAndShapeInfo().GetElementCount()};
}

enum Input { kActivations, kCodes, kScales, kZeroPoints, kGroups, kBias };

// A constant input; null where the node has none of that number.
Ort::ConstValue constant(const Ort::ConstKernelInfo& info, size_t index) {
    if (index >= info.GetInputCount() || info.GetInputName(index).empty()) return Ort::ConstValue{nullptr};
    int is_constant = 0;
    return info.GetTensorConstantInput(index, &is_constant);
}

class MatMulNBits {
public:
    explicit MatMulNBits(const OrtKernelInfo* kernel_info) : matmul_(build(Ort::ConstKernelInfo{kernel_info})) {}

    OrtStatusPtr ComputeV2(OrtKernelContext* kernel_context) noexcept try {
        Ort::KernelContext context(kernel_context);
        const auto activations = context.GetInput(kActivations);
        auto shape = activations.GetTensorTypeAndShapeInfo().GetShape();
        const Layout& layout = matmul_.layout();
        if (shape.empty() || shape.back() != layout.inputs)
            throw std::runtime_error("MatMulNBits: the last axis must have " + std::to_string(layout.inputs) + " values");
        int64_t rows = 1;
        for (size_t i = 0; i + 1 < shape.size(); ++i) rows *= shape[i];
        shape.back() = layout.outputs;
        auto output = context.GetOutput(0, shape);
        auto run = [](void* pool, size_t tasks, void (*task)(void*, size_t), void* data) {
            static_cast<Ort::KernelContext*>(pool)->ParallelFor(task, tasks, tasks, data);
        };
        const Parallel parallel = {run, &context, hardware_threads()};
        matmul_.run(activations.GetTensorData<float>(), rows, output.GetTensorMutableData<float>(), parallel);
        return nullptr;
    } catch (const std::exception& error) {
        return Ort::GetApi().CreateStatus(ORT_RUNTIME_EXCEPTION, error.what());
    }

private:
    static Matmul build(const Ort::ConstKernelInfo& info) {
        Layout layout{};
        layout.outputs = info.GetAttribute<int64_t>("N");
        layout.inputs = info.GetAttribute<int64_t>("K");
        layout.bits = static_cast<int>(info.GetAttribute<int64_t>("bits"));
        layout.block = static_cast<int>(info.GetAttribute<int64_t>("block_size"));
        if ((layout.bits != 4 && layout.bits != 8) || (layout.block != 32 && layout.block != 64 && layout.block != 128))
            throw std::runtime_error("MatMulNBits: needs 4 or 8 bits in blocks of 32, 64 or 128");
        if (info.GetInputCount() > kGroups && !info.GetInputName(kGroups).empty())
            throw std::runtime_error("MatMulNBits: g_idx is not supported");
        const auto codes = constant(info, kCodes), scales = constant(info, kScales);
        if (!codes || !scales) throw std::runtime_error("MatMulNBits: the weights must be constants");
        const auto zeros = constant(info, kZeroPoints), bias = constant(info, kBias);
        layout.zero_points = zeros != nullptr;
        const Source source = {codes.GetTensorData<uint8_t>(), scales.GetTensorData<float>(),
                               zeros ? zeros.GetTensorData<uint8_t>() : nullptr};
        auto matrix = std::make_unique<const Matrix>(layout, source, hardware_threads());
        return Matmul(level(), std::move(matrix), bias ? floats(bias) : std::vector<float>());
    }

    Matmul matmul_;
};

struct MatMulNBitsOp : Ort::CustomOpBase<MatMulNBitsOp, MatMulNBits, true> {
    OrtStatusPtr CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const noexcept try {
        *kernel = new MatMulNBits(info);
        return nullptr;
    } catch (const std::exception& error) {
        return Ort::GetApi().CreateStatus(ORT_RUNTIME_EXCEPTION, error.what());
    }
    OrtStatusPtr KernelComputeV2(void* kernel, OrtKernelContext* context) const noexcept {
        return static_cast<MatMulNBits*>(kernel)->ComputeV2(context);
    }
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
}  // namespace llama_kernels

#define LLAMA_KERNELS_EXPORT extern "C" __attribute__((visibility("default")))

// What the runtimes ask before they hand the library to ONNX Runtime.
LLAMA_KERNELS_EXPORT int llama_kernels_version() { return llama_kernels::kVersion; }
LLAMA_KERNELS_EXPORT const char* llama_kernels_level() {
    const llama_kernels::Level* level = llama_kernels::wanted_level();
    return level ? level->name : nullptr;
}

LLAMA_KERNELS_EXPORT OrtStatus* RegisterCustomOps(
    OrtSessionOptions* options, const OrtApiBase* base) {
    const OrtApi* api = base->GetApi(ORT_API_VERSION);
    if (!api) return base->GetApi(1)->CreateStatus(ORT_FAIL, "this ONNX Runtime is older than the library was made for");
    Ort::InitApi(api);
    try {
        llama_kernels::level();  // a wrong name is refused here, before any graph
        static const llama_kernels::MatMulNBitsOp matmul;
        // Never destroyed: at exit, ONNX Runtime may be gone already.
        static auto& domain = *[] {
            auto* made = new Ort::CustomOpDomain{llama_kernels::kDomain};
            made->Add(&matmul);
            return made;
        }();
        Ort::ThrowOnError(api->AddCustomOpDomain(options, domain));
        return nullptr;
    } catch (const std::exception& error) {
        return api->CreateStatus(ORT_FAIL, error.what());
    }
}
