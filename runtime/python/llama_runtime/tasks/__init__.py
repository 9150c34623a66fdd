"""What a bundle does with whole texts: embed, classify, tag them, or answer a question from one."""

from llama_runtime.tasks.answer import Answer, Answerer, load_answerer
from llama_runtime.tasks.classify import Classification, Classifier, load_classifier
from llama_runtime.tasks.embed import Embedder, load_embedder
from llama_runtime.tasks.tag import Tag, Tagger, entities, load_tagger

__all__ = [
    "Answer",
    "Answerer",
    "Classification",
    "Classifier",
    "Embedder",
    "Tag",
    "Tagger",
    "entities",
    "load_answerer",
    "load_classifier",
    "load_embedder",
    "load_tagger",
]
