#!/usr/bin/env bash
# Collects the packages that first_gpu.sh needs and a machine with PyTorch and transformers for CUDA lacks, as
# wheels of pure Python: for a machine without a network. Run it where there is one.
#   launch/gpu_wheels.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."

folder=${1:-gpu_wheels}
# Hydra's antlr4 is published as source alone: wheel builds it. Hydra 1.3 needs an omegaconf below 2.4.
python3 -m pip wheel --quiet --no-deps --wheel-dir "$folder" \
    "hydra-core>=1.3,<1.4" "omegaconf>=2.3,<2.4" "antlr4-python3-runtime==4.9.*" webdataset braceexpand
for wheel in "$folder"/*.whl; do
    [[ $wheel == *-none-any.whl ]] || { echo "$wheel is for one platform only"; exit 1; }
done
du -sh "$folder"
