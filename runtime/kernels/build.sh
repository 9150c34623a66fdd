#!/usr/bin/env bash
# Builds the CPU kernels, tests them, and puts the library where the Python runtime finds it.
#
#   build.sh [PYTHON]
#
# What is missing (a compiler, CMake, ONNX Runtime's headers) is one line, and nothing is built: exit code 0.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${1:-python3}
BUILD=build/kernels

skip() {
    echo "kernels: skipped, $1; bundles run with ONNX Runtime's own"
    exit 0
}

for need in cmake "${CXX:-c++}"; do
    command -v "$need" >/dev/null || skip "$need not found"
done
runtime/cpp/fetch_onnxruntime.sh build/onnxruntime "$PYTHON" >/dev/null 2>&1 ||
    skip "ONNX Runtime's headers cannot be fetched (put them into build/onnxruntime/include)"
cmake -S runtime/kernels -B $BUILD -DONNXRUNTIME_INCLUDE="$PWD/build/onnxruntime/include" >/dev/null
cmake --build $BUILD --parallel >$BUILD/build.log || { cat $BUILD/build.log >&2; exit 1; }
$BUILD/kernels_test >$BUILD/test.log || { cat $BUILD/test.log >&2; exit 1; }
cp $BUILD/libllama_kernels.* runtime/python/llama_runtime/
echo "kernels: in runtime/python/llama_runtime; LLAMA_EXPORT_KERNELS=off is without"
