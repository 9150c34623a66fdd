#!/usr/bin/env bash
# Prints the folder of ONNX Runtime's C headers; or what is missing to build the kernels, with exit code 1.
#
# The headers are those of ONNXRUNTIME_INCLUDE, ORT_HOME/include, build/onnxruntime/include or the system, else fetched
# from Debian's package sources into build/onnxruntime. They may be older than the library, never newer.
set -euo pipefail
cd "$(dirname "$0")/../.."
HEADER=onnxruntime_c_api.h

lacks() {
    echo "$1"
    exit 1
}

[ "${LLAMA_EXPORT_KERNELS:-}" != off ] || lacks "LLAMA_EXPORT_KERNELS is off"
for need in "${CXX:-c++}" cmake; do
    command -v "$need" >/dev/null || lacks "$need not found"
done
if [ -n "${ONNXRUNTIME_INCLUDE:-}" ]; then
    [ -f "$ONNXRUNTIME_INCLUDE/$HEADER" ] || lacks "ONNXRUNTIME_INCLUDE has no $HEADER"
fi
own=$PWD/build/onnxruntime/include
for folder in "${ONNXRUNTIME_INCLUDE:-}" "${ORT_HOME:+$ORT_HOME/include}" "$own" {/usr/local,/usr}/include{/onnxruntime,}; do
    [ ! -f "$folder/$HEADER" ] || { cd "$folder" && pwd && exit 0; }
done
timeout 60 runtime/cpp/fetch_onnxruntime_headers.sh build/onnxruntime >/dev/null 2>&1 ||
    lacks "ONNX Runtime's headers cannot be fetched (ONNXRUNTIME_INCLUDE names a folder that has them)"
echo "$own"
