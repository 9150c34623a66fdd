"""optimum-onnx on a bundle of a head: every output for a batch of padded texts; see ``asked``."""

from __future__ import annotations

import json
import sys

import torch
from optimum.onnxruntime import (
    ORTModelForFeatureExtraction,
    ORTModelForQuestionAnswering,
    ORTModelForSequenceClassification,
    ORTModelForTokenClassification,
)

CLASSES = {
    "feature-extraction": ORTModelForFeatureExtraction,
    "text-classification": ORTModelForSequenceClassification,
    "token-classification": ORTModelForTokenClassification,
    "question-answering": ORTModelForQuestionAnswering,
}


def main() -> None:
    question = json.load(sys.stdin)
    model = CLASSES[question["task"]].from_pretrained(question["bundle"])
    found = model(
        input_ids=torch.tensor(question["input_ids"]), attention_mask=torch.tensor(question["attention_mask"])
    )
    print(json.dumps({name: value.tolist() for name, value in found.items()}))


main()
