#!/usr/bin/env bash
# Cross-compiles for aarch64, and replays a bundle's known answers there, emulated.
#
#   check_aarch64.sh BUNDLE BUILD [PYTHON]
#
# BUILD is a folder to work in. Needs cmake, g++-aarch64-linux-gnu and nlohmann-json3-dev. ONNX Runtime's library
# is that of the aarch64 wheel of the version that PYTHON has. The emulator is fetched: Debian 12's own
# (QEMU 7.2) ends with a segmentation fault while it loads ONNX Runtime 1.32, whatever the program.
set -euo pipefail

BUNDLE=$(cd "${1:?name a bundle}" && pwd)
BUILD=${2:?name a folder to build in}
PYTHON=${3:-python3}
HERE=$(cd "$(dirname "$0")" && pwd)

mkdir -p "$BUILD"
BUILD=$(cd "$BUILD" && pwd)
"$HERE/fetch_onnxruntime.sh" "$BUILD/onnxruntime" "$PYTHON"
if [ ! -d "$BUILD/wheel/onnxruntime" ]; then
    version=$("$PYTHON" -c 'import importlib.metadata as m; print(m.version("onnxruntime"))')
    "$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --platform manylinux_2_28_aarch64 --dest "$BUILD/wheel" "onnxruntime==$version" 2>/dev/null
    "$PYTHON" -m zipfile -e "$BUILD"/wheel/onnxruntime-*.whl "$BUILD/wheel"
fi
emulator=$BUILD/qemu/usr/bin/qemu-aarch64
[ -x "$emulator" ] || "$HERE/fetch_debian_package.sh" qemu-user "$BUILD/qemu" newer

cmake -S "$HERE" -B "$BUILD/build" --toolchain "$HERE/cmake/aarch64-linux-gnu.cmake" \
    -DORT_HOME="$BUILD/onnxruntime" -DLLAMA_RUNTIME_TESTS=OFF >/dev/null
cmake --build "$BUILD/build" --parallel 2 >/dev/null
LLAMA_RUNTIME_ONNXRUNTIME=$(echo "$BUILD"/wheel/onnxruntime/capi/libonnxruntime.so.*) \
    "$emulator" -L /usr/aarch64-linux-gnu "$BUILD/build/llama-selftest" "$BUNDLE"
