#!/bin/bash
# On each host of a Cloud TPU slice: worker.sh CONFIG [FLAGS…]
# The hosts are those that the metadata server of the slice names; the first is the coordinator.
set -euo pipefail

metadata() {
    curl --silent --fail --header "Metadata-Flavor: Google" \
        "http://${GCE_METADATA_IP:-metadata.google.internal}/computeMetadata/v1/instance/attributes/$1"
}

endpoints=$(metadata worker-network-endpoints) # of each host its name, or NAME:ID:IP
IFS=, read -ra hosts <<<"$endpoints"
JAX_PROCESS_ID=$(metadata agent-worker-number)
export JAX_PROCESS_ID
export JAX_NUM_PROCESSES=${#hosts[@]}
export JAX_COORDINATOR_ADDRESS=${hosts[0]##*:}:8482
exec llm-train "$@"
