#!/usr/bin/env bash
# A sweep as one Slurm array, a run for every combination of the lists. Needs pip install -e '.[slurm]'.
#   launch/slurm_sweep.sh [key=value ...]      arguments win over the values below
set -euo pipefail

# Change these, or give them in front: cluster=mysite launch/slurm_sweep.sh
name=${name:-sweep}
cluster=${cluster:-example_gpu}      # conf/cluster/mysite.yaml: copy example_gpu.yaml, put your names in
latents=${latents:-16384,65536}
k=${k:-32,64}
output=${output:-/shared/outputs}    # a folder that all nodes see

# cluster.jobs=4: at most four at once. Afterwards: sae-dist sweep-table "$output/$name"
exec sae-dist train -m hydra/launcher=slurm \
    cluster="$cluster" \
    name="$name" \
    output="$output" \
    sae.num_latents="$latents" \
    sae.k="$k" \
    train_tokens=20M \
    "$@"
