"""Tools on whole models: benchmark, pictures, tracing, ONNX, compatibility, model loading."""
