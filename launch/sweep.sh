#!/usr/bin/env bash
# A sweep on this machine: one run for every combination of the lists, one after the other; then one table.
# For dictionaries that read the same activations a grid is cheaper: the language model runs once (docs/train.md).
#   launch/sweep.sh [key=value ...]      arguments win over the values below
set -euo pipefail

# Change these, or give them in front: k=32 launch/sweep.sh
name=${name:-sweep}
latents=${latents:-4096,16384}
k=${k:-16,32}

# The same command again trains what is missing.
sae-dist train -m \
    name="$name" \
    resume=auto \
    sae.num_latents="$latents" \
    sae.k="$k" \
    train_tokens=2M \
    "$@"
sae-dist report "outputs/$name"
