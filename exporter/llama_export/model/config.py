"""What a checkpoint is: facts only, in the words of ``config.json``, frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Task = Literal[
    "text-generation",
    "feature-extraction",
    "text-classification",
    "token-classification",
    "question-answering",
]
TASKS: tuple[Task, ...] = get_args(Task)
ProblemType = Literal["regression", "single_label_classification", "multi_label_classification"]
PROBLEM_TYPES: tuple[ProblemType, ...] = get_args(ProblemType)


ARCHITECTURES: dict[str, Task] = {
    "LlamaForCausalLM": "text-generation",
    "LlamaModel": "feature-extraction",
    "LlamaForSequenceClassification": "text-classification",
    "LlamaForTokenClassification": "token-classification",
    "LlamaForQuestionAnswering": "question-answering",
}
"""What each of ``config.json``'s ``architectures`` is for."""

ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")
# config.json's names for the three functions; transformers has several for two of them.
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
}


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding, as ``rope_parameters`` (transformers 5) spells it.

    Attributes:
        rope_type: One of ``ROPE_TYPES``.
        rope_theta: Base of the geometric series of wavelengths.
        factor: By how much the context is stretched; not for ``default``.
        low_freq_factor: ``llama3``: wavelengths above original / low_freq_factor are stretched fully.
        high_freq_factor: ``llama3``: wavelengths below original / high_freq_factor are left alone.
        original_max_position_embeddings: Context length before stretching, in tokens. ``dynamic`` and
            ``longrope`` compute other angles for longer texts; for ``dynamic`` it is the config's
            ``max_position_embeddings``.
        attention_factor: ``yarn``, ``longrope``: what cosine and sine are multiplied by; None derives it.
        beta_fast: ``yarn``: wavelengths that turn so often within the original context are left alone.
        beta_slow: ``yarn``: those that turn less often are stretched fully.
        mscale: ``yarn``: weighs the derived attention factor, together with the next.
        mscale_all_dim: ``yarn``: as above.
        truncate: ``yarn``: whether the blended range is widened to whole dimensions.
        short_factor: ``longrope``: D / 2 divisors of the frequencies of texts within the original context.
        long_factor: ``longrope``: the same for longer texts.
    """

    rope_type: str = "default"
    rope_theta: float = 10000.0
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    @property
    def depends_on_length(self) -> bool:
        """Whether a position's angles are others in a long text than in a short one."""
        return self.rope_type in ("dynamic", "longrope")


@dataclass(frozen=True)
class HeadConfig:
    """What stands on the last hidden states, and what its outputs mean.

    Attributes:
        task: Which head: the language model's, none (``feature-extraction``), one score a label and text,
            one a label and token, or the start and end of an answer.
        labels: Name of each score of ``text-classification`` and ``token-classification``.
        problem_type: How ``text-classification`` scores are read, where config.json says so.
        bias: Whether the ``token-classification`` head has one; question answering's always has.
        pad_token_id: What ``text-classification`` takes for padding; None where there is no such token.
    """

    task: Task = "text-generation"
    labels: tuple[str, ...] = ()
    problem_type: ProblemType | None = None
    bias: bool = False
    pad_token_id: int | None = None


@dataclass(frozen=True)
class LlamaConfig:
    """The architecture of one checkpoint; the names are ``config.json``'s keys.

    Attributes:
        vocab_size: V, rows of the embedding and of the head.
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the MLP.
        num_hidden_layers: Number of decoder layers.
        num_attention_heads: H, query heads.
        num_key_value_heads: K, key and value heads; H is a multiple of it.
        head_dim: D, width of one head; even; not always hidden_size / H.
        max_position_embeddings: Longest sequence the model was made for, in tokens; see context_length.
        rms_norm_eps: Added to the mean square in every RMSNorm.
        rope: Rotary position embedding.
        tie_word_embeddings: Whether the language-model head is the embedding.
        hidden_act: The MLP's activation, one of ``ACTIVATIONS``.
        attention_bias: Whether q, k, v and o projections add a bias.
        mlp_bias: Whether gate, up and down projections add one.
        head: What stands on the last hidden states.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope: RopeConfig = RopeConfig()
    tie_word_embeddings: bool = False
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    head: HeadConfig = HeadConfig()

    @property
    def context_length(self) -> int:
        """How many positions can be used: ``dynamic`` alone goes on where the config's number ends."""
        stretched = self.rope.factor if self.rope.rope_type == "dynamic" else 1.0
        return int(self.max_position_embeddings * stretched)

    @property
    def generates(self) -> bool:
        """Whether it is a causal language model, whose graph has a key/value cache."""
        return self.head.task == "text-generation"

    @property
    def architecture(self) -> str:
        """The name that ``config.json`` has for it."""
        return next(name for name, task in ARCHITECTURES.items() if task == self.head.task)

    def layer_shapes(self, index: int) -> dict[str, tuple[int, ...]]:
        """Name and shape of every weight of decoder layer ``index``, in Hugging Face's names."""
        hidden, inter = self.hidden_size, self.intermediate_size
        q_size, kv_size = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        modules = {
            "input_layernorm": ((hidden,), False),
            "self_attn.q_proj": ((q_size, hidden), self.attention_bias),
            "self_attn.k_proj": ((kv_size, hidden), self.attention_bias),
            "self_attn.v_proj": ((kv_size, hidden), self.attention_bias),
            "self_attn.o_proj": ((hidden, q_size), self.attention_bias),
            "post_attention_layernorm": ((hidden,), False),
            "mlp.gate_proj": ((inter, hidden), self.mlp_bias),
            "mlp.up_proj": ((inter, hidden), self.mlp_bias),
            "mlp.down_proj": ((hidden, inter), self.mlp_bias),
        }
        shapes: dict[str, tuple[int, ...]] = {}
        for name, (shape, has_bias) in modules.items():
            shapes[f"model.layers.{index}.{name}.weight"] = shape
            if has_bias:
                shapes[f"model.layers.{index}.{name}.bias"] = shape[:1]
        return shapes

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every weight the model needs, in the order of computation."""
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocab_size, self.hidden_size)
        }
        for index in range(self.num_hidden_layers):
            shapes |= self.layer_shapes(index)
        shapes["model.norm.weight"] = (self.hidden_size,)
        return shapes | self.head_shapes()

    def head_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every weight of the head; empty where it has none of its own."""
        hidden, labels = self.hidden_size, len(self.head.labels)
        match self.head.task:
            case "text-generation":
                return {} if self.tie_word_embeddings else {"lm_head.weight": (self.vocab_size, hidden)}
            case "feature-extraction":
                return {}
            case "text-classification":
                return {"score.weight": (labels, hidden)}
            case "token-classification":
                bias = {"score.bias": (labels,)} if self.head.bias else {}
                return {"score.weight": (labels, hidden), **bias}
            case "question-answering":
                return {"qa_outputs.weight": (2, hidden), "qa_outputs.bias": (2,)}
