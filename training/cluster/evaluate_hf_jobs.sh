#!/bin/bash
# Evaluates a pipeline on N GPUs of HF Jobs:  training/cluster/evaluate_hf_jobs.sh N DATASET MODEL BUCKET
#
# DATASET and MODEL are repositories of the Hub, such as org/knees; results come into the storage bucket BUCKET, which
# all jobs mount. Each begins with another part of the work. A bucket shows the files of one job to another only after
# a while, so that a unit may be done twice at the end: its result is the same. Needs `hf auth login`.
set -euo pipefail
n=$1
for part in $(seq 1 "$n"); do
    hf jobs run --detach --flavor a10g-small --timeout 8h --secrets HF_TOKEN \
        --volume "hf://datasets/$2:/data" --volume "hf://buckets/$4:/results" \
        python:3.12 \
        bash -c "pip install sgr-diffusers && sgr evaluate /data --model '$3' --output /results/evaluation --part $part/$n"
done
