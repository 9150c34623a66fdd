"""What candidate and reference compute, each computed once, when a rung first asks for it.

Reading weights, running the bundle and comparing files keep one core busy each for much of their time, so
what does not depend on the bundle's tokens runs beside what does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import Tensor

from llama_export.checkpoint import Checkpoint
from llama_export.errors import OptionError
from llama_export.graph.contract import ATTENTIONS, HIDDEN_STATES, LAST_HIDDEN_STATE
from llama_export.parity.candidate import Continuation, continue_greedily, prefill_in_chunks
from llama_export.parity.debug_graph import DebugGraph
from llama_export.parity.layers import compare_layers
from llama_export.parity.prompts import (
    DEFAULT_TEXTS,
    Workload,
    choose_passages,
    choose_prompts,
    choose_text,
    random_tokens,
    workload,
)
from llama_export.parity.reference import WEIGHTS, Past, Read, Watch, reference_logits
from llama_export.parity.report import LayerError, TensorDifference
from llama_export.parity.scene import Row, Scene, play
from llama_export.parity.soft_prompt import for_texts, soft_prompt_past
from llama_export.parity.stored_cache import stored_cache
from llama_export.parity.stored_weights import coarsest_blocks, shown, stored_weights
from llama_export.parity.tolerances import INT8_CACHE, Quantity, Tolerance, rounding_of, tolerances_of
from llama_export.parity.weight_values import compare_weights
from llama_export.quantize.cache import MakeCache, float_cache
from llama_runtime.extras import Outputs, hidden_state_names
from llama_runtime.kernels import kernels_for
from llama_runtime.manifest import Manifest
from llama_runtime.opening import open_session
from llama_runtime.session import Session
from llama_runtime.tokenizer import open_tokenizer

RUNTIME = "onnxruntime-cpu"
LAST_TOKENS = 16
_CHUNK_TOKENS = 100  # no divisor of a context: the last chunk is a short one


class Evidence:
    """One bundle and one checkpoint, and what both say to the same tokens.

    Args:
        folder: The bundle.
        manifest: What ``read_manifest`` returned for it.
        checkpoint: What it was exported from.
        texts: Prompts; the default ones where None.
        quick: Leave out all but the lowest rungs.
        threads: For ONNX Runtime; None is every core.
        pool: Runs what can run beside the caller.

    Attributes:
        rounding: What the weights lost on their way: ``"exact"``, ``"float16"``, ...; or the cache alone.
        make_cache: What keeps keys and values as exactly as the bundle does.
        prompts: What the bundle is asked.
        workload: How much it is asked.
        text: What the cost of rounding a language model is measured on.
        passages: The same for a task head.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        checkpoint: Checkpoint,
        *,
        texts: Sequence[str] | None,
        quick: bool,
        threads: int | None,
        pool: ThreadPoolExecutor,
    ) -> None:
        self.folder, self.manifest, self.checkpoint = folder, manifest, checkpoint
        self.config, self.quick, self.threads = for_texts(checkpoint), quick, threads
        tokenizer = None
        if manifest.tokenizer is not None:
            tokenizer = open_tokenizer(folder, manifest.tokenizer, manifest.tokens)
        self.prompts = choose_prompts(self.config, tokenizer, texts or DEFAULT_TEXTS)
        if not self.prompts:
            raise OptionError("the prompts hold no token, needs at least one", "write longer ones")
        values = sum(math.prod(tensor.shape) for tensor in checkpoint.tensors.values())
        self.workload: Workload = workload(self.config, values, len(self.prompts))
        self.text = choose_text(self.config, tokenizer, texts, self.workload.text_tokens)
        self.passages = choose_passages(self.config, tokenizer, texts)
        self.stored = stored_weights(folder, manifest, checkpoint.config)
        coarsest = coarsest_blocks(self.stored.values())
        self.make_cache = stored_cache(folder, manifest)
        self.rounding = coarsest or rounding_of(checkpoint.dtype, manifest.precision)
        if self.rounding == "exact" and self.make_cache is not float_cache:
            self.rounding = INT8_CACHE
        self._weights: Future[list[TensorDifference]] = pool.submit(compare_weights, self.stored, checkpoint)
        # What other runtimes compute too; our own kernels are a rung of their own.
        self.session: Session = open_session(
            folder, manifest, threads=threads, widen_at_load=False, own_kernels=False
        )
        self._batch: Future[list[Outputs]] | None = None if quick else pool.submit(self._play_batch)

    @property
    def tolerances(self) -> dict[Quantity, Tolerance]:
        """The table's column for this bundle."""
        return tolerances_of(self.rounding, RUNTIME, self.manifest.cache)

    def read_stored(self, name: str) -> Tensor:
        """A weight as the bundle stores it."""
        return self.stored[name].read()

    def read_source(self, name: str) -> Tensor:
        """A weight as the checkpoint has it."""
        return self.checkpoint.read(name)

    @property
    def weights(self) -> list[TensorDifference]:
        """Every stored tensor against the checkpoint's."""
        return self._weights.result()

    @cached_property
    def continued(self) -> list[Continuation]:
        """Prompts read and continued by the candidate, through the runtime that ships."""
        n, extra = self.workload.new_tokens, self.workload.chunk_tokens
        return [
            continue_greedily(self.session, prompt.tokens, n, self._more(prompt.tokens, extra))
            for prompt in self.prompts[: self.workload.continued]
        ]

    @cached_property
    def fast_session(self) -> Session | None:
        """The bundle with our own kernels; None where they are not for it, or not here."""
        if kernels_for(self.manifest) is None:
            return None
        session = open_session(self.folder, self.manifest, threads=self.threads)
        return None if session.kernels is None else session

    @cached_property
    def first_layer(self) -> list[LayerError]:
        """Every intermediate tensor of the first layer, over the first prompt."""
        return self.compare_layers(self.prompt_scene, layers=1)

    def compare_layers(self, scene: Scene, *, layers: int | None = None) -> list[LayerError]:
        """Every intermediate tensor of the first layers, or of the whole model."""
        return compare_layers(
            *(self.config, self.read_stored, self._debug_graph, scene),
            layers=layers,
            make_cache=self.make_cache,
        )

    @cached_property
    def _debug_graph(self) -> DebugGraph:
        return DebugGraph(self.folder, self.manifest, self.threads)

    @property
    def prompt_scene(self) -> Scene:
        """The first prompt, read in one go."""
        return Scene((Row(self.prompts[0].tokens),), past=self.past)

    @property
    def continued_scene(self) -> Scene:
        """The first continuation: its prompt, its tokens one at a time, its chunk."""
        found = self.continued[0]
        row = Row(found.prompt, found.sequence[len(found.prompt) :])
        return Scene((row,), (*(1 for _ in found.tokens[1:]), len(found.chunk)), past=self.past)

    @staticmethod
    def _more(tokens: tuple[int, ...], count: int) -> tuple[int, ...]:
        """As many tokens to read on with: the prompt's own, again."""
        return (tokens * count)[:count]

    def batch_scene(self, left: bool | None) -> Scene:
        """All prompts as one batch, then one more token each.

        Args:
            left: Rows padded in front, rows padded behind; None is both in one batch.
        """
        sides = (True, False) if left is None else (left,)
        following = 1 if self.config.context_length > max(len(p.tokens) for p in self.prompts) else 0
        rows = tuple(
            Row(prompt.tokens, prompt.tokens[:following], side) for side in sides for prompt in self.prompts
        )
        return Scene(rows, (1,) * following)

    def _play_batch(self) -> list[Outputs]:
        """The outputs of each row of the batch: first those padded in front, then those padded behind."""
        return play(self.session.run, self.manifest, self.batch_scene(None))

    def padded_rows(self, left: bool) -> list[Outputs]:
        """The candidate's outputs for the rows padded on one side."""
        assert self._batch is not None
        rows, count = self._batch.result(), len(self.prompts)
        return rows[:count] if left else rows[count:]

    def padded(self, left: bool) -> list[tuple[np.ndarray, np.ndarray]]:
        """Pairs of the candidate's and the reference's logits for the rows padded on one side."""
        got = [row["logits"] for row in self.padded_rows(left)]
        return list(zip(got, self.wanted_rows, strict=True))

    @cached_property
    def context(self) -> tuple[int, ...]:
        """Random tokens as many as the model has positions; empty where that is too much to ask."""
        fits = self.workload.whole_context and not self.quick
        return random_tokens(self.config, self.config.context_length) if fits else ()

    @cached_property
    def context_logits(self) -> np.ndarray:
        """[N, V] logits of the last tokens of the context."""
        return prefill_in_chunks(self.session, self.context, _CHUNK_TOKENS, self._last)

    @property
    def _last(self) -> int:
        return min(LAST_TOKENS, len(self.context))

    @cached_property
    def _wanted(self) -> list[np.ndarray]:
        """The reference's logits for everything above, in one pass over the weights."""
        sequences = [found.sequence for found in self.continued]
        reads = [found.reads for found in self.continued]
        last = [len(sequence) for sequence in sequences]
        if not self.quick:
            scene = self.batch_scene(True)
            rows = [row.tokens for row in scene.rows]
            reads += [(len(row.first), *scene.steps) for row in scene.rows]
            sequences, last = sequences + rows, last + [len(row) for row in rows]
        if self.context:
            sequences, last = [*sequences, self.context], [*last, self._last]
            reads.append((len(self.context),))
        # The batch is fed to the graph itself, as other runtimes do: without a learned prompt.
        pasts = [self.past] * len(sequences)
        if not self.quick:
            first = len(self.continued)
            pasts[first : first + len(self.prompts)] = [None] * len(self.prompts)
        return self.reference(
            *(self.read_stored, sequences, reads, last, "reference"), pasts=pasts, make_cache=self.make_cache
        )

    @cached_property
    def past(self) -> Past | None:
        """What a learned prompt puts in front of every text; None where there is none."""
        prompt = self.checkpoint.soft_prompt
        return None if prompt is None else soft_prompt_past(self.checkpoint.config, prompt, self.read_source)

    def reference(
        self,
        read: Read,
        sequences: Sequence[Sequence[int]],
        reads: Sequence[Sequence[int]],
        last: Sequence[int],
        title: str,
        watch: Watch | None = None,
        pasts: Sequence[Past | None] | None = None,
        make_cache: MakeCache = float_cache,
    ) -> list[np.ndarray]:
        """The reference's logits, with progress: [N, V] for the last N tokens of each sequence."""
        with shown(read, title, self.stored.values()) as reading:
            found = reference_logits(
                *(self.config, reading, sequences),
                reads=reads,
                last=last,
                watch=watch,
                pasts=pasts,
                make_cache=make_cache,
            )
            return [logits.numpy() for logits in found]

    @cached_property
    def wanted_extras(self) -> list[Outputs]:
        """The reference's hidden states [T, hidden_size] and attentions [T, H, T] of each prompt, by name."""
        count, rows = self.config.num_hidden_layers, [prompt.tokens for prompt in self.prompts]
        names = {"model.embed_tokens": HIDDEN_STATES.format(i=0), "model.norm": HIDDEN_STATES.format(i=count)}
        for i in range(count):
            names[f"model.layers.{i}"] = HIDDEN_STATES.format(i=i + 1)
            names[f"model.layers.{i}.{WEIGHTS}"] = ATTENTIONS.format(i=i)
        del names[f"model.layers.{count - 1}"]  # the last hidden states are those behind the norm
        found: list[Outputs] = [{} for _ in rows]

        def watch(row: int, name: str, values: Tensor) -> None:
            if name in names:
                found[row][names[name]] = values.numpy()

        lengths = [len(row) for row in rows]
        self.reference(
            *(self.read_stored, rows, [[n] for n in lengths], lengths, "extras", watch),
            make_cache=self.make_cache,
        )
        return [row | {LAST_HIDDEN_STATE: row[HIDDEN_STATES.format(i=count)]} for row in found]

    @cached_property
    def _text_outputs(self) -> tuple[Outputs, Outputs]:
        names, n = hidden_state_names(self.manifest)[-1:], len(self.text)
        cache, ids = self.session.new_cache(capacity=n), np.array([self.text], np.int64)
        got = self.session.prefill(ids, cache, all_logits=True, outputs=names)
        want: Outputs = {}

        def watch(row: int, name: str, values: Tensor) -> None:
            if name == "model.norm":
                want[names[0]] = values.numpy()

        (want["logits"],) = self.reference(
            *(self.read_source, [self.text], [[n]], [n], "unrounded"),
            watch=watch if names else None,
            pasts=[self.past],
        )
        return {name: array[0] for name, array in got.items()}, want

    @property
    def text_logits(self) -> tuple[np.ndarray, np.ndarray]:
        """[T, V] logits of the text: the candidate's, and the reference's with the unrounded weights."""
        got, want = self._text_outputs
        return got["logits"], want["logits"]

    @property
    def text_states(self) -> tuple[np.ndarray, np.ndarray]:
        """[T, hidden_size] last hidden states of the text, where the bundle gives any: the same two."""
        got, want = self._text_outputs
        name = hidden_state_names(self.manifest)[-1]
        return got[name], want[name]

    @property
    def wanted(self) -> list[np.ndarray]:
        """[T + n - 1 + m, V] reference logits of each continuation."""
        return self._wanted[: len(self.continued)]

    @property
    def wanted_rows(self) -> list[np.ndarray]:
        """[N, V] reference logits of each of the batch's prompts and what follows it."""
        return self._wanted[len(self.continued) : len(self.continued) + len(self.prompts)]

    @property
    def wanted_context(self) -> np.ndarray:
        """[N, V] reference logits of the last tokens of the context."""
        return self._wanted[-1]

    @property
    def scale(self) -> float:
        """The largest reference logit, which errors are fractions of."""
        return max(float(np.abs(logits).max()) for logits in self.wanted)
