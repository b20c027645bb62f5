#!/usr/bin/env bash
# Two hosts or more, by torchrun. Start this script on every host, with the same values.
#   launch/two_hosts_torchrun.sh [key=value ...]      arguments win over the values below
set -euo pipefail

# Change these, or give them in front: per_host=8 launch/two_hosts_torchrun.sh
name=${name:-two_hosts}
hosts=${hosts:-2}
per_host=${per_host:-4}                   # processes of a host, one for each GPU
rendezvous=${rendezvous:-host-1:29500}    # one of the hosts, as all of them reach it, and a free port
output=${output:-/shared/outputs}         # a folder that all hosts see

# If a process dies, torchrun starts all of them again, and they continue from the newest checkpoint. The
# variable is torch's own: the new processes must not read what those before them left in the store.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# Restarts over several hosts need c10d, whose agents unpickle what they find at that port: nobody else may reach
# it. Without restarts there is another way: docs/cluster.md, Network.
# Half of the processes run the language model, half train.
exec torchrun --nnodes "$hosts" --nproc-per-node "$per_host" --max-restarts 3 \
    --rdzv-backend c10d --rdzv-endpoint "$rendezvous" --rdzv-id "$name" \
    -m sae_dist.cli train \
    name="$name" \
    output="$output" \
    resume=auto \
    topology.producers="$((hosts * per_host / 2))" \
    topology.shard="$((hosts * per_host / 2))" \
    sae.num_latents=65536 \
    "$@"
