"""What the exporter knows becomes the manifest that the runtimes read."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import llama_runtime.manifest as schema
from llama_export.bundle.chat_template import chat_templates, read_settings
from llama_export.bundle.companions import token_ids
from llama_export.checkpoint import Checkpoint
from llama_export.errors import CheckpointError
from llama_export.graph import contract
from llama_export.model.attention import AttentionPath
from llama_export.model.config import LlamaConfig, RopeConfig
from llama_export.weights import FileDigest, WeightPlan


def build_manifest(
    checkpoint: Checkpoint,
    plan: WeightPlan,
    path: AttentionPath,
    files: Mapping[str, FileDigest],
    source: Mapping[str, FileDigest],
) -> schema.Manifest:
    """Describe a staged bundle that nobody has verified yet: no known answers, parity null.

    Args:
        checkpoint: The source.
        plan: Where the weights stand.
        path: Attention path of the graph.
        files: Digest of every file of the bundle, by relative path.
        source: Digest of every checkpoint file that the bundle was made from, by name.
    """
    config = checkpoint.config

    folder = "." if plan.mode == "beside" else "onnx"
    return schema.Manifest(
        created_with={name: version(name) for name in ("llama-export", "torch", "onnx", "onnx-ir")},
        task=config.head.task,
        precision=plan.precision,
        weights=plan.mode,
        attention=path,
        model=schema.Graph(
            f"onnx/{plan.model_name}", contract.OPSETS[path][""], contract.IR_VERSIONS[path], folder
        ),
        inputs=_specs(contract.inputs(config)),
        optional_inputs=_specs(contract.optional_inputs(config)),
        outputs=_specs(contract.outputs(config)),
        cache=_cache(config, path) if config.generates else None,
        classification=_classification(config),
        limits=schema.Limits(config.context_length, config.vocab_size),
        rope=_rope(config.rope),
        tokens=tokens(checkpoint),
        tokenizer=tokenizer_file(checkpoint),
        chat_template=chat_templates(checkpoint),
        files=_entries(files),
        source=_entries(source),
        known_answers=(),
        known_outputs=(),
        parity=None,
    )


def _cache(config: LlamaConfig, path: AttentionPath) -> schema.Cache:
    return schema.Cache(
        num_hidden_layers=config.num_hidden_layers,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        dtype="float32",
        key_name=contract.PAST_KEY,
        value_name=contract.PAST_VALUE,
        present_key_name=contract.PRESENT_KEY,
        present_value_name=contract.PRESENT_VALUE,
        in_place=path == "flash",
    )


def _classification(config: LlamaConfig) -> schema.Classification | None:
    head = config.head
    return schema.Classification(head.labels, head.problem_type) if head.labels else None


def tokens(checkpoint: Checkpoint) -> schema.Tokens:
    """The special token ids, for whoever runs the model."""
    ids = token_ids(checkpoint)
    return schema.Tokens(ids["bos"], tuple(ids["eos"]), ids["pad"])


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


def tokenizer_file(checkpoint: Checkpoint) -> schema.TokenizerFile | None:
    """Which tokenizer the runtime opens; ``tokenizer.model`` before ``tokenizer.json``, as its source."""
    names, bos = {path.name for path in checkpoint.companions}, token_ids(checkpoint)["bos"]
    settings = read_settings(checkpoint.folder / "tokenizer_config.json")
    add_eos = bool(settings.get("add_eos_token", False))
    if "tokenizer.model" in names:
        # LlamaTokenizer's own default, which old tokenizer_config.json files rely on.
        add_bos = bool(settings.get("add_bos_token", True)) and bos is not None
        return schema.TokenizerFile("sentencepiece", "tokenizer.model", add_bos, add_eos)
    if "tokenizer.json" in names:
        wanted = settings.get("add_bos_token")
        if wanted is None:
            wanted = _template_adds(checkpoint.folder / "tokenizer.json", bos)
        return schema.TokenizerFile("tokenizers", "tokenizer.json", bool(wanted) and bos is not None, add_eos)
    return None


def _template_adds(path: Path, bos: int | None) -> bool:
    """Whether the post-processor of a tokenizer.json puts BOS in front."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path)).encode("a").ids[:1] == [bos]
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"tokenizer.json: cannot be read ({error})", "download it again") from None
