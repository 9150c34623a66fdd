"""Replay a bundle's known answers: does it compute here what the reference computed at export?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llama_runtime.errors import ManifestError, SelftestError
from llama_runtime.generate import TASK, Generator, load
from llama_runtime.kernels import level_of
from llama_runtime.manifest import KnownAnswer, KnownOutput, Manifest, read_manifest
from llama_runtime.opening import Device, open_session
from llama_runtime.sampling import greedy
from llama_runtime.session import Session
from llama_runtime.tasks.batch import TextModel, run_padded
from llama_runtime.tasks.opening import open_text_model


@dataclass(frozen=True)
class Difference:
    """One thing that is not as the reference had it.

    Attributes:
        answer: Which of the known answers, from 0; known outputs are counted behind them.
        position: Index into the answer's tokens, or into an output; None for the prompt's own tokens.
        what: "token", "logit" or "prompt", or the name of an output.
        expected: What the reference had: a token, a logit, or the prompt's tokens.
        got: What this device has.
    """

    answer: int
    position: int | None
    what: str
    expected: int | float | tuple[int, ...]
    got: int | float | tuple[int, ...]

    def __str__(self) -> str:
        kind = "token" if self.what in ("token", "logit") else "index"
        place = "" if self.position is None else f" at {kind} {self.position}"
        return f"answer {self.answer}{place}: {self.what} is {self.got}, the reference has {self.expected}"


@dataclass(frozen=True)
class SelftestReport:
    """What the replay found.

    Attributes:
        answers: How many known answers were replayed.
        tokens: How many tokens were compared.
        near_ties_taken: Tokens that differ where the reference's best two were too close to tell.
        largest_logit_difference: Over all probes, absolute; None where there are none.
        differences: All that is wrong; empty when the bundle is right.
        kernels: The instructions of our own operators, where these were tried too; None where there are none.
    """

    answers: int
    tokens: int
    near_ties_taken: int
    largest_logit_difference: float | None
    differences: tuple[Difference, ...]
    kernels: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the bundle computes here what it should."""
        return not self.differences

    def check(self) -> None:
        """Raise SelftestError, which says the first difference, unless all is right."""
        if self.differences:
            more = len(self.differences) - 1
            rest = f", and {more} more" if more else ""
            raise SelftestError(
                f"the known answers differ: {self.differences[0]}{rest}",
                "check the files' hashes; if they are right, this device computes something else",
            )


@dataclass
class _Tally:
    tokens: int
    near_ties_taken: int
    logit_differences: list[float]
    differences: list[Difference]


def selftest(
    path: str | Path, threads: int | None = None, *, device: Device = "cpu", engine: str | None = None
) -> SelftestReport:
    """Open a bundle and replay its known answers: with our own kernels where they are there, and without.

    Where a device computes in fewer bits than the reference, logits may differ by the share of the largest
    one that its rounding can make, and another token may be chosen where that could change the order.

    Args:
        path: The bundle's folder.
        threads: As for ``load``; so are ``device`` and ``engine``.
        device: Where it runs.
        engine: Which of several engines.

    Raises:
        ManifestError: The bundle has no known answers.
        LlamaRuntimeError: Whatever ``load`` refuses.
    """
    task = read_manifest(Path(path)).task
    if task != TASK:
        return _selftest_outputs(path, open_text_model(path, task, threads, device, engine), threads)
    generator = load(path, threads, device=device, engine=engine)
    answers = generator.manifest.known_answers
    if not answers:
        raise ManifestError(f"{path}: the manifest has no known answers", "export again with verification")
    tally = _Tally(0, 0, [], [])
    for index, answer in enumerate(answers):
        _compare_prompt(generator, index, answer, tally)
    known = _that_fit(generator.manifest)
    for session in _with_and_without_kernels(generator.session, Path(path), threads):
        tally.tokens = 0  # of one session's replay
        for index, answer in enumerate(answers):
            _replay(session, index, answer, tally)
        if not tally.tokens:
            raise _too_short(path)
        _compare_known_outputs(session, known, len(answers), tally)
    return SelftestReport(
        answers=len(answers) + len(known),
        tokens=tally.tokens,
        near_ties_taken=tally.near_ties_taken,
        largest_logit_difference=max(tally.logit_differences, default=None),
        differences=tuple(tally.differences),
        kernels=level_of(generator.session.kernels),
    )


def _with_and_without_kernels(session: Session, folder: Path, threads: int | None) -> Iterator[Session]:
    yield session
    if session.kernels is not None:
        yield open_session(folder, session.manifest, threads=threads, own_kernels=False)


