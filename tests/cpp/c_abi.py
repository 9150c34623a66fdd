"""The C ABI of ``runtime/cpp`` through ctypes: what a C program can call, asked from Python."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from ctypes import POINTER, Structure, byref, c_char_p, c_double, c_float, c_int, c_int32, c_size_t, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STATUSES = (
    *("ok", "argument", "library", "manifest", "tokenizer", "prompt"),
    *("chat", "option", "session", "memory", "callback", "internal"),
)
FINISHES = (None, "eos", "stop", "length", "cancelled")


class ModelOptions(Structure):
    _fields_ = (
        *(("size", c_size_t), ("threads", c_int), ("onnxruntime", c_char_p), ("chunk_tokens", c_size_t)),
        *(("device", c_char_p), ("engine", c_char_p), ("tensorrt", c_char_p)),
    )


class Options(Structure):
    _fields_ = (
        ("size", c_size_t),
        ("temperature", c_double),
        ("top_k", c_int32),
        ("top_p", c_double),
        ("min_p", c_double),
        ("repetition_penalty", c_double),
        ("presence_penalty", c_double),
        ("frequency_penalty", c_double),
        ("no_repeat_ngram_size", c_int32),
        ("min_new_tokens", c_int32),
        ("max_new_tokens", c_int32),
        ("has_seed", c_int),
        ("seed", ctypes.c_uint64),
        ("logprobs", c_int32),
        ("ignore_eos", c_int),
        ("parse_special", c_int),
        ("stop", POINTER(c_char_p)),
        ("stop_count", c_size_t),
        ("bias_tokens", POINTER(c_int32)),
        ("bias_values", POINTER(c_float)),
        ("bias_count", c_size_t),
        ("prompt_lookup_num_tokens", c_int32),
    )


class Piece(Structure):
    _fields_ = (("token", c_int32), ("text", c_void_p), ("length", c_size_t), ("finish", c_int))


class Logprob(Structure):
    _fields_ = (("token", c_int32), ("logprob", c_double))


class Result(Structure):
    _fields_ = (
        ("text", c_void_p),
        ("length", c_size_t),
        ("tokens", POINTER(c_int32)),
        ("token_count", c_size_t),
        ("prompt_tokens", POINTER(c_int32)),
        ("prompt_token_count", c_size_t),
        ("finish", c_int),
        ("seed", ctypes.c_uint64),
        ("prefill_ms", c_double),
        ("decode_ms", c_double),
        ("logprobs", POINTER(Logprob)),
        ("logprobs_top", c_size_t),
    )


class Message(Structure):
    _fields_ = (("role", c_char_p), ("content", c_char_p))


class Label(Structure):
    _fields_ = (("label", c_char_p), ("score", c_double), ("logit", c_float))


class Span(Structure):
    _fields_ = (("label", c_char_p), ("score", c_double), ("start", c_size_t), ("end", c_size_t))


class Report(Structure):
    _fields_ = (
        ("answers", c_size_t),
        ("tokens", c_size_t),
        ("near_ties_taken", c_size_t),
        ("largest_difference", c_double),
        ("differences", POINTER(c_char_p)),
        ("difference_count", c_size_t),
    )


ON_PIECE = ctypes.CFUNCTYPE(c_int, c_void_p, POINTER(Piece))


class AbiError(Exception):
    """A status that is not ok, with what the handle says about it."""

    def __init__(self, status: int, message: str, hint: str) -> None:
        super().__init__(f"{STATUSES[status]}: {message}")
        self.status, self.message, self.hint = STATUSES[status], message, hint


@dataclass(frozen=True)
class Generated:
    text: str
    tokens: tuple[int, ...]
    prompt_tokens: tuple[int, ...]
    finish: str | None
    seed: int
    logprobs: list[list[tuple[int, float]]]


@functools.cache
def load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    for name in (
        "lr_model_error",
        "lr_model_hint",
        "lr_generator_error",
        "lr_generator_hint",
        "lr_model_task",
    ):
        getattr(library, name).restype = c_char_p
        getattr(library, name).argtypes = [c_void_p]
    library.lr_version.restype = library.lr_status_name.restype = c_char_p
    for name in ("lr_model_free", "lr_generator_free"):
        getattr(library, name).restype = None
        getattr(library, name).argtypes = [c_void_p]
    return library


class Model:
    """An opened bundle, and one generator in it."""

    def __init__(
        self,
        library: ctypes.CDLL,
        onnxruntime: Path,
        folder: Path,
        *,
        threads: int = 1,
        chunk_tokens: int = 0,
        **places: str,
    ) -> None:
        self.library = library
        options = ModelOptions()
        library.lr_model_options_init(byref(options))
        options.threads, options.onnxruntime = threads, str(onnxruntime).encode()
        options.chunk_tokens = chunk_tokens
        for name, value in places.items():
            setattr(options, name, value.encode())
        self._model, self.generator = c_void_p(), c_void_p()
        status = library.lr_model_open(str(folder).encode(), byref(options), byref(self._model))
        if status:
            message, hint = library.lr_model_error(self._model), library.lr_model_hint(self._model)
            library.lr_model_free(self._model)
            raise AbiError(status, message.decode(), hint.decode())
        self.check(library.lr_generator_new(self._model, byref(self.generator)))

    def close(self) -> None:
        self.library.lr_generator_free(self.generator)
        self.library.lr_model_free(self._model)

    def new_generator(self) -> c_void_p:
        generator = c_void_p()
        self.check(self.library.lr_generator_new(self._model, byref(generator)))
        return generator

    @property
    def task(self) -> str:
        return self.library.lr_model_task(self._model).decode()

    @property
    def max_positions(self) -> int:
        return self.library.lr_model_max_positions(self._model)

    @property
    def has(self) -> dict[str, bool]:
        return {
            name: bool(getattr(self.library, f"lr_model_has_{name}")(self._model))
            for name in ("tokenizer", "chat")
        }

    def check(self, status: int, generator: c_void_p | None = None) -> None:
        if status:
            generator = generator or self.generator
            message = self.library.lr_generator_error(generator)
            hint = self.library.lr_generator_hint(generator)
            raise AbiError(status, message.decode(), hint.decode())

    def encode(self, text: str | bytes, add_special: bool = True, parse_special: bool = False) -> list[int]:
        data = text.encode() if isinstance(text, str) else text
        ids, count = POINTER(c_int32)(), c_size_t()
        flags = add_special + 2 * parse_special
        self.check(
            self.library.lr_encode(self.generator, data, c_size_t(len(data)), flags, byref(ids), byref(count))
        )
        return ids[: count.value]

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        text, length = c_void_p(), c_size_t()
        array = (c_int32 * len(ids))(*ids)
        self.check(
            self.library.lr_decode(
                self.generator, array, c_size_t(len(ids)), int(skip_special), byref(text), byref(length)
            )
        )
        return ctypes.string_at(text.value or 0, length.value).decode() if length.value else ""

    def options(self, **changes: Any) -> Options:
        options = Options()
        self.library.lr_options_init(byref(options))
        stop, bias = changes.pop("stop", ()), changes.pop("logit_bias", {})
        if (seed := changes.pop("seed", None)) is not None:
            options.has_seed, options.seed = 1, seed
        for name, value in changes.items():
            assert hasattr(options, name), name
            setattr(options, name, value)
        options.stop = (c_char_p * len(stop))(*(text.encode() for text in stop))
        options.stop_count = len(stop)
        options.bias_tokens = (c_int32 * len(bias))(*bias)
        options.bias_values = (c_float * len(bias))(*bias.values())
        options.bias_count = len(bias)
        return options

    def generate(
        self,
        prompt: str | Sequence[int],
        on_piece: Callable[[int, str, str | None], bool] | None = None,
        generator: c_void_p | None = None,
        **changes: Any,
    ) -> Generated:
        if isinstance(prompt, str):
            data = prompt.encode()
            given: tuple[Any, ...] = (data, c_size_t(len(data)))
            call = self.library.lr_generate
        else:
            given = ((c_int32 * len(prompt))(*prompt), c_size_t(len(prompt)))
            call = self.library.lr_generate_ids
        return self._run(call, given, on_piece, generator, changes)

    def chat(
        self,
        messages: Sequence[dict[str, str]],
        on_piece: Callable[[int, str, str | None], bool] | None = None,
        **changes: Any,
    ) -> Generated:
        pairs = [Message(message["role"].encode(), message["content"].encode()) for message in messages]
        given = ((Message * len(pairs))(*pairs), c_size_t(len(pairs)))
        return self._run(self.library.lr_chat, given, on_piece, None, changes)

    def _run(
        self,
        call: Any,
        given: tuple[Any, ...],
        on_piece: Callable[[int, str, str | None], bool] | None,
        generator: c_void_p | None,
        changes: dict[str, Any],
    ) -> Generated:
        def forward(_: Any, piece: Any) -> int:
            assert on_piece is not None
            got = piece.contents
            text = ctypes.string_at(got.text, got.length).decode()
            return int(not on_piece(got.token, text, FINISHES[got.finish]))

        callback = ON_PIECE(forward) if on_piece else ON_PIECE()
        options, result = self.options(**changes), Result()
        generator = generator or self.generator
        self.check(call(generator, *given, byref(options), callback, None, byref(result)), generator)
        top, count = result.logprobs_top + 1, result.token_count
        told = [
            [(result.logprobs[i * top + j].token, result.logprobs[i * top + j].logprob) for j in range(top)]
            for i in range(count if result.logprobs else 0)
        ]
        return Generated(
            ctypes.string_at(result.text, result.length).decode(),
            tuple(result.tokens[:count]),
            tuple(result.prompt_tokens[: result.prompt_token_count]),
            FINISHES[result.finish],
            result.seed,
            told,
        )

    def embed(self, text: str, pooling: int = 0, normalize: bool = False) -> list[float]:
        data, vector, count = text.encode(), POINTER(c_float)(), c_size_t()
        size = c_size_t(len(data))
        self.check(
            self.library.lr_embed(
                self.generator, data, size, pooling, int(normalize), byref(vector), byref(count)
            )
        )
        return vector[: count.value]

    def classify(self, text: str) -> tuple[str, list[tuple[str, float, float]]]:
        data, labels, count, best = text.encode(), POINTER(Label)(), c_size_t(), c_size_t()
        size = c_size_t(len(data))
        self.check(
            self.library.lr_classify(self.generator, data, size, byref(labels), byref(count), byref(best))
        )
        found = [(label.label.decode(), label.score, label.logit) for label in labels[: count.value]]
        return found[best.value][0], found

    def tag(self, text: str) -> list[tuple[str, float, int, int]]:
        data, spans, count = text.encode(), POINTER(Span)(), c_size_t()
        size = c_size_t(len(data))
        self.check(self.library.lr_tag(self.generator, data, size, byref(spans), byref(count)))
        return [(span.label.decode(), span.score, span.start, span.end) for span in spans[: count.value]]

    def answer(self, question: str, context: str) -> tuple[float, int, int]:
        asked, given, span = question.encode(), context.encode(), Span()
        self.check(
            self.library.lr_answer(
                self.generator, asked, c_size_t(len(asked)), given, c_size_t(len(given)), byref(span)
            )
        )
        return span.score, span.start, span.end

    def selftest(self) -> tuple[Report, list[str]]:
        report = Report()
        self.check(self.library.lr_selftest(self.generator, byref(report)))
        return report, [text.decode() for text in report.differences[: report.difference_count]]
