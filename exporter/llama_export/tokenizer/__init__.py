"""A checkpoint's tokenizer files become one ``tokenizer.json`` that is exact in every runtime.

``open_source`` reads whatever files there are and refuses what contradicts itself; ``write_tokenizer_files``
writes them for a bundle or a converted checkpoint, ``write_flat_file`` what the C++ runtime reads;
``SourceTokenizer.reference`` is what they are proven by.
"""

from __future__ import annotations

from llama_export.tokenizer.files import write_tokenizer_files, write_tokenizer_json
from llama_export.tokenizer.flat_file import FLAT_FILE, why_not, write_flat_file
from llama_export.tokenizer.source import SourceTokenizer, open_source

__all__ = [
    "FLAT_FILE",
    "SourceTokenizer",
    "open_source",
    "why_not",
    "write_flat_file",
    "write_tokenizer_files",
    "write_tokenizer_json",
]
