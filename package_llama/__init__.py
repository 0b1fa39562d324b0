"""Does the work of package_llama.sh: makes a checked, quantized GGUF file and the archives that TorchServe loads."""
