#!/usr/bin/env bash
# Says, before llama.cpp is compiled, why that cannot work here and what to do about it.
#
# Usage: package_llama/check_compiler.sh <python>
#
# Ends with 1 and one sentence where the compiler refuses, or where a Mac's Python is one for Intel processors. On a Mac
# with an Apple processor llama.cpp uses Metal without any flag; elsewhere this hints at CUDA where its compiler is there.

refuse() { # SENTENCE
    echo "$1" >&2
    exit 1
}

check_compiler() {
    local said
    said="$(cc --version 2>&1)" && return
    [ "$(uname -s)" = Darwin ] || refuse "There is no C++ compiler: install one (on Debian: apt-get install build-essential)."
    case "$said" in
        *license*) refuse "Apple's compiler waits for its license: run 'sudo xcodebuild -license accept', then this again." ;;
        *) refuse "Apple's compiler is missing: run 'xcode-select --install', then this again." ;;
    esac
}

check_python() { # PYTHON
    [ "$(uname -s)" = Darwin ] && [ "$(sysctl -n hw.optional.arm64 2>/dev/null)" = 1 ] || return 0
    [ "$("$1" -c 'import platform; print(platform.machine())')" = arm64 ] ||
        refuse "$1 is for Intel processors, and llama.cpp would crawl: use one for Apple's (make PYTHON=/path/to/python3)."
}

main() {
    check_compiler
    check_python "$1"
    if command -v nvcc >/dev/null && [ -z "${CMAKE_ARGS-}" ]; then
        echo "For this machine's NVIDIA GPU, compile with CUDA: make clean, then CMAKE_ARGS=-DGGML_CUDA=on make chat."
    fi
}

main "$@"
