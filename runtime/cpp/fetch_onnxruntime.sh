#!/usr/bin/env bash
# Puts ONNX Runtime where CMake looks for it: its C headers and its library.
#
#   fetch_onnxruntime.sh FOLDER [PYTHON]
#
# FOLDER/include gets the headers of Debian's libonnxruntime-dev (fetch_debian_package.sh says from where),
# FOLDER/lib a link to the library of the onnxruntime package that PYTHON has installed. The headers may be
# older than the library, never newer. Nothing is installed.
set -euo pipefail

FOLDER=${1:?name the folder to put include/ and lib/ into}
PYTHON=${2:-python3}
HERE=$(cd "$(dirname "$0")" && pwd)

mkdir -p "$FOLDER/include" "$FOLDER/lib"
if [ ! -f "$FOLDER/include/onnxruntime_c_api.h" ]; then
    "$HERE/fetch_debian_package.sh" libonnxruntime-dev "$FOLDER/package" ||
        { echo "hint: unpack ONNX Runtime's headers into $FOLDER/include" >&2; exit 2; }
    headers=$(find "$FOLDER/package" -name onnxruntime_c_api.h -printf '%h\n' | head -n 1)
    cp "$headers"/*.h "$FOLDER/include/"
    rm -rf "$FOLDER/package"
fi

library=$("$PYTHON" - <<'PY'
import glob, importlib.util, os
spec = importlib.util.find_spec("onnxruntime")
found = glob.glob(os.path.join(os.path.dirname(spec.origin), "capi", "libonnxruntime.so.*")) if spec else []
print(found[0] if found else "")
PY
)
[ -n "$library" ] || { echo "error: $PYTHON has no onnxruntime package; pip install onnxruntime" >&2; exit 2; }
ln -sf "$library" "$FOLDER/lib/libonnxruntime.so"
ln -sf "$library" "$FOLDER/lib/libonnxruntime.so.1"
