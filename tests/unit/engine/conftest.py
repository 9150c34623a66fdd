from talking_checkpoint import quick_graphs, talking, talking_bundle

__all__ = ["quick_graphs", "talking", "talking_bundle"]