def _selftest_outputs(path: str | Path, model: TextModel, threads: int | None) -> SelftestReport:
    """Replay a task head's known outputs."""
    known = model.manifest.known_outputs
    if not known:
        raise ManifestError(f"{path}: the manifest has no known outputs", "export again with verification")
    known = _that_fit(model.manifest)
    if not known:
        raise _too_short(path)
    tally = _Tally(0, 0, [], [])
    for session in _with_and_without_kernels(model.session, Path(path), threads):
        _compare_known_outputs(session, known, 0, tally)
    return SelftestReport(
        answers=len(known),
        tokens=sum(len(answer.token_ids) for answer in known),
        near_ties_taken=0,
        largest_logit_difference=max(tally.logit_differences),
        differences=tuple(tally.differences),
        kernels=level_of(model.session.kernels),
    )


def _that_fit(manifest: Manifest) -> tuple[KnownOutput, ...]:
    """The known outputs of texts that an engine, which may be shorter than the model, can read."""
    most = manifest.limits.max_position_embeddings
    return tuple(answer for answer in manifest.known_outputs if len(answer.token_ids) <= most)


def _too_short(path: str | Path) -> ManifestError:
    return ManifestError(
        f"{path}: every known answer is longer than the engine", "build it with a larger --max-seq"
    )


def _compare_known_outputs(session: Session, known: Sequence[KnownOutput], first: int, tally: _Tally) -> None:
    """Each text alone and all as one padded batch; the answers are counted from ``first``."""
    if not known:
        return
    names = sorted({probe.output for answer in known for probe in answer.probes})
    rows = [answer.token_ids for answer in known]
    alone = [run_padded(session, [row], names)[0] for row in rows]
    for found in (alone, run_padded(session, rows, names)):
        for index, (answer, outputs) in enumerate(zip(known, found, strict=True), first):
            _compare_outputs(index, answer, outputs, session.rounding, tally)


def _compare_outputs(
    index: int, answer: KnownOutput, outputs: dict[str, np.ndarray], rounding: float, tally: _Tally
) -> None:
    for probe in answer.probes:
        flat = outputs[probe.output].reshape(-1)
        allowed = max(answer.tolerance, rounding * _largest(flat))
        for place, expected in zip(probe.indices, probe.values, strict=True):
            # An index beyond the output is a difference like a wrong number, not a crash.
            got = float(flat[place]) if place < flat.size else float("nan")
            tally.logit_differences.append(abs(got - expected))
            if not abs(got - expected) <= allowed:
                tally.differences.append(Difference(index, place, probe.output, expected, got))


def _largest(values: np.ndarray) -> float:
    """The largest magnitude; 0 of nothing."""
    return float(np.abs(values).max(initial=0))


def _compare_prompt(generator: Generator, index: int, answer: KnownAnswer, tally: _Tally) -> None:
    if generator.tokenizer is None or answer.prompt is None:
        return
    got = tuple(generator.tokenizer.encode(answer.prompt))
    if got != answer.prompt_tokens:
        tally.differences.append(Difference(index, None, "prompt", answer.prompt_tokens, got))


def _replay(session: Session, index: int, answer: KnownAnswer, tally: _Tally) -> None:
    # An engine may be shorter than the model: what it holds is replayed.
    most = session.manifest.limits.max_position_embeddings
    room = min(len(answer.prompt_tokens) + len(answer.tokens), most)
    tokens = answer.tokens[: max(room - len(answer.prompt_tokens), 0)]
    if not tokens:
        return
    tally.tokens += len(tokens)
    cache = session.new_cache(capacity=room)
    logits = session.prefill(np.array([answer.prompt_tokens], np.int64), cache)
    for position, expected in enumerate(tokens):
        got, allowed = greedy(logits[0]), session.rounding * _largest(logits[0])
        # Each of the two may be off by what rounding can make.
        is_near = float(logits[0, got] - logits[0, expected]) <= 2 * allowed
        if got != expected and (position in answer.near_ties or is_near):
            tally.near_ties_taken += 1
        elif got != expected:
            tally.differences.append(Difference(index, position, "token", expected, got))
        _compare_probes(index, position, answer, logits[0], max(answer.tolerance, allowed), tally)
        if position + 1 < len(tokens):
            # The reference's token, whatever ours was: one difference does not hide the next.
            logits = session.decode(np.array([expected], np.int64), cache)


def _compare_probes(
    index: int, position: int, answer: KnownAnswer, logits: np.ndarray, allowed: float, tally: _Tally
) -> None:
    for probe in answer.probes:
        if probe.position != position:
            continue
        for token, expected in zip(probe.token_ids, probe.logits, strict=True):
            difference = abs(float(logits[token]) - expected)
            tally.logit_differences.append(difference)
            # Written so that a NaN is a difference.
            if not difference <= allowed:
                tally.differences.append(Difference(index, position, "logit", expected, float(logits[token])))
