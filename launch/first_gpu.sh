#!/usr/bin/env bash
# The first time that a GPU is there: is it right, how fast is it, does it hold? Three parts of ten minutes.
#   launch/first_gpu.sh [--device cuda|cpu] [--part 1|2|3|all] [--out FOLDER] [--wheels FOLDER] [--minutes M]
# Every step has a time limit, its own log, a line in index.txt and, where it measures, a JSON with what was
# expected beside what was found. A step that fails stops no other; one that would pass the part's minutes is
# left out and said. What is finished is kept if all is killed: index.txt and first_gpu.tgz grow with each step.
# Nothing is fetched: packages that are missing come from --wheels, made by gpu_wheels.sh. --device cpu tries the
# script itself, with small sizes.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

device=cuda part=all out=first_gpu wheels='' minutes=9.3
while [ $# -gt 0 ]; do
    case $1 in
    --device) device=$2 ;;
    --part) part=$2 ;;
    --out) out=$2 ;;
    --wheels) wheels=$2 ;;
    --minutes) minutes=$2 ;;
    *) echo "first_gpu.sh: there is no $1; use --device, --part, --out, --wheels, --minutes" >&2; exit 2 ;;
    esac
    shift 2 || { echo "first_gpu.sh: a value is missing" >&2; exit 2; }
done
case $device-$part in
cuda-[123] | cpu-[123] | cuda-all | cpu-all) ;;
*) echo "first_gpu.sh: --device is cuda or cpu, --part is 1, 2, 3 or all; not $device, $part" >&2; exit 2 ;;
esac

mkdir -p "$out/logs"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
export PYTHONPATH=$root PYTHONUNBUFFERED=1 WANDB_MODE=offline HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
if [ -n "$wheels" ]; then
    python3 -m pip install --quiet --no-index --no-deps --target "$work/packages" "$wheels"/*.whl || exit 1
    export PYTHONPATH=$root:$work/packages
fi
small='' patience=1 ends=0 failed=0
# Limits are a card's; a CPU that tries the script may have other work.
[ "$device" = cpu ] && small=--small patience=3

# say NAME LIMIT COMMAND...: runs a step, and notes how it ended.
say() {
    local name=$1 limit=$(($2 * patience)) began code
    shift 2
    began=$(date +%s)
    if [ $((began + limit)) -gt "$ends" ]; then
        echo "$name left out: less than its $limit s are left of this part" | tee -a "$out/index.txt"
        return
    fi
    timeout -k 5 "$limit" "$@" >"$out/logs/$name.log" 2>&1
    code=$?
    [ $code = 0 ] || failed=1
    echo "$name rc=$code $(($(date +%s) - began)) s | $(tail -n 1 "$out/logs/$name.log" | cut -c 1-400)" |
        tee -a "$out/index.txt"
    tar czf "$out/first_gpu.new" -C "$out" index.txt logs $(cd "$out" && ls ./*.json 2>/dev/null) &&
        mv "$out/first_gpu.new" "$out/first_gpu.tgz"
}
measure() { say "$1" "$2" python3 -m sae_dist.bench.first.run "$1" --device "$device" $small --out "$out"; }
# train NAME LIMIT WORDS...: a run on rows or on the embedded language model.
train() {
    local name=$1 limit=$2
    shift 2
    say "$name" "$limit" python3 -m sae_dist.cli train "name=$name" "device=$device" metrics.wandb=off "$@"
}
is_small() { [ -n "$small" ]; }

part_1() {
    measure env 40
    measure kernels 90
    measure waits 60
    measure group 60
    local latents=16384 steps=20
    is_small && latents=1024
    for kind in topk batchtopk matryoshka relu jumprelu gated; do
        train "kind_$kind" 60 "sae=$kind" activations=synthetic "sae.num_latents=$latents" \
            "train_tokens=$((steps * 2048))" eval.tokens=0
    done
    train rows_adam 60 optim=row_adam activations=synthetic "sae.num_latents=$latents" \
        "train_tokens=$((steps * 2048))" eval.tokens=0
    # The default dictionary is too narrow for the sweep; this one is not.
    train swept 90 "sae.num_latents=$latents" train_tokens=60k eval.tokens=20k eval.ce_tokens=0
    if is_small; then
        say tests 240 python3 -m pytest -q -n 0 -o "cache_dir=$work/cache" "$root/tests/kernels/test_backends.py"
    else
        say tests 200 python3 -m pytest -q -n 8 -o "cache_dir=$work/cache" --maxfail 20 "$root/tests/kernels"
        command -v compute-sanitizer >/dev/null &&
            say memory_check 90 compute-sanitizer --error-exitcode 9 python3 -m sae_dist.bench.first.run kernels \
                --device cuda --small --out "$out/memory_check"
    fi
}

part_2() {
    local bench=(python3 -m sae_dist.cli bench)
    if is_small; then
        say bench_kernels 60 "${bench[@]}" kernels --device cpu --latents 4096 --width 64 --k 8 --batch 256 --folder "$out"
    else
        say bench_131072_k64 60 "${bench[@]}" kernels --latents 131072 --width 2304 --k 64 --batch 8192 --folder "$out/k64"
        say bench_131072_k32 60 "${bench[@]}" kernels --latents 131072 --width 2304 --k 32 --batch 8192 --folder "$out/k32"
        say bench_1048576_k32 90 "${bench[@]}" kernels --latents 1048576 --width 2304 --k 32 --batch 8192 --folder "$out/wide"
    fi
    measure step 90
    measure redone 90
    measure fused 90
    measure blocks 150
    measure profile 90
    if is_small; then
        say bench_step 120 "${bench[@]}" step --device cpu --only ours --latents 2048 --width 64 --batch 256 --rounds 2 --folder "$out"
    else
        say bench_step 260 "${bench[@]}" step --preset h200 --only ours,ours_row_adam,dense --minutes 3.5 --folder "$out"
    fi
}

part_3() {
    measure last_row 60
    measure wide 150
    measure widest 180
    local latents=131072
    is_small && latents=2048
    measure resumed 180
    train llm 120 llm.random_init=true train_tokens=100k eval.tokens=0
    if [ "$device" = cpu ]; then
        train shards 90 topology.shard=2 activations=synthetic "sae.num_latents=$latents" \
            "train_tokens=$((10 * 2048))" eval.tokens=0
        say stream 60 python3 -m sae_dist.cli check --device cpu --chunks 64
    elif [ "$(nvidia-smi -L | wc -l)" -gt 1 ]; then
        train shards 90 topology.shard=2 activations=synthetic "sae.num_latents=$latents" \
            "train_tokens=$((10 * 2048))" eval.tokens=0
        say stream 60 python3 -m sae_dist.cli check --device cuda
    else
        echo "shards, stream left out: they need two GPUs" | tee -a "$out/index.txt"
    fi
}

[ "$part" = all ] && parts=(1 2 3) || parts=("$part")
for each in "${parts[@]}"; do
    ends=$(awk "BEGIN { printf \"%d\", $(date +%s) + $minutes * 60 * $patience }")
    echo "part $each" | tee -a "$out/index.txt"
    "part_$each"
done
exit $failed
