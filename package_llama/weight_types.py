"""The types of weights that package_llama.sh can make, and what is known about each. Imports no other package."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Quantization:
    """A type of GGUF file.

    file_type: llama.cpp's LLAMA_FTYPE_MOSTLY_<name>, which is the file's general.file_type.
    bits: bits per weight, for Llama 2 7B.
    tensor_types: the ggml types that llama.cpp mixes in this file. The last ones are for rows that are no multiple of
    the block size.
    worst_ratio: the limit for the file's perplexity, as a multiple of its source's. A small model loses several times
    less, and a broken file loses hundreds of times more.
    """

    file_type: int
    bits: float
    tensor_types: frozenset[int]
    worst_ratio: float


F32, F16, Q4_0, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K = 0, 1, 2, 6, 7, 8, 12, 13, 14  # enum ggml_type

QUANTIZATIONS = {
    "Q4_0": Quantization(2, 4.55, frozenset({F32, F16, Q4_0, Q6_K, Q8_0}), 1.5),
    "Q4_K_M": Quantization(15, 4.85, frozenset({F32, F16, Q4_K, Q6_K, Q5_0, Q8_0}), 1.3),
    "Q5_K_M": Quantization(17, 5.7, frozenset({F32, F16, Q5_K, Q6_K, Q5_1, Q8_0}), 1.3),
    "Q8_0": Quantization(7, 8.51, frozenset({F32, F16, Q8_0}), 1.05),
    "F16": Quantization(1, 16.01, frozenset({F32, F16}), 1.05),
}
