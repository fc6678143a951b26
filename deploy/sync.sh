#!/bin/bash
# deploy/sync.sh checkpoints/my-run gs://my-bucket/my-run [SECONDS]
# Copy the checkpoints of a run to a bucket, again and again until SIGTERM or Ctrl-C, and then once
# more. SECONDS is the time between two copies, 300; 0 copies once.
# The config.json of a checkpoint holds the checksums of its other files, so it goes last: a
# checkpoint that was copied in part is found out when it is read. Back: the same tool, the other way.
set -euo pipefail
run=${1:?"usage: sync.sh CHECKPOINT_DIR URL [SECONDS]"} url=${2:?"no URL"} pause=${3:-300}
[ -d "$run" ] || { echo "sync.sh: there is no folder $run" >&2; exit 2; }

copy() {
    case $url in
    gs://*)
        gcloud storage rsync --recursive --exclude='(^|.*/)\..*|.*\.config\.json$' "$run" "$url"
        gcloud storage rsync --recursive --exclude='(^|.*/)\..*' "$run" "$url"
        ;;
    s3://*)
        aws s3 sync --exclude '.*' --exclude '*/.*' --exclude '*.config.json' "$run" "$url"
        aws s3 sync --exclude '.*' --exclude '*/.*' "$run" "$url"
        ;;
    *)
        echo "sync.sh: $url must begin with gs:// or s3://" >&2
        exit 2
        ;;
    esac
}

ending=0
trap 'ending=1' TERM INT
while copy; [ "$pause" != 0 ] && [ "$ending" = 0 ]; do
    sleep "$pause" &
    wait $! || true # a signal ends the wait
    kill $! 2>/dev/null || true
done
[ "$pause" = 0 ] || copy
