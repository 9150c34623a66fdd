"""llama.cpp: its converter to bfloat16, then its quantizer; both are what a person has to run."""

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
wide = Path(output) / "wide.gguf"
subprocess.run([interpreter, convert, checkpoint, "--outtype", "bf16", "--outfile", wide], check=True)
options = llama_cpp.llama_model_quantize_default_params()
options.ftype = TYPES[kind]
options.nthread = 2
target = Path(output) / "model.gguf"
code = llama_cpp.llama_model_quantize(str(wide).encode(), str(target).encode(), options)
wide.unlink()
sys.exit(code)
