"""A program in other formats: ONNX, OpenVINO, GGUF, compressed-tensors. No torch."""
