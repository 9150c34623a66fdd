"""What the matrices of a model read when it reads a text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from threading import Lock

from torch import Tensor, nn

from llama_export.model import LlamaConfig
from llama_export.model.layer import DecoderLayer, RMSNorm
from llama_export.quantize.gptq import error_feedback
from llama_export.quantize.reading import Read, read_layers

# The module whose input a matrix shares, by the last part of its name.
_INPUT_OF = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "qkv_proj"), "self_attn.q_proj"),
    "o_proj": "self_attn.o_proj",
    **dict.fromkeys(("gate_proj", "up_proj", "gate_up_proj"), "mlp.gate_proj"),
    "down_proj": "mlp.down_proj",
}
_HEAD = "lm_head"


class Calibration:
    """The inputs of every matrix over some windows of a text, as GPTQ needs them.

    Layers must be asked for in their order; what a layer read is forgotten when the next is asked for.

    Args:
        config: The architecture.
        read: From a weight's name to its values, in any float dtype.
        windows: Token ids, each window read by itself.
    """

    def __init__(self, config: LlamaConfig, read: Read, windows: Sequence[Sequence[int]]) -> None:
        self._config, self._read = config, read
        self._layers = self._read_layers(windows)
        self._layer = -1
        self._grams: dict[str, Tensor] = {}
        self._feedbacks: dict[str, Tensor] = {}

    def feedback(self, name: str) -> Tensor | None:
        """What ``gptq`` needs for a matrix; None for one that no input is multiplied with, an embedding.

        Args:
            name: Of the weight in the checkpoint, or of the one that several are joined to.
        """
        module = name.removesuffix(".weight")
        if module == "model.embed_tokens":
            return None
        layer = self._config.num_hidden_layers if module == _HEAD else int(module.split(".")[2])
        assert layer >= self._layer, "layers are read in their order"
        while self._layer < layer:
            self._grams = next(self._layers)
            self._feedbacks = {}
            self._layer += 1
        key = _HEAD if module == _HEAD else _INPUT_OF[module.rpartition(".")[2]]
        if key not in self._feedbacks:
            self._feedbacks[key] = error_feedback(self._grams.pop(key))
        return self._feedbacks[key]

    def _read_layers(self, windows: Sequence[Sequence[int]]) -> Iterator[dict[str, Tensor]]:
        """Each layer's sums of x xT [K, K] by module, then the head's."""
        grams: dict[str, Tensor] = {}

        def watch(layer: DecoderLayer) -> None:
            for key in dict.fromkeys(_INPUT_OF.values()):
                layer.get_submodule(key).register_forward_pre_hook(_adding_to(grams, key))

        read = list[Tensor]()
        for hidden in read_layers(self._config, self._read, windows, watch):
            read = hidden
            yield grams.copy()
            grams.clear()
        norm = RMSNorm(self._config, "eager")
        norm.weight = nn.Parameter(self._read("model.norm.weight").float(), requires_grad=False)
        add = _adding_to(grams, _HEAD)
        for states in read:
            add(norm, (norm(states),))
        yield grams


def _adding_to(grams: dict[str, Tensor], key: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    lock = Lock()

    def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        states = inputs[0].detach().float()  # [T, K]
        gram = states.T @ states
        with lock:
            grams[key] = grams[key].add_(gram) if key in grams else gram

    return add
