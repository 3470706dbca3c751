#!/usr/bin/env bash
# Checks and measures the package on an accelerator in about eight minutes, and trains the general prior in what is left.
#
#   tests/benchmarks/accelerator.sh OUTPUT [DEVICE] [PICTURES] [SECONDS]
#
# DEVICE is cuda by default; with cpu everything runs at tiny size. PICTURES is an HDF5 file for `train_varied.py`.
# OUTPUT gets a text for each part, and the folder `prior` of the training, from where it goes on the next time.
# Each part has a time limit of its own, and a part that fails does not keep the next from running.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
output=$(realpath -m "${1:?usage: accelerator.sh OUTPUT [DEVICE] [PICTURES] [SECONDS]}")
device=${2:-cuda} pictures=${3:-} seconds=${4:-480}
python=$([[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python3)
mkdir -p "$output"
size=(--preset paper --size 512 160 --coils 16 --variants float32 bfloat16 channels_last checkpointing --repetitions 3)
batch=(--train-batch-size 192 --mixed-precision bf16 --bank-slices 4000)
if [[ $device == cpu ]]; then
    size=(--preset small --size 32 16 --coils 2 --classes 2 --batch-sizes 2)
    batch=(--train-batch-size 2 --bank-slices 4 --channels 8 32 --validation-images 2)
    seconds=$((seconds < 60 ? seconds : 60))
fi
start=$SECONDS
export PYTHONPATH=$PWD

SGR_TEST_DEVICE=$device timeout 120 "$python" -m pytest -q -p no:cacheprovider tests/pipeline/test_device.py \
    >"$output/tests.txt" 2>&1
echo "tests: exit code $?"
timeout 180 "$python" tests/benchmarks/benchmark_paper_size.py --device "$device" "${size[@]}" \
    >"$output/paper_size.txt" 2>&1
echo "paper size: exit code $?"
left=$((seconds - (SECONDS - start)))
minutes=$(awk -v left="$left" 'BEGIN { print (left > 60 ? left - 40 : 20) / 60 }')
started=sgr_diffusers/pretrained/general
[[ -d $output/prior/unet ]] && started=$output/prior
[[ $device == cpu ]] && started=
timeout $((left > 60 ? left + 60 : 180)) "$python" training/train_varied.py --network prior --output-dir "$output/prior" \
    ${started:+--init-from "$started"} ${pictures:+--pictures "$pictures" --folds 1 2} --max-train-minutes "$minutes" \
    "${batch[@]}" >"$output/training.txt" 2>&1
echo "training: exit code $?"
