#!/bin/sh
# Send SIGTERM to the training runs of this container and wait until they have written a checkpoint.
#
# When a node stops, Ray ends drivers with SIGKILL, and only a container's first process is warned. Call this script before
# the container stops: docker/ray_node.sh and the preStop hooks for Kubernetes do.
#
#   metagrad-drain [SECONDS]     longest time to wait; 100 by default
set -eu

seconds=${1:-100}
proc=${METAGRAD_PROC:-/proc}

# Print the words of a process's command line, one per line; nothing for a process that has ended, zombies included.
words() {
    tr '\0' '\n' 2>/dev/null <"$proc/$1/cmdline" || true
}

# True for the driver of a training run: a Python whose script is metagrad, also as `metagrad submit --install` begins it, or
# metagrad-continue. The shell in which Ray may start one has the same words in its command line, but would die of a signal
# without passing it on.
is_driver() {
    words "$1" | {
        read -r interpreter && read -r script || return 1
        case ${interpreter##*/} in python*) ;; *) return 1 ;; esac
        case ${script##*/} in
            metagrad-continue) return 0 ;;
            metagrad) grep -qx train ;;
            -c) read -r code && case $code in *metagrad.cli.entry*) grep -qx train ;; *) return 1 ;; esac ;;
            *) return 1 ;;
        esac
    }
}

drivers=""
for folder in "$proc"/[0-9]*; do
    if is_driver "${folder##*/}"; then drivers="$drivers ${folder##*/}"; fi
done
[ -n "$drivers" ] || exit 0

echo "metagrad-drain: asking$drivers to write a checkpoint" >&2
for pid in $drivers; do
    kill -TERM "$pid" 2>/dev/null || true # it has just ended by itself
done
while :; do
    left=""
    for pid in $drivers; do
        if [ -n "$(words "$pid")" ]; then left="$left $pid"; fi
    done
    [ -n "$left" ] || exit 0
    [ "$seconds" -gt 0 ] || break
    sleep 1
    seconds=$((seconds - 1))
done
echo "metagrad-drain: still running:$left; what they have is their last regular checkpoint" >&2
exit 1
