#!/usr/bin/env bash
# Make or complete the virtual environment .venv: an interpreter, a torch that fits the machine, and this package.
#
#   tools/environment.sh          the package, editable
#   tools/environment.sh test     the tools that tests and checks need, beside it
#
# PYTHON names the interpreter to use.  On Linux, PyPI's torch brings gigabytes of CUDA libraries; on a machine without
# an NVIDIA GPU the build for processors is taken from PyTorch's own index instead.
set -euo pipefail
cd "$(dirname "$0")/.."

CPU_INDEX=https://download.pytorch.org/whl/cpu
TORCH_NEWEST='torch==2.13.0' # of the range in pyproject.toml
VENV_PYTHON=.venv/bin/python

main() {
    if [[ ${1-} == test ]]; then
        install_test_tools
        return
    fi
    "$VENV_PYTHON" -m pip --version >/dev/null 2>&1 || make_venv
    has_torch || install_torch
    echo "environment: installing vllm and what it needs, and compiling its kernels"
    "$VENV_PYTHON" -m pip install --quiet --editable .
}

make_venv() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            echo "environment: $("$candidate" --version) in .venv"
            "$candidate" -m venv --clear .venv
            return
        fi
    done
    echo "environment: ${PYTHON:-python3} is not a Python from 3.11 to 3.13; name one with PYTHON=..." >&2
    exit 1
}

has_torch() {
    "$VENV_PYTHON" -m pip --isolated install --quiet --dry-run --no-index --no-deps "$(torch_range)" 2>/dev/null
}

install_torch() {
    if [[ $(uname -s) != Linux ]] || nvidia-smi >/dev/null 2>&1; then
        echo "environment: installing torch"
        "$VENV_PYTHON" -m pip install --quiet "$(torch_range)"
    elif reachable "$CPU_INDEX/torch/"; then
        echo "environment: installing torch for processors from $CPU_INDEX"
        "$VENV_PYTHON" -m pip install --quiet "$(torch_range)" --index-url "$CPU_INDEX"
    else
        # An index or a folder of pip's own configuration may hold a build for processors; 2.13.0+cpu sorts above 2.13.0.
        echo "environment: $CPU_INDEX cannot be reached; installing the $TORCH_NEWEST that pip finds"
        "$VENV_PYTHON" -m pip install --quiet "$TORCH_NEWEST"
    fi
}

# Not by way of the package's extra "test", which would compile the kernels once more.
install_test_tools() {
    local tools
    mapfile -t tools < <(project '"\n".join(project["optional-dependencies"]["test"])')
    echo "environment: installing what tests and checks need"
    "$VENV_PYTHON" -m pip install --quiet "${tools[@]}"
}

torch_range() {
    project '*(line for line in project["dependencies"] if line.startswith("torch"))'
}

# Print what an expression finds in pyproject.toml.
project() {
    "$VENV_PYTHON" -c "
import tomllib
with open('pyproject.toml', 'rb') as file:
    project = tomllib.load(file)['project']
print($1)"
}

reachable() {
    "$VENV_PYTHON" -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=3)' "$1" 2>/dev/null
}

main "$@"
