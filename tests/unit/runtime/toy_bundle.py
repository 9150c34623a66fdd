"""A two-layer attention toy as a bundle, built by hand, and the same maths in NumPy.

No exporter is involved: the graphs hold the contract that FORMAT.md writes down, so these
tests fail when the runtime leaves the contract, not when the exporter does.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from llama_runtime.manifest import (
    Cache,
    FileEntry,
    Graph,
    KnownAnswer,
    Limits,
    Manifest,
    Probe,
    TensorSpec,
    Tokens,
)

V, HIDDEN, H, K, D, LAYERS, POSITIONS = 61, 48, 4, 2, 16, 2, 256


def toy_weights(seed: int = 7, vocab: int = V) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    weights = {"embed": random.normal(size=(vocab, HIDDEN)), "head": random.normal(size=(HIDDEN, vocab)) / 3}
    for i in range(LAYERS):
        weights[f"q.{i}"] = random.normal(size=(HIDDEN, H * D)) * HIDDEN**-0.5
        weights[f"k.{i}"] = random.normal(size=(HIDDEN, K * D)) * HIDDEN**-0.5
        weights[f"v.{i}"] = random.normal(size=(HIDDEN, K * D)) * HIDDEN**-0.5
        weights[f"o.{i}"] = random.normal(size=(H * D, HIDDEN)) * (H * D) ** -0.5
    angles = np.outer(np.arange(POSITIONS), 10000.0 ** (-np.arange(D // 2) / (D // 2)))
    weights |= {"cos": np.cos(angles), "sin": np.sin(angles)}
    return {name: value.astype(np.float32) for name, value in weights.items()}


def toy_logits(weights: dict[str, np.ndarray], token_ids: list[int]) -> np.ndarray:
    """The whole sequence at once, [T, V], in float64."""
    T = len(token_ids)
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    x = w["embed"][token_ids]
    cos, sin = w["cos"][:T, None], w["sin"][:T, None]

    def rotate(vectors):
        left, right = vectors[..., : D // 2], vectors[..., D // 2 :]
        return np.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)

    for i in range(LAYERS):
        query = rotate((x @ w[f"q.{i}"]).reshape(T, K, H // K, D).reshape(T, H, D)).reshape(T, K, H // K, D)
        keys = rotate((x @ w[f"k.{i}"]).reshape(T, K, D))
        values = (x @ w[f"v.{i}"]).reshape(T, K, D)
        scores = np.einsum("tkgd,skd->kgts", query, keys) * D**-0.5
        scores = np.where(np.tril(np.ones((T, T), bool)), scores, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        x = x + np.einsum("kgts,skd->tkgd", shares, values).reshape(T, H * D) @ w[f"o.{i}"]
    return x @ w["head"]


def greedy_answer(
    weights: dict[str, np.ndarray], prompt: list[int], count: int
) -> tuple[list[int], list[np.ndarray]]:
    tokens, steps = [], []
    for _ in range(count):
        steps.append(toy_logits(weights, prompt + tokens)[-1])
        tokens.append(int(steps[-1].argmax()))
    return tokens, steps


def known_answer(
    weights: dict[str, np.ndarray], prompt_tokens: list[int], count: int = 6, **fields
) -> KnownAnswer:
    tokens, steps = greedy_answer(weights, prompt_tokens, count)
    probes = tuple(
        Probe(position=i, token_ids=(0, tokens[i]), logits=(float(steps[i][0]), float(steps[i][tokens[i]])))
        for i in (0, count - 1)
    )
    answer = KnownAnswer(None, tuple(prompt_tokens), tuple(tokens), (), probes, 1e-3)
    return replace(answer, **fields)


def write_toy_bundle(
    folder: Path, attention: str = "flash", *, external: str | None = None, vocab: int = V, **fields
) -> Manifest:
    """Write the toy's graph and manifest.

    Args:
        folder: Where; made if missing.
        attention: "flash" (GroupQueryAttention, in place) or "sdpa" (Attention 23, growing).
        external: Folder of the weights' file inside the bundle, or None for weights in the graph.
        vocab: How many token ids the model knows.
        fields: Replace the manifest's fields; ``lambda weights: ...`` sees the weights.
    """
    weights = toy_weights(vocab=vocab)
    (folder / "onnx").mkdir(parents=True)
    model = _model(weights, attention)
    path = folder / "onnx" / "model.onnx"
    if external is None:
        onnx.save(model, path)
    else:
        data = (folder / external / "weights.bin").relative_to(folder)
        onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=1024)
        (path.parent / "weights.bin").rename(folder / data)
    fields = {name: field(weights) if callable(field) else field for name, field in fields.items()}
    return write_manifest(folder, attention, external_folder=external or "onnx", vocab=vocab, **fields)


def write_manifest(
    folder: Path, attention: str, external_folder: str = "onnx", vocab: int = V, **fields
) -> Manifest:
    past = [
        TensorSpec(f"past_key_values.{i}.{kind}", "float32", ("batch_size", K, "past_sequence_length", D))
        for i in range(LAYERS)
        for kind in ("key", "value")
    ]
    present = [
        TensorSpec(f"present.{i}.{kind}", "float32", ("batch_size", K, "total_sequence_length", D))
        for i in range(LAYERS)
        for kind in ("key", "value")
    ]
    ids = ("batch_size", "sequence_length")
    manifest = Manifest(
        created_with={"onnx": onnx.__version__},
        task="text-generation",
        precision="float32",
        weights="link",
        attention=attention,
        model=Graph("onnx/model.onnx", 23, 11, external_folder),
        inputs=(
            TensorSpec("input_ids", "int64", ids),
            TensorSpec("attention_mask", "int64", ("batch_size", "total_sequence_length")),
            TensorSpec("position_ids", "int64", ids),
            *past,
        ),
        optional_inputs=(TensorSpec("num_logits_to_keep", "int64", (1,)),),
        outputs=(TensorSpec("logits", "float32", ("batch_size", "num_logits", vocab)), *present),
        cache=Cache(
            num_hidden_layers=LAYERS,
            num_key_value_heads=K,
            head_dim=D,
            dtype="float32",
            key_name="past_key_values.{i}.key",
            value_name="past_key_values.{i}.value",
            present_key_name="present.{i}.key",
            present_value_name="present.{i}.value",
            in_place=attention == "flash",
        ),
        classification=None,
        limits=Limits(POSITIONS, vocab),
        rope=None,
        tokens=Tokens(bos_token_id=1, eos_token_ids=(), pad_token_id=None),
        tokenizer=None,
        chat_template=None,
        files=list_files(folder),
        source=(),
        known_answers=(),
        known_outputs=(),
        parity=None,
    )
    manifest = replace(manifest, **fields)
    (folder / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def list_files(folder: Path) -> tuple[FileEntry, ...]:
    return tuple(
        FileEntry(
            path.relative_to(folder).as_posix(),
            path.stat().st_size,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    )


def _model(weights: dict[str, np.ndarray], attention: str) -> onnx.ModelProto:
    constants = {
        "last_int": np.array([np.iinfo(np.int64).max]),
        "one": np.array([1]),
        "zero": np.array([0]),
        "scalar_one": np.array(1),
        "scalar_zero": np.array(0),
        "heads": np.array([0, 0, H, D]),
        "kv_heads": np.array([0, 0, K, D]),
        "flat": np.array([0, 0, H * D]),
        "mask_axes": np.array([1, 2]),
    }
    nodes = [helper.make_node("Gather", ["embed", "input_ids"], ["x.0"])]
    nodes += _flash_prologue() if attention == "flash" else _sdpa_prologue()
    for i in range(LAYERS):
        nodes += [helper.make_node("MatMul", [f"x.{i}", f"{n}.{i}"], [f"{n}s.{i}"]) for n in "qkv"]
        nodes += _flash_layer(i) if attention == "flash" else _sdpa_layer(i)
        nodes.append(helper.make_node("MatMul", [f"context.{i}", f"o.{i}"], [f"attended.{i}"]))
        nodes.append(helper.make_node("Add", [f"x.{i}", f"attended.{i}"], [f"x.{i + 1}"]))
    nodes += [
        helper.make_node("Neg", ["num_logits_to_keep"], ["first_kept"]),
        helper.make_node("Slice", [f"x.{LAYERS}", "first_kept", "last_int", "one"], ["kept"]),
        helper.make_node("MatMul", ["kept", "head"], ["logits"]),
    ]
    initializers = [numpy_helper.from_array(np.zeros(1, np.int64), "num_logits_to_keep")]
    initializers += [numpy_helper.from_array(value, name) for name, value in (weights | constants).items()]
    graph = helper.make_graph(nodes, "toy", _inputs(), _outputs(len(weights["embed"])), initializers)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=11)


def _inputs() -> list[onnx.ValueInfoProto]:
    def integers(name, shape):
        return helper.make_tensor_value_info(name, TensorProto.INT64, shape)

    names = [f"past_key_values.{i}.{kind}" for i in range(LAYERS) for kind in ("key", "value")]
    return [
        integers("input_ids", ["B", "T"]),
        integers("attention_mask", ["B", "S"]),
        integers("position_ids", ["B", "T"]),
        *(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", K, "P", D]) for name in names),
        integers("num_logits_to_keep", [1]),
    ]


def _outputs(vocab: int) -> list[onnx.ValueInfoProto]:
    names = [f"present.{i}.{kind}" for i in range(LAYERS) for kind in ("key", "value")]
    return [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", "N", vocab]),
        *(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", K, "R", D]) for name in names),
    ]


def _flash_prologue() -> list[onnx.NodeProto]:
    return [
        helper.make_node("ReduceSum", ["attention_mask", "one"], ["lengths"], keepdims=0),
        helper.make_node("Sub", ["lengths", "scalar_one"], ["last_slots"]),
        helper.make_node("Cast", ["last_slots"], ["seqlens_k"], to=TensorProto.INT32),
        helper.make_node("Shape", ["attention_mask"], ["mask_shape"]),
        helper.make_node("Gather", ["mask_shape", "scalar_one"], ["total"]),
        helper.make_node("Cast", ["total"], ["total_int32"], to=TensorProto.INT32),
    ]


def _flash_layer(i: int) -> list[onnx.NodeProto]:
    past = [f"past_key_values.{i}.key", f"past_key_values.{i}.value"]
    inputs = [f"qs.{i}", f"ks.{i}", f"vs.{i}", *past, "seqlens_k", "total_int32", "cos", "sin"]
    outputs = [f"context.{i}", f"present.{i}.key", f"present.{i}.value"]
    return [
        helper.make_node(
            "GroupQueryAttention",
            inputs,
            outputs,
            domain="com.microsoft",
            num_heads=H,
            kv_num_heads=K,
            do_rotary=1,
        )
    ]


def _sdpa_prologue() -> list[onnx.NodeProto]:
    return [
        helper.make_node("Shape", ["attention_mask"], ["mask_shape"]),
        helper.make_node("Gather", ["mask_shape", "scalar_one"], ["total"]),
        helper.make_node("Shape", ["input_ids"], ["ids_shape"]),
        helper.make_node("Gather", ["ids_shape", "scalar_one"], ["new"]),
        helper.make_node("Range", ["scalar_zero", "total", "scalar_one"], ["slots"]),
        helper.make_node("Sub", ["total", "new"], ["first_new"]),
        helper.make_node("Range", ["first_new", "total", "scalar_one"], ["new_slots"]),
        helper.make_node("Unsqueeze", ["new_slots", "one"], ["queries"]),
        helper.make_node("LessOrEqual", ["slots", "queries"], ["causal"]),
        helper.make_node("Cast", ["attention_mask"], ["tokens"], to=TensorProto.BOOL),
        helper.make_node("Unsqueeze", ["tokens", "mask_axes"], ["seen"]),
        helper.make_node("And", ["causal", "seen"], ["mask"]),
    ]


def _sdpa_layer(i: int) -> list[onnx.NodeProto]:
    nodes = []
    for name, shape, heads in (("q", "heads", H), ("k", "kv_heads", K)):
        rotary = [f"{name}s.{i}", "cos", "sin", "position_ids"]
        nodes.append(helper.make_node("RotaryEmbedding", rotary, [f"{name}r.{i}"], num_heads=heads))
        nodes.append(helper.make_node("Reshape", [f"{name}r.{i}", shape], [f"{name}h.{i}"]))
    nodes.append(helper.make_node("Reshape", [f"vs.{i}", "kv_heads"], [f"vh.{i}"]))
    for name in "qkv":
        nodes.append(helper.make_node("Transpose", [f"{name}h.{i}"], [f"{name}t.{i}"], perm=[0, 2, 1, 3]))
    past = [f"past_key_values.{i}.key", f"past_key_values.{i}.value"]
    inputs = [f"qt.{i}", f"kt.{i}", f"vt.{i}", "mask", *past]
    outputs = [f"ct.{i}", f"present.{i}.key", f"present.{i}.value"]
    return [
        *nodes,
        helper.make_node("Attention", inputs, outputs),
        helper.make_node("Transpose", [f"ct.{i}"], [f"ch.{i}"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", [f"ch.{i}", "flat"], [f"context.{i}"]),
    ]
