#!/usr/bin/env bash
# Puts ONNX Runtime where CMake looks for it: its C headers and its library.
#
#   fetch_onnxruntime.sh FOLDER [PYTHON]
#
# FOLDER/include gets the headers of Debian's libonnxruntime-dev, from the package sources that this machine
# is configured with (where its release is too old to have the package, from a newer release of the same
# sources). FOLDER/lib gets a link to the library of the onnxruntime wheel that PYTHON has installed.
# The headers may be older than the library, never newer. Nothing is installed.
set -euo pipefail

FOLDER=${1:?name the folder to put include/ and lib/ into}
PYTHON=${2:-python3}
PACKAGE=libonnxruntime-dev
NEWER=trixie

mkdir -p "$FOLDER/include" "$FOLDER/lib"
FOLDER=$(cd "$FOLDER" && pwd)
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT

fetch_headers() {
    command -v apt-get >/dev/null || { echo "error: apt-get not found; unpack ONNX Runtime's headers into $FOLDER/include" >&2; return 2; }
    cd "$WORK"
    if ! apt-get download "$PACKAGE" >/dev/null 2>&1; then
        # The machine's first Debian source, asked for a newer release, with state folders of its own.
        local site
        site=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Origin: Debian' | head -n 1)
        [ -n "$site" ] || { echo "error: no Debian package source is configured; unpack the headers into $FOLDER/include" >&2; return 2; }
        mkdir -p lists/partial cache/archives/partial
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $site $NEWER main" >newer.list
        local own=(-o Dir::Etc::sourcelist="$WORK/newer.list" -o Dir::Etc::sourceparts=/dev/null
            -o Dir::State::lists="$WORK/lists" -o Dir::Cache="$WORK/cache" -o APT::Sandbox::User=root)
        apt-get "${own[@]}" update >/dev/null && apt-get "${own[@]}" download "$PACKAGE" >/dev/null ||
            { echo "error: $PACKAGE is in no configured package source; unpack the headers into $FOLDER/include" >&2; return 2; }
    fi
    dpkg -x "$PACKAGE"_*.deb unpacked
    find unpacked/usr/include -name 'onnxruntime_c_api.h' -printf '%h\n' | head -n 1 |
        while read -r from; do cp "$from"/*.h "$FOLDER/include/"; done
}

[ -f "$FOLDER/include/onnxruntime_c_api.h" ] || (fetch_headers)

library=$("$PYTHON" - <<'PY'
import glob, importlib.util, os, sys
spec = importlib.util.find_spec("onnxruntime")
found = glob.glob(os.path.join(os.path.dirname(spec.origin), "capi", "libonnxruntime.so.*")) if spec else []
print(found[0] if found else "")
PY
)
[ -n "$library" ] || { echo "error: $PYTHON has no onnxruntime package; pip install onnxruntime" >&2; exit 2; }
ln -sf "$library" "$FOLDER/lib/libonnxruntime.so"
ln -sf "$library" "$FOLDER/lib/libonnxruntime.so.1"
