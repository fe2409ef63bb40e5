"""ONNX graphs of the table: networks, pooled taps, distances, 8-bit integers."""
