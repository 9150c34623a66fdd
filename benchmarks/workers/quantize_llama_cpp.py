"""llama.cpp: its converter to bfloat16, then its quantizer, which bfloat16 itself needs not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import llama_cpp

TYPES = {
    "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "Q4_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
    "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
}

interpreter, convert, checkpoint, output, kind = sys.argv[1:]
target = Path(output) / "model.gguf"
wide = target if kind == "BF16" else Path(output) / "wide.gguf"
subprocess.run([interpreter, convert, checkpoint, "--outtype", "bf16", "--outfile", wide], check=True)
if kind == "BF16":
    sys.exit()
options = llama_cpp.llama_model_quantize_default_params()
options.ftype = TYPES[kind]
options.nthread = 2
code = llama_cpp.llama_model_quantize(str(wide).encode(), str(target).encode(), options)
wide.unlink()
sys.exit(code)
