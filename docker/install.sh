#!/usr/bin/env bash
# The install steps of both images, and of CI, which replays them in a fresh virtual environment.
#   docker/install.sh EXTRAS      for example: docker/install.sh test,minilm,dev
# torch comes first: what depends on it must find it, or pip fetches the build for another device.
set -euo pipefail
cd "$(dirname "$0")/.."
python -m pip install --upgrade pip
python -m pip install ${TORCH_SPEC:-torch==2.13.0}
python -m pip install -e ".[$1]"
