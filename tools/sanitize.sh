#!/usr/bin/env bash
# Run the kernels' tests in a build in which every access to memory is checked, and everything that C++ leaves undefined.
#
#   tools/sanitize.sh              tests/ops/native, with each kind of kernels that this processor can run
#   tools/sanitize.sh -k rotary    what follows is handed on to pytest
#
# Needs GCC and the environment of `make test`.  What is installed stays as it is: build/sanitize gets a copy of the
# package with a library of its own.  PYTHON names another interpreter that has the tools of the tests.
set -euo pipefail
cd "$(dirname "$0")/.."

export PYTHON=${PYTHON:-$PWD/.venv/bin/python}
export CXX=${CXX:-g++}
export PLACE=build/sanitize
FLAGS="-std=c++17 -O1 -g1 -fvisibility=hidden -ffp-contract=off -fno-math-errno -pthread -fPIC"
FLAGS+=" -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -fno-var-tracking"
export FLAGS

main() {
    rm -rf "$PLACE"
    mkdir -p "$PLACE/objects"
    cp -r vllm tests pyproject.toml "$PLACE"
    find "$PLACE" -name '_kernels.*' -delete
    build
    cd "$PLACE"
    # Memory of Python and torch is checked too, once malloc is ours.  libstdc++ must be there when exceptions are caught.
    LD_PRELOAD="$(library libasan.so) $(library libubsan.so) $(library libstdc++.so)" PYTHONMALLOC=malloc \
        ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
        "$PYTHON" -m pytest -p no:cacheprovider --capture=sys tests/ops/native "$@"  # what is found goes to stderr itself
}

build() {
    local include digest suffix
    include=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    suffix=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
    digest=$("$PYTHON" -c 'import runpy; print(runpy.run_path("vllm/ops/native/sources.py")["digest"]())')
    FLAGS+=" -I$include -DSOURCES_DIGEST=\"$digest\""
    printf '%s\n' vllm/ops/native/src/*.cpp | xargs -P "$(nproc)" -I{} bash -c \
        '"$CXX" $FLAGS -c {} -o "$PLACE/objects/$(basename {} .cpp).o"'
    "$CXX" $FLAGS -shared "$PLACE"/objects/*.o -o "$PLACE/vllm/ops/native/_kernels$suffix"
}

library() {
    "$CXX" -print-file-name="$1"
}

main "$@"
