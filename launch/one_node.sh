#!/usr/bin/env bash
# One machine with several GPUs, or several processes on its CPUs: sae-dist starts them itself.
#   launch/one_node.sh [key=value ...]      arguments win over the values below
set -euo pipefail

# Change these, or give them in front: processes=2 launch/one_node.sh
name=${name:-one_node}
processes=${processes:-8} # on GPUs, one each
producers=${producers:-0} # how many of them only run the language model; 0: all run it and train, in turn

# The processes that train must divide the latents and the batch (2048): 1, 2, 4, 8, 16, 32 and 64 do.
exec sae-dist train \
    name="$name" \
    resume=auto \
    topology.producers="$producers" \
    topology.shard="$((processes - producers))" \
    sae.num_latents=65536 \
    train_tokens=20M \
    "$@"
