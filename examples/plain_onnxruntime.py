"""A bundle with ONNX Runtime alone, to copy: ``python plain_onnxruntime.py BUNDLE "Once upon a time" 64``."""

# Greedy, one prompt; pip install onnxruntime numpy tokenizers
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

bundle, prompt, new_tokens = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
tokenizer.encode_special_tokens = True  # "<s>" in a prompt is three characters
onnxruntime.set_default_logger_severity(3)  # it warns that num_logits_to_keep may be overridden, as is meant
session = onnxruntime.InferenceSession(bundle / manifest["model"]["path"])

K, D, dtype = (manifest["cache"][key] for key in ("num_key_value_heads", "head_dim", "dtype"))
empty = np.zeros((1, K, 0, D), dtype)  # [B, K, P, D]
past = {item["name"]: empty for item in manifest["inputs"] if item["name"].startswith("past_")}
opening = [manifest["tokens"]["bos_token_id"]] if manifest["tokenizer"]["add_bos"] else []
ids = tokens = opening + tokenizer.encode(prompt, add_special_tokens=False).ids
shown = tokenizer.decode(tokens)
for _ in range(new_tokens):
    feeds = {
        "input_ids": np.array([ids]),  # [1, T]
        "attention_mask": np.ones((1, len(tokens)), np.int64),  # [1, S]
        "position_ids": np.arange(len(tokens) - len(ids), len(tokens))[None],  # [1, T]
    }
    logits, *present = session.run(None, feeds | past)  # [1, T, V], then each layer's keys and values
    past, ids = dict(zip(past, present, strict=True)), [int(logits[0, -1].argmax())]
    if ids[0] in manifest["tokens"]["eos_token_ids"]:
        break
    tokens = tokens + ids
    text = tokenizer.decode(tokens)
    if not text.endswith("\ufffd"):  # a character is complete
        print(text[len(shown) :], end="", flush=True)
        shown = text
