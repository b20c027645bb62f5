#!/usr/bin/env bash
# One run as a Slurm job. Start this where sbatch is; slurm/README.md says what happens then.
#   launch/slurm_one_node.sh [--dry-run] [key=value ...]      arguments win over the values below
set -euo pipefail

# Change these, or give them in front: cluster=mysite launch/slurm_one_node.sh
name=${name:-one_job}
cluster=${cluster:-example_gpu}           # conf/cluster/mysite.yaml: copy example_gpu.yaml, put your names in
processes=${processes:-8}                 # tasks of the job, each with the CPUs and GPUs of the cluster's file
nodes=${nodes:-1}
output=${output:-/shared/outputs}         # a folder that all nodes see

# The processes must divide the latents and the batch (2048): 1, 2, 4, 8, 16, 32 and 64 do.
exec sae-dist submit \
    cluster="$cluster" \
    cluster.nodes="$nodes" \
    name="$name" \
    output="$output" \
    topology.shard="$processes" \
    sae.num_latents=65536 \
    train_tokens=20M \
    "$@"
