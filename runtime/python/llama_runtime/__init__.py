"""Run a llama-export bundle: text in, text out, without PyTorch.

>>> import llama_runtime
>>> llama_runtime.generate("artifacts/demo", "Once upon a time", max_new_tokens=32)  # doctest: +SKIP

``load`` opens a bundle once for many prompts, ``Conversation`` keeps a chat's history and cache;
``Session`` underneath maps token ids to logits.
"""

from llama_runtime.batch import Batch, Request
from llama_runtime.cache import KVCache
from llama_runtime.chat_template import ChatTemplate
from llama_runtime.conversation import Conversation
from llama_runtime.errors import (
    CacheError,
    ChatError,
    LlamaRuntimeError,
    ManifestError,
    MissingExtraError,
    OptionError,
    PromptError,
    SelftestError,
    SessionError,
    TokenizerError,
)
from llama_runtime.generate import Generator, generate, load
from llama_runtime.generation import Generation, Piece, Timings
from llama_runtime.logprobs import TokenLogprobs
from llama_runtime.manifest import Manifest, check_hashes, check_structure, read_manifest
from llama_runtime.opening import open_session
from llama_runtime.options import SamplingOptions
from llama_runtime.prefix_cache import PrefixCache
from llama_runtime.selftest import Difference, SelftestReport, selftest
from llama_runtime.session import Session
from llama_runtime.tasks import (
    Answer,
    Answerer,
    Classification,
    Classifier,
    Embedder,
    Tag,
    Tagger,
    entities,
    load_answerer,
    load_classifier,
    load_embedder,
    load_tagger,
)
from llama_runtime.tokenizer import Tokenizer, open_tokenizer

__all__ = [
    "Answer",
    "Answerer",
    "Batch",
    "CacheError",
    "ChatError",
    "ChatTemplate",
    "Classification",
    "Classifier",
    "Conversation",
    "Difference",
    "Embedder",
    "Generation",
    "Generator",
    "KVCache",
    "LlamaRuntimeError",
    "Manifest",
    "ManifestError",
    "MissingExtraError",
    "OptionError",
    "Piece",
    "PrefixCache",
    "PromptError",
    "Request",
    "SamplingOptions",
    "SelftestError",
    "SelftestReport",
    "Session",
    "SessionError",
    "Tag",
    "Tagger",
    "Timings",
    "TokenLogprobs",
    "Tokenizer",
    "TokenizerError",
    "check_hashes",
    "check_structure",
    "entities",
    "generate",
    "load",
    "load_answerer",
    "load_classifier",
    "load_embedder",
    "load_tagger",
    "open_session",
    "open_tokenizer",
    "read_manifest",
    "selftest",
]
