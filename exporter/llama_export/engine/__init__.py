"""Stage 6: a bundle's model becomes a TensorRT engine: options, graph, lint, profiles, build."""
