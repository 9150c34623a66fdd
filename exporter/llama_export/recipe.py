"""What is wanted: the choices of one export, frozen, from options or from a TOML file."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_export.errors import OptionError
from llama_export.graph.contract import (
    CACHE_DTYPES,
    COMPUTE,
    WHICH_STATES,
    CacheDtype,
    Compute,
    Extras,
    WhichStates,
)
from llama_export.model.attention import ATTENTION_PATHS, AttentionPath
from llama_export.model.config import TASKS, Task
from llama_export.weights.plan import WEIGHT_MODES, WeightMode
from llama_export.weights.precision import (
    BITS,
    DEFAULT_BLOCK_SIZE,
    GPTQ,
    PRECISIONS,
    Quantization,
    parse_keep,
)


@dataclass(frozen=True)
class Recipe:
    """The choices of one export; the defaults are exact.

    Attributes:
        attention: Which attention path the graph computes.
        weights: How the checkpoint's weights get into the bundle; None links them, or copies them where
            they do not stand on disk as the model needs them.
        precision: Storage dtype for ``weights="copy"``; None keeps the checkpoint's. ``int8`` and ``int4``
            store the matrices in blocks, and copy by themselves.
        block_size: Values of a quantized matrix that share a scale, 32, 64 or 128; None is 32.
        asymmetric: Each block has a code of its own for zero.
        keep: Modules that are stored otherwise, such as ``"lm_head=int8,layers.0.*=float32"``.
        quantizer: How the scales are found, ``search``, ``nearest`` or ``gptq``; None is ``gptq`` where there
            is a text to calibrate with, else ``search``.
        calibration: UTF-8 text that the model reads for ``gptq`` and for the scales of an int8 cache, which
            otherwise come from a few texts of our own.
        adapters: Folders of PEFT adapters, merged into the weights in this order.
        verify: Whether the staged bundle must equal the reference before it is published.
        task: What the bundle is for; None is what the checkpoint was saved for.
        hidden_states: Of a language model, give the ``last`` hidden states too, or ``all``.
        attentions: Of a language model on the eager path, give the attention weights too.
        inputs_embeds: A language model takes embeddings in place of token ids.
        compute: What the graph computes in: ``float16`` is for ``--device cuda``, whose fused attention takes
            no other; the weights are then float16 too.
        cache: Dtype of keys and values in a language model's cache; ``int8`` on the flash path alone.

    Raises:
        OptionError: A value is not one of those allowed.
    """

    attention: AttentionPath = "flash"
    weights: WeightMode | None = None
    precision: str | None = None
    block_size: int | None = None
    asymmetric: bool = False
    keep: str | None = None
    quantizer: str | None = None
    calibration: Path | None = None
    adapters: tuple[Path, ...] = ()
    verify: bool = True
    task: Task | None = None
    hidden_states: WhichStates | None = None
    attentions: bool = False
    inputs_embeds: bool = False
    compute: Compute = "float32"
    cache: CacheDtype = "float32"

    def __post_init__(self) -> None:
        _one_of("attention", self.attention, ATTENTION_PATHS)
        if self.weights is not None:
            _one_of("weights", self.weights, WEIGHT_MODES)
        if self.precision is not None:
            _one_of("precision", self.precision, (*PRECISIONS, *BITS))
        _one_of("cache", self.cache, CACHE_DTYPES)
        if self.task is not None:
            _one_of("task", self.task, TASKS)
        if self.hidden_states is not None:
            _one_of("hidden_states", self.hidden_states, WHICH_STATES)
        _one_of("compute", self.compute, COMPUTE)
        if self.compute == "float16" and self.precision not in (None, "float16"):
            raise OptionError(
                f"compute is float16, of which the weights are too, precision is {self.precision}",
                "leave --precision out",
            )
        for name in ("verify", "asymmetric", "attentions", "inputs_embeds"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"{name} is {getattr(self, name)!r}, must be true or false")
        self._check_quantization()

    def _check_quantization(self) -> None:
        if self.precision in BITS:
            _ = self.quantization  # which checks its values
            return
        others = () if self.cache == "int8" else ("calibration",)
        for name in ("block_size", "asymmetric", "keep", "quantizer", *others):
            if getattr(self, name) is not None and getattr(self, name) is not False:
                given = f"precision is {self.precision}" if self.precision else "no precision is given"
                raise OptionError(
                    f"{name} is for quantized matrices, {given}",
                    "add --precision int4 or int8, or leave it out",
                )

    @property
    def quantization(self) -> Quantization | None:
        """How matrices are quantized; None where they are not.

        Raises:
            OptionError: A value is not one of those allowed.
        """
        if self.precision not in BITS:
            return None
        if self.keep is not None and not isinstance(self.keep, str):
            raise OptionError(f"keep is {self.keep!r}, must be text", 'write it like "lm_head=int8"')
        method = self.quantizer or ("search" if self.calibration is None else GPTQ)
        wanted = self.calibration is not None and (self.cache == "float32" or method == GPTQ)
        if (method == GPTQ) != wanted:
            has = "none is given" if self.calibration is None else f"quantizer is {method}"
            raise OptionError(
                f"quantizer {GPTQ} and a text to calibrate with go together, {has}",
                "add --calibration FILE, or leave both out",
            )
        return Quantization(
            self.precision,
            DEFAULT_BLOCK_SIZE if self.block_size is None else self.block_size,
            not self.asymmetric,
            () if self.keep is None else parse_keep(self.keep),
            method,
        )

    @property
    def extras(self) -> Extras:
        """What the graph takes and gives besides the default."""
        return Extras(self.hidden_states, self.attentions, self.inputs_embeds, self.compute, self.cache)


def read_recipe(path: Path) -> Recipe:
    """Read a recipe from a TOML file.

    Raises:
        OptionError: The file cannot be read, a key is unknown or a value not allowed; named.
    """
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"{path}: cannot be read ({error.strerror})", "name a TOML file") from None
    except ValueError as error:  # TOML syntax and UTF-8 alike
        raise OptionError(f"{path}: not TOML ({error})", "recipes/ holds examples") from None
    if isinstance(table.get("calibration"), str):
        table["calibration"] = Path(table["calibration"])
    if "adapters" in table:
        table["adapters"] = _folders(path, table["adapters"])
    known = [field.name for field in dataclasses.fields(Recipe)]
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]}?" if near else "remove it; recipes/ holds examples"
            raise OptionError(f"{path}: unknown key {key}, known are {', '.join(known)}", hint)
    try:
        return Recipe(**table)
    except OptionError as error:
        raise OptionError(f"{path}: {error.message}", error.hint or "recipes/ holds examples") from None


def _folders(path: Path, value: Any) -> tuple[Path, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise OptionError(
            f"{path}: adapters is {value!r}, must be a list of folders", "recipes/ holds examples"
        )
    return tuple(Path(name) for name in value)


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise OptionError(f"{name} is {value!r}, must be one of {', '.join(allowed)}")
