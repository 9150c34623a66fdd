"""Our runtime without our kernels: ONNX Runtime's own; see ``generate_ours``."""

import os

os.environ["LLAMA_EXPORT_KERNELS"] = "off"

import generate_ours  # noqa: F401  (which runs)
