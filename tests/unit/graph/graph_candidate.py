"""A graph with its weights inside, in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
from tiny_checkpoints import random_weights


class Candidate:
    """A graph with its weights inside, fed as any user of ONNX Runtime would."""

    def __init__(self, model, config):
        for name, weight in random_weights(config).items():
            model.graph.initializers[name].const_value = ir.tensor(weight.numpy(), name=name)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        proto = ir.to_proto(model).SerializeToString()
        self.session = onnxruntime.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
        self.config = config

    def __call__(self, ids, mask=None, past=None, keep=None, rope_length=None):
        """[B, T] ids -> logits and the present cache."""
        c = self.config
        B, T = ids.shape
        P = past[0].shape[2] if past else 0
        mask = np.ones((B, P + T), np.int64) if mask is None else mask
        past = past or [np.zeros((B, c.num_key_value_heads, 0, c.head_dim), np.float32)] * (
            2 * c.num_hidden_layers
        )
        feeds = {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": np.maximum(mask.cumsum(axis=1) - 1, 0)[:, -T:],
        }
        names = [value.name for value in self.session.get_inputs() if value.name.startswith("past")]
        feeds |= dict(zip(names, past, strict=True))
        if keep is not None:
            feeds["num_logits_to_keep"] = np.array([keep], np.int64)
        if rope_length is not None:
            feeds["rope_length"] = np.array([rope_length], np.int64)
        logits, *present = self.session.run(None, feeds)
        return logits, present
