#!/usr/bin/env bash
# Builds the CPU kernels, tests them, and puts the library where the Python runtime finds it in this tree.
#
# What is missing (needs.sh) is one line, and nothing is built: exit code 0.
set -euo pipefail
cd "$(dirname "$0")/../.."
BUILD=build/kernels

include=$(runtime/kernels/needs.sh) || {
    echo "kernels: skipped, $include; bundles run with ONNX Runtime's own"
    exit 0
}
cmake -S runtime/kernels -B $BUILD -DONNXRUNTIME_INCLUDE="$include" >/dev/null
cmake --build $BUILD --parallel >$BUILD/build.log || { cat $BUILD/build.log >&2; exit 1; }
$BUILD/kernels_test >$BUILD/test.log || { cat $BUILD/test.log >&2; exit 1; }
cp $BUILD/libllama_kernels.* runtime/python/llama_runtime/
echo "kernels: in runtime/python/llama_runtime; LLAMA_EXPORT_KERNELS=off is without"
