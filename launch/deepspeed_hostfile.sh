#!/usr/bin/env bash
# Several hosts, by DeepSpeed's launcher and a hostfile. Start this script on every host, each with its number.
#   node_rank=0 launch/deepspeed_hostfile.sh [key=value ...]      arguments win over the values below
set -euo pipefail

# Change these, or give them in front.
name=${name:-hostfile}
hostfile=${hostfile:-hosts}          # a line for each host: worker-1 slots=4
node_rank=${node_rank:?the number of this host in the hostfile, from 0}
first=${first:-worker-1}             # the first host, as all of them reach it
port=${port:-29500}                  # a free port of it
per_host=${per_host:-4}              # processes of a host, as in the hostfile
output=${output:-/shared/outputs}    # a folder that all hosts see

# For the check of a host's memory: DeepSpeed does not say how many processes share it.
export LOCAL_WORLD_SIZE=$per_host
# The processes of all hosts share the dictionary.
exec deepspeed --hostfile "$hostfile" --no_ssh --node_rank "$node_rank" \
    --master_addr "$first" --master_port "$port" --no_local_rank \
    --module sae_dist.cli train \
    name="$name" \
    output="$output" \
    resume=auto \
    topology.shard="$((per_host * $(grep -c slots= "$hostfile")))" \
    sae.num_latents=65536 \
    "$@"
