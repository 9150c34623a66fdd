"""A debug copy of the bundle's graph: intermediate tensors become outputs, the rest is left out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from llama_export.model.joined import PROJECTIONS
from llama_export.parity.reference import WATCHED
from llama_export.parity.report import layer_of
from llama_export.parity.scene import Arrays, Run
from llama_runtime.manifest import Manifest
from llama_runtime.opening import open_graph

# From a stored weight to the weight as it is used.
_WIDENING = {"Cast", "DequantizeLinear", "Transpose", "Reshape", "Identity"}


class DebugGraph:
    """The bundle's graph, taken apart.

    Args:
        folder: The bundle.
        manifest: What ``read_manifest`` returned for it.
        threads: For ONNX Runtime; None is every core.

    Attributes:
        manifest: As given.
        tensors: The reference's name of every intermediate tensor that was found in the graph to its name
            there, in the order of computation.
    """

    def __init__(self, folder: Path, manifest: Manifest, threads: int | None) -> None:
        self._folder, self.manifest, self._threads = folder, manifest, threads
        self._model = onnx.load(folder / manifest.model.path, load_external_data=False)
        _compute_in_float32(self._model.graph)
        nodes = self._model.graph.node
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in nodes:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._weights = [tensor.name for tensor in self._model.graph.initializer]
        self._cut = self._cut_projections()
        self.tensors = self._find_tensors()

    def open(self, wanted: Sequence[str]) -> Run:
        """Load as much of the graph as computes some tensors.

        Args:
            wanted: Keys of ``tensors``.

        Returns:
            A function from inputs to the wanted tensors by their keys, and all presents that were computed.
        """
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        graph = model.graph
        presents = [value for value in graph.output if value.name != "logits"]
        names = [self.tensors[key] for key in wanted]
        needed = _needed(graph, names)
        del graph.output[:]
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names))
        # The cache of a layer that is computed anyway: another run may go on from there.
        computed = {name for node in needed for name in node.output}
        graph.output.extend(value for value in presents if value.name in computed)
        del graph.node[:]
        graph.node.extend(needed)
        used = {name for node in needed for name in node.input}
        for field in (graph.initializer, graph.input):
            kept = [entry for entry in field if entry.name in used]
            del field[:]
            field.extend(kept)
        run = open_graph(self._folder, self.manifest, model.SerializeToString(), threads=self._threads)

        def run_by_key(feeds: Arrays) -> Arrays:
            found = run(feeds)
            return found | {key: found[self.tensors[key]] for key in wanted}

        return run_by_key

    def _find_tensors(self) -> dict[str, str]:
        found = {"model.embed_tokens": self._embedded()}
        layers = {layer for layer in map(layer_of, self._weights) if layer is not None}
        for index in sorted(layers):
            for module, side in WATCHED:
                key = f"model.layers.{index}.{module}"
                label = key + (" input" if side == "input" else "")
                found[label] = self._around(f"{key}.weight", side)
        found["model.norm"] = self._around("model.norm.weight", "output")
        logits = {"lm_head": "logits"} if self.manifest.cache is not None else {}
        return {label: name for label, name in found.items() if name is not None} | logits

    def _cut_projections(self) -> dict[str, str]:
        """The parts of what the graph computes as one, q, k and v, gate and up, by their weights.

        Attention may take q, k and v as they are: then they are cut here, for us to see.
        """
        cut = dict[str, str]()
        for weight in [name for name in self._weights if "_proj.weight" in name]:
            layer, _, rest = weight.removeprefix("model.layers.").partition(".")
            whole = rest.partition(".weight")[0]
            user, _ = self._user(f"model.layers.{layer}.{whole}.weight")
            if whole not in PROJECTIONS or user is None:
                continue
            names = [f"model.layers.{layer}.{member}.weight" for member in PROJECTIONS[whole]]
            if names[0] not in cut:
                cut |= dict(zip(names, self._parts_of(user), strict=True))
        return cut

    def _parts_of(self, product: onnx.NodeProto) -> Sequence[str]:
        reader = self._readers[product.output[0]][0]
        if reader.op_type == "Split":
            return list(reader.output)
        attention = self._readers[reader.output[0]][0]  # behind a Reshape
        heads = {entry.name: entry.i for entry in attention.attribute}
        rows = next(entry.i for entry in product.attribute if entry.name == "N")
        kv_rows = rows // (heads["num_heads"] + 2 * heads["kv_num_heads"]) * heads["kv_num_heads"]
        sizes = np.array([rows - 2 * kv_rows, kv_rows, kv_rows], np.int64)
        lengths = onnx.numpy_helper.from_array(sizes, f"{product.output[0]}.debug")
        outputs = [f"{lengths.name}.{part}" for part in "qkv"]
        graph = self._model.graph
        graph.initializer.append(lengths)
        graph.node.append(onnx.helper.make_node("Split", [product.output[0], lengths.name], outputs, axis=1))
        return outputs

    def _around(self, weight: str, side: str) -> str | None:
        """The value that goes into, or comes out of, the one node that uses a weight."""
        if side == "output" and weight in self._cut:
            return self._cut[weight]
        user, names = self._user(weight)
        if user is None:
            return None
        states = [name for name in user.input if name and name not in names]
        around = states[:1] if side == "input" else user.output[:1]
        return str(around[0]) if around else None

    def _user(self, weight: str) -> tuple[onnx.NodeProto | None, set[str]]:
        """The one node that uses a weight, and all names that the weight goes by on the way there."""
        names = {name for name in self._weights if name == weight or name.startswith(weight + "_")}
        for _ in range(len(_WIDENING)):
            widened = {
                o for n in names for r in self._readers.get(n, []) if r.op_type in _WIDENING for o in r.output
            }
            if not widened:
                break
            names |= widened
        users = [r for n in sorted(names) for r in self._readers.get(n, []) if r.op_type not in _WIDENING]
        return (users[0] if users else None), names

    def _embedded(self) -> str | None:
        """The embedded tokens in float32."""
        names = [name for name in self._weights if name.startswith("model.embed_tokens.weight")]
        gathers = [r for n in names for r in self._readers.get(n, []) if "Gather" in r.op_type]
        if not gathers:
            return None
        name = str(gathers[0].output[0])
        casts = [reader for reader in self._readers.get(name, []) if reader.op_type == "Cast"]
        return str(casts[0].output[0]) if casts else name


def _compute_in_float32(graph: onnx.GraphProto) -> None:
    """Leave activations unrounded where the graph would round them: what differs then is a fault."""
    for node in graph.node:
        for entry in node.attribute:
            if entry.name == "accuracy_level":
                entry.i = 1


def _needed(graph: onnx.GraphProto, outputs: Sequence[str]) -> list[onnx.NodeProto]:
    """The nodes that some values depend on, in the graph's order."""
    wanted, needed = set(outputs), []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            needed.append(node)
            wanted.update(node.input)
    return needed[::-1]
