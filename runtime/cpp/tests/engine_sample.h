// An engine's sidecar, as the exporter writes them: one layer, two kv heads of four values, 16 slots.
#pragma once

inline const char* const k_engine_sample = R"({
  "format": "llama-export-engine", "version": 1, "task": "text-generation",
  "product": "tensorrt", "product_version": "11.4.0.106", "compute_capabilities": ["8.9"],
  "precision": "fp16", "dtype": "float16", "max_seq": 16, "prefill_chunk": 3, "max_batch": 1, "buckets": [4, 8, 16],
  "profiles": [{"rows": [1, 1, 1], "tokens": [1, 1, 1], "buckets": [4, 4, 4]},
               {"rows": [1, 1, 1], "tokens": [1, 1, 1], "buckets": [8, 8, 8]},
               {"rows": [1, 1, 1], "tokens": [1, 1, 1], "buckets": [16, 16, 16]},
               {"rows": [1, 1, 1], "tokens": [1, 3, 3], "buckets": [4, 16, 16]}],
  "inputs": [{"name": "input_ids", "dtype": "int64", "shape": ["batch_size", "sequence_length"]},
             {"name": "position_ids", "dtype": "int64", "shape": ["batch_size", "sequence_length"]},
             {"name": "write_indices", "dtype": "int64", "shape": ["batch_size"]},
             {"name": "kv_bucket", "dtype": "int64", "shape": [1]},
             {"name": "past_key_values.0.key", "dtype": "float16", "shape": ["batch_size", 2, 16, 4]},
             {"name": "past_key_values.0.value", "dtype": "float16", "shape": ["batch_size", 2, 16, 4]}],
  "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch_size", 5]},
              {"name": "present.0.key", "dtype": "float16", "shape": ["batch_size", 2, 16, 4]},
              {"name": "present.0.value", "dtype": "float16", "shape": ["batch_size", 2, 16, 4]}],
  "aliases": {"present.0.key": "past_key_values.0.key", "present.0.value": "past_key_values.0.value"},
  "onnx": {"path": "trt/fp16.onnx", "size_bytes": 1, "sha256": "00"},
  "plan": {"path": "trt/fp16.plan", "size_bytes": 3, "sha256": "ba7816bf"},
  "version_compatible": true, "refittable": false, "stripped": false, "rebuild": ["--precision", "fp16"], "build_seconds": 1.5})";
