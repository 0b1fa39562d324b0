"""What package_llama.sh does: weights -> sound quantized GGUF -> archives for TorchServe. Knows nothing of shells."""
