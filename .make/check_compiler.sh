#!/usr/bin/env bash
# Checks, before llama.cpp is compiled, that this machine can compile it.
#
# Usage: .make/check_compiler.sh <python>
#
# Prints one sentence and exits with status 1 if there is no working compiler, or if a Mac with an Apple processor has a
# Python for Intel processors. On such a Mac llama.cpp uses Metal without any flag. On other machines with CUDA's
# compiler, prints how to compile with CUDA.

refuse() { # SENTENCE
    echo "$1" >&2
    exit 1
}

check_compiler() {
    local output
    output="$(cc --version 2>&1)" && return
    [ "$(uname -s)" = Darwin ] || refuse "There is no C++ compiler: install one (on Debian: apt-get install build-essential)."
    case "$output" in
        *license*) refuse "Apple's compiler needs a license: run 'sudo xcodebuild -license accept', then this again." ;;
        *) refuse "Apple's compiler is missing: run 'xcode-select --install', then this again." ;;
    esac
}

check_python() { # PYTHON
    [ "$(uname -s)" = Darwin ] && [ "$(sysctl -n hw.optional.arm64 2>/dev/null)" = 1 ] || return 0
    [ "$("$1" -c 'import platform; print(platform.machine())')" = arm64 ] ||
        refuse "$1 is for Intel processors, so llama.cpp would be slow: use one for Apple's (make PYTHON=/path/to/python3)."
}

main() {
    check_compiler
    check_python "$1"
    if command -v nvcc >/dev/null && [ -z "${CMAKE_ARGS-}" ]; then
        echo "For this machine's NVIDIA GPU, compile with CUDA: rm -rf .venv, then CMAKE_ARGS=-DGGML_CUDA=on make chat."
    fi
}

main "$@"
