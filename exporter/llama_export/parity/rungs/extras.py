"""What a language model gives besides logits: hidden states and attention weights."""

from __future__ import annotations

import numpy as np

from llama_export.parity.evidence import Evidence
from llama_export.parity.measurement import Measurement, embedding_angles, largest_difference
from llama_export.parity.scene import play
from llama_runtime.extras import Outputs, attention_names, hidden_state_names

_CHUNK_TOKENS = 5  # few enough that all but the first chunk have a past


def measure_hidden_states(evidence: Evidence) -> Measurement:
    """Each prompt in chunks, and all as one batch padded on both sides."""
    names = hidden_state_names(evidence.manifest)
    found, wanted = _in_chunks(evidence, names), evidence.wanted_extras
    if not evidence.quick:
        rows = play(evidence.session.run, evidence.manifest, evidence.batch_scene(None), names)
        # Behind its prompt, each row of the batch reads one token more.
        lengths = [len(prompt.tokens) for prompt in evidence.prompts] * 2
        found += [{k: v[:n] for k, v in row.items()} for row, n in zip(rows, lengths, strict=True)]
        wanted = wanted * 3
    return _compare(names, found, wanted)


def measure_attentions(evidence: Evidence) -> Measurement:
    """Each prompt in chunks."""
    names = attention_names(evidence.manifest)
    return _compare(names, _in_chunks(evidence, names), evidence.wanted_extras)


def measure_cosine(evidence: Evidence) -> Measurement:
    """How far the text's embeddings are from those of the unrounded checkpoint."""
    angles = embedding_angles(*evidence.text_states)
    return Measurement(float(np.max(angles)), f"mean and last of {len(evidence.text)} tokens of text")


def no_hidden_states(evidence: Evidence) -> str | None:
    """Nothing to say where the graph gives none."""
    return None if hidden_state_names(evidence.manifest) else ""


def no_attentions(evidence: Evidence) -> str | None:
    """Nothing to say where the graph gives none."""
    return None if attention_names(evidence.manifest) else ""


def _in_chunks(evidence: Evidence, names: list[str]) -> list[Outputs]:
    """[T, ...] of each prompt, read through the runtime that ships."""
    found = []
    for prompt in evidence.prompts:
        cache = evidence.session.new_cache(capacity=len(prompt.tokens))
        ids = np.array([prompt.tokens], np.int64)
        outputs = evidence.session.prefill(ids, cache, chunk_tokens=_CHUNK_TOKENS, outputs=names)
        # Attention weights are [B, H, T, S].
        found.append({n: np.moveaxis(outputs[n], -2, 1)[0] for n in names})
    return found


def _compare(names: list[str], found: list[Outputs], wanted: list[Outputs]) -> Measurement:
    errors = {}
    for name in names:
        scale = max(float(np.abs(row[name]).max()) for row in wanted)
        pairs = ((got[name], want[name]) for got, want in zip(found, wanted, strict=True))
        errors[name] = largest_difference(pairs, scale)
    worst = max(errors, key=errors.__getitem__)
    return Measurement(errors[worst], f"{len(names)} outputs of {len(found)} rows; largest in {worst}")
