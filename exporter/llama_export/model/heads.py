"""The task heads: what is computed from the last hidden states of a whole text, nothing cached.

Each is called with the same three tensors, has the weights that the checkpoint has under the same names,
and returns its outputs in the order of ``graph.contract``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llama_export.model.config import LlamaConfig, Task


class HiddenStates(nn.Module):
    """No head: the hidden states are the output."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()

    def forward(self, hidden: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        """Return [B, T, hidden_size] as it is."""
        return (hidden,)


class SequenceClassification(nn.Module):
    """One score a label, from the last token of each text."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.score = nn.Linear(config.hidden_size, len(config.head.labels), bias=False)
        self.pad_token_id = config.head.pad_token_id

    def forward(self, hidden: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        """Map [B, T, hidden_size] to logits [B, labels]."""
        last = last_tokens(input_ids, attention_mask, self.pad_token_id)
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        return (self.score(hidden[rows, last]),)


class TokenClassification(nn.Module):
    """One score a label for each token."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.score = nn.Linear(config.hidden_size, len(config.head.labels), bias=config.head.bias)

    def forward(self, hidden: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        """Map [B, T, hidden_size] to logits [B, T, labels]."""
        # Flat tokens make a Gemm, which reads the weight as it is stored; so below.
        logits = self.score(hidden.flatten(0, 1))  # [N, labels]
        return (logits.view(*hidden.shape[:2], -1),)


class QuestionAnswering(nn.Module):
    """Two scores for each token: that an answer starts, and that it ends there."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.qa_outputs = nn.Linear(config.hidden_size, 2)

    def forward(self, hidden: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Map [B, T, hidden_size] to start and end logits, [B, T] each."""
        logits = self.qa_outputs(hidden.flatten(0, 1)).view(*hidden.shape[:2], 2)
        return logits[..., 0], logits[..., 1]


HEADS: dict[Task, type[nn.Module]] = {
    "feature-extraction": HiddenStates,
    "text-classification": SequenceClassification,
    "token-classification": TokenClassification,
    "question-answering": QuestionAnswering,
}


def last_tokens(input_ids: Tensor, attention_mask: Tensor, pad_token_id: int | None) -> Tensor:
    """Find each text's last token, padded on either side.

    As transformers does, a model with a padding token goes by it and not by the mask, so that a text's own
    trailing padding tokens (an EOS that is also the padding) are passed over. Without one, where
    transformers refuses batches, the mask says what is padding.

    Args:
        input_ids: [B, T] int64.
        attention_mask: [B, T] int64.
        pad_token_id: The padding token, or None.

    Returns:
        [B] int64 slots; 0 for a row that is all padding.
    """
    is_token = attention_mask != 0 if pad_token_id is None else input_ids != pad_token_id  # [B, T]
    slots = torch.arange(input_ids.shape[1], device=input_ids.device)
    return (slots * is_token).amax(dim=1)
