"""ONNX files whose weights are stored as packed bits and unpacked by standard operators."""
