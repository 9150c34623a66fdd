#!/usr/bin/env bash
# Puts ONNX Runtime where CMake looks for it: its C headers and its library.
#
#   fetch_onnxruntime.sh FOLDER [PYTHON]
#
# FOLDER/include gets the headers (fetch_onnxruntime_headers.sh), FOLDER/lib a link to the library of the onnxruntime
# package that PYTHON has installed. The headers may be older than the library, never newer. Nothing is installed.
set -euo pipefail

FOLDER=${1:?name the folder to put include/ and lib/ into}
PYTHON=${2:-python3}

"$(dirname "$0")/fetch_onnxruntime_headers.sh" "$FOLDER"
mkdir -p "$FOLDER/lib"
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
