"""ONNX graphs written from programs."""
