"""Which head a checkpoint has, by its ``architectures`` and its tensors, and which one is wanted."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from llama_export.checkpoint.fields import Fields
from llama_export.errors import OptionError
from llama_export.model.config import (
    ARCHITECTURES,
    PROBLEM_TYPES,
    TASKS,
    HeadConfig,
    ProblemType,
    Task,
)

HEADS: dict[Task, str] = {
    "text-generation": "lm_head.weight",
    "text-classification": "score.weight",
    "token-classification": "score.weight",
    "question-answering": "qa_outputs.weight",
}
"""The weight without which there is no such head."""
HEAD_PREFIXES = ("lm_head.", "score.", "qa_outputs.")
_BARE_PREFIXES = ("embed_tokens.", "layers.", "norm.")


def canonical_name(key: str) -> str:
    """Name a tensor as in a causal language model's checkpoint.

    ``LlamaModel`` writes its weights without ``model.``, question answering has them under
    ``transformer.``; heads are outside of either.
    """
    if key.startswith("transformer."):
        return "model." + key.removeprefix("transformer.")
    return "model." + key if key.startswith(_BARE_PREFIXES) else key


def parse_head(
    fields: Fields,
    names: Collection[str],
    wanted: Task | None,
    lent: Mapping[str, tuple[int, ...]] | None = None,
) -> HeadConfig:
    """Decide on the head and read what config.json says about it.

    Args:
        fields: The whole of ``config.json``.
        names: Of all tensors of the checkpoint, as ``canonical_name`` has them.
        wanted: The task that was asked for; None takes the checkpoint's own.
        lent: Shapes of the heads that adapters bring, by name; None where there are no adapters.

    Raises:
        ConfigError: Labels or problem type are malformed.
        OptionError: The checkpoint has not the head that the task needs.
    """
    own = _own_task(fields, names)
    task = own if wanted is None else wanted
    if task not in TASKS:
        raise OptionError(f"task is {task!r}, must be one of {', '.join(TASKS)}")
    brought = {} if HEADS.get(task) in names else lent or {}
    if task != own and not _serves(task, fields, names) and HEADS[task] not in brought:
        has_not = "the checkpoint has not" if lent is None else "neither adapter nor checkpoint has"
        raise OptionError(
            f"task {task} needs a head that {has_not}, its own task is {own}",
            f"use --task {own} or feature-extraction" if own != "feature-extraction" else "leave --task out",
        )
    if task == "text-classification":
        labels = _labels(fields, brought if task != own else {})
        return HeadConfig(task, labels, _problem_type(fields, labels), pad_token_id=_pad_token(fields))
    if task == "token-classification":
        labels = _labels(fields, brought if task != own else {})
        return HeadConfig(task, labels, bias="score.bias" in (brought or names))
    return HeadConfig(task)


def task_of_architectures(fields: Fields) -> Task | None:
    """The task that ``architectures`` names; None where it is absent.

    Raises:
        ConfigError: It names another model, or several.
    """
    named = fields.get("architectures")
    if named is None:
        return None
    if not isinstance(named, list) or len(named) != 1 or named[0] not in ARCHITECTURES:
        raise fields.unsupported(
            "architectures",
            f"must be one of {', '.join(ARCHITECTURES)}",
            "other heads are code of their own, which no export can know; only LLaMA's are exported",
        )
    return ARCHITECTURES[named[0]]


def _own_task(fields: Fields, names: Collection[str]) -> Task:
    """What the checkpoint was saved as; where it does not say so, what its tensors allow."""
    named = task_of_architectures(fields)
    if named is not None:
        return named
    if "qa_outputs.weight" in names:
        return "question-answering"
    if "score.weight" in names:
        return "token-classification" if "score.bias" in names else "text-classification"
    has_head = "lm_head.weight" in names or fields.flag("tie_word_embeddings")
    return "text-generation" if has_head else "feature-extraction"


def _serves(task: Task, fields: Fields, names: Collection[str]) -> bool:
    """Whether a checkpoint that was saved for another task serves this one as well."""
    if task == "feature-extraction":
        return True
    named = task_of_architectures(fields)
    if task == "text-generation":
        tied = fields.flag("tie_word_embeddings") and named == "feature-extraction"
        return tied or "lm_head.weight" in names
    # score.weight alone does not say whether it scores texts or tokens, so the person may.
    return task == "token-classification" and named is None and "score.weight" in names


def _labels(fields: Fields, lent: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """The labels' names in their order; transformers leaves out what is its default of two.

    An adapter's head comes without names: the base's are kept only where they are as many.
    """
    count = lent.get("score.weight", (0,))[0]
    if count and count != len(_named_labels(fields)):
        return tuple(f"LABEL_{index}" for index in range(count))
    return _named_labels(fields)


def _named_labels(fields: Fields) -> tuple[str, ...]:
    named = fields.get("id2label")
    if named is None:
        count = fields.positive_int("num_labels", absent=2)
        return tuple(f"LABEL_{index}" for index in range(count))
    wanted = [str(index) for index in range(len(named))] if isinstance(named, dict) else []
    if not wanted or sorted(named) != sorted(wanted) or not all(isinstance(x, str) for x in named.values()):
        raise fields.wrong("id2label", "must map the numbers from 0 on to the names of the labels")
    return tuple(named[index] for index in wanted)


def _problem_type(fields: Fields, labels: tuple[str, ...]) -> ProblemType | None:
    kind: ProblemType | None = fields.get("problem_type")
    if kind is not None and kind not in PROBLEM_TYPES:
        raise fields.wrong("problem_type", f"must be one of {', '.join(PROBLEM_TYPES)}")
    if kind == "single_label_classification" and len(labels) == 1:
        raise fields.wrong(
            "problem_type", "and there is one label, which would always win", 'one score is a "regression"'
        )
    return kind


def _pad_token(fields: Fields) -> int | None:
    """The padding token; an id outside of the vocabulary, as Llama 1 conversions have it, is none."""
    token = fields.get("pad_token_id")
    if token is not None and type(token) is not int:
        raise fields.wrong("pad_token_id", "must be a token id")
    return token if token is not None and 0 <= token < fields.positive_int("vocab_size") else None
