#!/usr/bin/env bash
# Everything that is to be measured on a machine with CUDA, within ten minutes: kernels, tests of the kernels,
# whole models. Figures go to docs/results/gpu-*.json. A command that fails, or takes longer than its share, is
# named at the end, and the others run.
#
#   benchmarks/gpu.sh                    in a checkout, with the package installed
#   TOME=path benchmarks/gpu.sh          against a checkout of ToMe's own repository
#   DRY=1 benchmarks/gpu.sh              print the commands
#   ATTENTION=flash_attention_2 OUT=folder PYTHON=python3.12 TOKENZOO=.venv/bin/tokenzoo benchmarks/gpu.sh

set -u -o pipefail
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python}
tokenzoo=${TOKENZOO:-tokenzoo}
out=${OUT:-docs/results}
attention=${ATTENTION:-sdpa}
failed=()

run() { # seconds, then a command
    local limit=$1
    shift
    if [[ -n ${DRY:-} ]]; then
        echo "$*"
        return
    fi
    echo "== $*"
    timeout "$limit" "$@" || failed+=("exit code $? (124: longer than $limit s): $*")
}

bench() { # seconds, a model, a name for the file, then options
    local limit=$1 model=$2 name=$3
    shift 3
    run "$limit" "$tokenzoo" bench "$model" --device cuda --dtype bfloat16 "$@" --out "$out/gpu-$name.json"
}

run 80 "$python" benchmarks/kernel_time.py --device cuda --dtype bfloat16 --out "$out/gpu-kernel-time.json"
run 60 "$python" -m pytest -q tests/kernels tests/hooks -k cuda
bench 110 llava-video-7b llava-video-7b --frames 64 --keep 64,32,16 --recipe evoprune,divprune,random,uniform \
    --attention "$attention" --rounds 7 --warmup 2 --plot "$out/gpu-llava-video-7b.png"
bench 60 llava-1.5-7b llava-1.5-7b --keep 128,64,32 --recipe evoprune,divprune,visionzip,random,uniform \
    --attention "$attention" --rounds 15 --warmup 2 --unfused --plot "$out/gpu-llava-1.5-7b.png"
bench 60 qwen2.5-vl-7b qwen2.5-vl-7b --frames 16 --keep 0.25,0.125 --recipe evoprune,divprune,random,uniform \
    --attention "$attention" --rounds 9 --warmup 2
bench 40 siglip-so400m-384 siglip-so400m-384 --batch 64 --keep 64,32,16 --recipe evoprune,tome,random,uniform \
    --mode eager,graph --rounds 9 --warmup 2 --unfused
bench 40 vit-l/16-384 vit-l-16-384 --batch 64 --keep 0.5,0.25 --recipe tome,evoprune,random,uniform \
    --mode eager,graph --rounds 9 --warmup 2
if [[ -n ${TOME:-} ]]; then
    run 40 "$python" benchmarks/tome_peer.py --tome "$TOME" --model vit-l/16-384 --batch 64 --device cuda \
        --dtype bfloat16 --tolerance 0.05 --out "$out/gpu-tome-peer.json"
fi
# Last, because a compiler may take long.
bench 110 llava-video-7b llava-video-7b-compiled --frames 64 --keep 64 --recipe evoprune \
    --attention "$attention" --mode compile --rounds 7

if ((${#failed[@]})); then
    printf 'failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
