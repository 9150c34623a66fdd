// What the operators share of ONNX Runtime's side.
#pragma once

#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>
#undef ORT_API_MANUAL_INIT

#include <algorithm>
#include <thread>

#include "level.h"
#include "parallel.h"

namespace llama_kernels {

// The level of this processor, or the one that LLAMA_EXPORT_KERNELS names. Throws std::runtime_error.
const Level& level();

// The operators, in the order in which they are registered.
const OrtCustomOp* matmul_operator();
const OrtCustomOp* attention_operator();       // float cache
const OrtCustomOp* attention_operator_int8();  // int8 cache
const OrtCustomOp* widen_operator();           // of our own domain

inline int hardware_threads() {
    static const int count = std::max(1u, std::thread::hardware_concurrency());
    return count;
}

// Whether a node has an input of that number.
inline bool has_input(const Ort::ConstKernelInfo& info, size_t index) {
    return index < info.GetInputCount() && !info.GetInputName(index).empty();
}

// The threads of the session that runs an operator.
inline Parallel parallel(Ort::KernelContext& context) {
    auto run = [](void* pool, size_t tasks, void (*task)(void*, size_t), void* data) {
        static_cast<Ort::KernelContext*>(pool)->ParallelFor(task, tasks, tasks, data);
    };
    return {run, &context, hardware_threads()};
}

// An operator whose kernel is made by Kernel(info) and run by kernel.compute(context).
template <class Operator, class Kernel>
struct OperatorBase : Ort::CustomOpBase<Operator, OperatorBase<Operator, Kernel>, true> {
    OperatorBase() {
        OrtCustomOp::KernelComputeV2 = [](void* kernel, OrtKernelContext* context) noexcept -> OrtStatusPtr {
            return reported([&] {
                Ort::KernelContext wrapped(context);
                static_cast<Kernel*>(kernel)->compute(wrapped);
            });
        };
        OrtCustomOp::KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
    }
    OrtStatusPtr CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const noexcept {
        return reported([&] { *kernel = new Kernel(Ort::ConstKernelInfo{info}); });
    }
    OrtStatusPtr ComputeV2(OrtKernelContext*) { return nullptr; }

private:
    template <class Work>
    static OrtStatusPtr reported(Work&& work) noexcept try {
        work();
        return nullptr;
    } catch (const std::exception& error) { return Ort::GetApi().CreateStatus(ORT_RUNTIME_EXCEPTION, error.what()); }
};

}  // namespace llama_kernels
