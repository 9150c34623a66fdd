"""What the exporter knows becomes the manifest that the runtimes read."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Literal

import llama_runtime.manifest as schema
from llama_export.bundle.beside import BESIDE_JSON
from llama_export.bundle.chat_template import chat_templates
from llama_export.bundle.companions import SOFT_PROMPT_FILE, token_ids
from llama_export.checkpoint import Checkpoint
from llama_export.graph import contract
from llama_export.model.attention import AttentionPath
from llama_export.model.config import LlamaConfig, RopeConfig
from llama_export.tokenizer import SourceTokenizer, open_source
from llama_export.tokenizer.files import is_authors
from llama_export.weights import FileDigest, WeightPlan


def build_manifest(
    checkpoint: Checkpoint,
    plan: WeightPlan,
    path: AttentionPath,
    files: Mapping[str, FileDigest],
    source: Mapping[str, FileDigest],
    extras: contract.Extras = contract.NO_EXTRAS,
) -> schema.Manifest:
    """Describe a staged bundle that nobody has verified yet: no known answers, parity null.

    Args:
        checkpoint: The source.
        plan: Where the weights stand.
        path: Attention path of the graph.
        files: Digest of every file of the bundle, by relative path.
        source: Digest of every checkpoint file that the bundle was made from, by name.
        extras: What the graph takes and gives besides the default.
    """
    config, tokenizer = checkpoint.config, open_source(checkpoint)
    learned = checkpoint.soft_prompt.positions if checkpoint.soft_prompt else 0
    folder = "." if plan.mode == "beside" else "onnx"
    return schema.Manifest(
        created_with={name: version(name) for name in ("llama-export", "torch", "onnx", "onnx-ir")},
        task=config.head.task,
        precision=plan.precision,
        step_weight_bytes=plan.step_bytes(tied=config.tie_word_embeddings) if config.generates else None,
        weights=plan.mode,
        attention=path,
        model=schema.Graph(
            f"onnx/{plan.model_name}", contract.OPSETS[path][""], contract.IR_VERSIONS[path], folder
        ),
        inputs=_specs(contract.inputs(config, extras)),
        embed_tokens=f"onnx/{plan.embedding_name}" if extras.inputs_embeds else None,
        optional_inputs=_specs(contract.optional_inputs(config)),
        outputs=_specs(contract.outputs(config, extras)),
        cache=_cache(config, path, extras.cache_dtype) if config.generates else None,
        classification=_classification(config),
        soft_prompt=schema.SoftPrompt(SOFT_PROMPT_FILE, learned) if learned else None,
        limits=schema.Limits(config.context_length - learned, config.vocab_size),
        rope=_rope(config.rope),
        tokens=tokens(checkpoint, tokenizer),
        tokenizer=tokenizer_file(tokenizer, beside=plan.mode == "beside"),
        chat_template=chat_templates(checkpoint),
        files=_entries(files),
        source=_entries(source),
        known_answers=(),
        known_outputs=(),
        parity=None,
    )


def _cache(config: LlamaConfig, path: AttentionPath, dtype: contract.AnyCache) -> schema.Cache:
    return schema.Cache(
        num_hidden_layers=config.num_hidden_layers,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        dtype=dtype,
        key_name=contract.PAST_KEY,
        value_name=contract.PAST_VALUE,
        present_key_name=contract.PRESENT_KEY,
        present_value_name=contract.PRESENT_VALUE,
        in_place=path == "flash",
    )


def _classification(config: LlamaConfig) -> schema.Classification | None:
    head = config.head
    return schema.Classification(head.labels, head.problem_type) if head.labels else None


def tokens(checkpoint: Checkpoint, tokenizer: SourceTokenizer | None) -> schema.Tokens:
    """The special token ids, for whoever runs the model; what is put around a text is the tokenizer's."""
    ids, size = token_ids(checkpoint), checkpoint.config.vocab_size
    bos, eos = ids["bos"], list(ids["eos"])
    if tokenizer is not None:
        special = tokenizer.special
        if special.bos is not None and special.bos[1] < size:
            bos = special.bos[1]
        if special.behind is not None:  # the first of the list is the one that is put behind
            eos = [special.behind[1], *(token for token in eos if token != special.behind[1])]
    return schema.Tokens(bos, tuple(eos), ids["pad"])


def _rope(rope: RopeConfig) -> schema.Rope | None:
    if not rope.depends_on_length:
        return None
    kind: Literal["dynamic", "longrope"] = "dynamic" if rope.rope_type == "dynamic" else "longrope"
    return schema.Rope(kind, rope.original_max_position_embeddings)


def _specs(specs: list[contract.TensorSpec]) -> tuple[schema.TensorSpec, ...]:
    return tuple(schema.TensorSpec(spec.name, spec.dtype, spec.shape) for spec in specs)


def _entries(digests: Mapping[str, FileDigest]) -> tuple[schema.FileEntry, ...]:
    return tuple(
        schema.FileEntry(path, digest.size_bytes, digest.sha256) for path, digest in sorted(digests.items())
    )


def tokenizer_file(tokenizer: SourceTokenizer | None, *, beside: bool) -> schema.TokenizerFile | None:
    """Which tokenizer the runtime opens: ``tokenizer.model`` where it says all, since it opens faster.

    Args:
        tokenizer: The checkpoint's.
        beside: The bundle is the checkpoint's own folder, whose ``tokenizer.json`` stays as it is.
    """
    if tokenizer is None:
        return None
    adds = (tokenizer.special.add_bos, tokenizer.special.add_eos)
    if tokenizer.runs_model:
        return schema.TokenizerFile("sentencepiece", "tokenizer.model", *adds)
    path = BESIDE_JSON if beside and not is_authors(tokenizer) else "tokenizer.json"
    return schema.TokenizerFile("tokenizers", path, *adds)
