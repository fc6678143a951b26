#!/bin/bash
# deploy/tpu/launch.sh my-slice us-east5-a /mnt/runs/config.yaml
# Start a run on every host of a Cloud TPU slice, from a machine with gcloud. Every host has
# light-llm-jax[tpu] in ~/venv, and the same file system at /mnt/runs.
set -euo pipefail
slice=${1:?"usage: launch.sh SLICE ZONE CONFIG"} zone=${2:?"no ZONE"} config=${3:?"no CONFIG"}
here=$(dirname "$0")

gcloud compute tpus tpu-vm scp "$here/worker.sh" "$slice:" --zone="$zone" --worker=all
gcloud compute tpus tpu-vm ssh "$slice" --zone="$zone" --worker=all \
    --command="PATH=~/venv/bin:\$PATH bash worker.sh $(printf %q "$config") --resume auto"
