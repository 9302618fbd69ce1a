#!/bin/sh
# Run a Ray node as a container's command (`ray start … --block`). On SIGTERM let training runs write a checkpoint first.
#
#   metagrad-ray-node --head --port=6379 …
#   metagrad-ray-node --address=head:6379 …
set -eu

node="" is_stopped=""
# shellcheck disable=SC2329 # the trap calls it
stop() {
    trap '' TERM INT
    is_stopped=yes
    [ -n "$node" ] || exit 143
    metagrad-drain || true
    kill -TERM "$node" 2>/dev/null || true
}
trap stop TERM INT
ray start --block "$@" &
node=$!

# A signal ends the first wait; the second one waits for the node itself, which may have ended meanwhile.
status=0
wait "$node" || status=$?
if [ -n "$is_stopped" ] && [ "$status" -gt 128 ]; then
    status=0
    wait "$node" || status=$?
fi
exit "$status"
