#!/bin/sh
# Fetches into .whl/ what benchmarks/gpu.py needs on a lent GPU machine without network (Python 3.12, x86-64), where
# torch, torchvision, numpy, Pillow, matplotlib, typer and pytest are installed. .whl/ must be ignored by git.
#
# usage: sh benchmarks/gpu_wheels.sh            PYTHON=... for another Python with pip than python3
#
# The source distribution of inplace-abn, which cannot tell its own needs without torch and setuptools, is fetched if
# PYTHON or .venv has torch; without it the GPU script leaves its comparison out.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
mkdir -p .whl
rm -f .whl/*.whl .whl/*.tar.gz

fetch() {
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --python-version 3.12 --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 \
        --platform manylinux2014_x86_64 --platform manylinux1_x86_64 --dest .whl "$@"
}

fetch pydantic
# pydantic belongs to one version of its core.
core=$(unzip -p .whl/pydantic-*.whl '*/METADATA' | sed -n 's/^Requires-Dist: \(pydantic-core==[^ ;]*\).*/\1/p')
fetch "$core" typing-extensions annotated-types typing-inspection rich markdown-it-py mdurl pygments
# To build inplace-abn there.
fetch setuptools-scm vcs-versioning

build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
"$python" -m venv "$build"
site=$("$build/bin/python" -c 'import glob, os; print(":".join(glob.glob(os.getcwd() + "/.venv/lib/python*/site-packages")))')
if "$build/bin/pip" install --quiet --disable-pip-version-check setuptools setuptools-scm wheel &&
    PYTHONPATH=$site "$build/bin/pip" download --quiet --disable-pip-version-check --no-deps --no-binary :all: \
        --no-build-isolation --dest .whl inplace-abn; then
    :
else
    echo "inplace-abn left out" >&2
fi
ls -l .whl
