"""Files for other programs: GGUF for llama.cpp, ONNX for onnxruntime."""
