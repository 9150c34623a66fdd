#!/usr/bin/env bash
# Puts ONNX Runtime's C headers into FOLDER/include.
#
#   fetch_onnxruntime_headers.sh FOLDER
#
# They are those of Debian's libonnxruntime-dev (fetch_debian_package.sh says from where). Nothing is installed.
set -euo pipefail

FOLDER=${1:?name the folder to put include/ into}
HERE=$(cd "$(dirname "$0")" && pwd)

[ ! -f "$FOLDER/include/onnxruntime_c_api.h" ] || exit 0
"$HERE/fetch_debian_package.sh" libonnxruntime-dev "$FOLDER/package" ||
    { echo "hint: unpack ONNX Runtime's headers into $FOLDER/include" >&2; exit 2; }
headers=$(find "$FOLDER/package" -name onnxruntime_c_api.h -printf '%h\n' | head -n 1)
mkdir -p "$FOLDER/include"
cp "$headers"/*.h "$FOLDER/include/"
rm -rf "$FOLDER/package"
