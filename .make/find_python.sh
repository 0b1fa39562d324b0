#!/bin/sh
# Prints the Python that the set-up uses: that of .venv, else python3, python3.13, python3.12 or python3.11 on the PATH.
#
# Usage: .make/find_python.sh [python]
#
# With an argument, takes that one. Prints one sentence with the command that brings a Python, and exits with status 1, if
# there is none of these versions. (Python 3.14: every wheel is there, but TorchServe 0.12 was not tried with it.)

CHECK='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'

fits() { # PYTHON
    [ -n "$(command -v "$1")" ] && "$1" -c "$CHECK" >/dev/null 2>&1
}

# Prints one command that installs Python 3.13, or the newest of the three versions that the system's packages have.
command_for_python() {
    if [ -n "$(command -v uv)" ]; then
        echo "uv python install 3.13" && return
    elif [ -n "$(command -v brew)" ]; then
        echo "brew install python@3.13" && return
    elif [ -n "$(command -v apt-cache)" ]; then
        for version in 3.13 3.12 3.11; do
            # apt-cache is silent for a package that it does not know.
            if apt-cache policy "python$version-venv" 2>/dev/null | grep -q 'Candidate: [0-9]'; then
                echo "sudo apt-get install python$version-venv" && return
            fi
        done
    elif [ -n "$(command -v dnf)" ]; then
        echo "sudo dnf install python3.12" && return
    fi
    # shellcheck disable=SC2016 # the reader's shell expands it
    echo 'curl -LsSf https://astral.sh/uv/install.sh | sh && "$HOME/.local/bin/uv" python install 3.13'
}

main() {
    given="$1"
    [ -n "$given" ] || set -- .venv/bin/python python3 python3.13 python3.12 python3.11 "$HOME/.local/bin/python3.13"
    for python in "$@"; do
        fits "$python" && echo "$python" && return
    done
    echo "${given:+$given is not one: }Python 3.11, 3.12 or 3.13 is needed. This brings it: $(command_for_python)" >&2
    return 1
}

main "$@"
