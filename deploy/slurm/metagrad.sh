#!/usr/bin/env bash
# Train on a Slurm allocation: start a Ray head on its first node and a worker on each other node, and run on all of them.
#
#   sbatch deploy/slurm/metagrad.sh RUN_DIR EXPERIMENT [--field value …]
#   sbatch --gpus-per-node 4 deploy/slurm/metagrad.sh RUN_DIR EXPERIMENT --learners 12   # a learner for each GPU
#   METAGRAD_BIN=/opt/metagrad/bin sbatch --nodes 5 --cpus-per-task 32 metagrad.sh /scratch/me/pong-0 atari --env.game Pong …
#
# RUN_DIR must be on storage that all nodes share, or a URL. You may copy this file anywhere; it needs only an installed metagrad.
#
# Three minutes before the time limit the run writes a checkpoint and the job is requeued; the same command then continues it.
# The same happens before preemption if Slurm has PreemptParameters=send_user_signal. To end a run with a checkpoint use
# `scancel --batch --signal=TERM JOB`: the job is then COMPLETED, and the same sbatch continues the run later. Plain scancel
# kills Ray's processes too, which leaves the last regular checkpoint.
#
#   METAGRAD_BIN   folder with ray and metagrad on all nodes; default: .venv/bin of the folder in which sbatch was called
#   RAY_AUTH_TOKEN_PATH   file of the token on all nodes; default: ~/.ray/auth_token (from `ray get-auth-token --generate`)
#SBATCH --job-name=metagrad
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=metagrad-%j.log
set -euo pipefail

# Remember signals from the first line on: unhandled, one would end the job at once, without requeueing it.
signals="" run=""
# shellcheck disable=SC2329 # the traps call it
asked() {
    signals+=" $1"
    [ -z "$run" ] || kill -TERM "$run" 2>/dev/null || true
}
trap 'asked USR1' USR1
trap 'asked TERM' TERM INT

refuse() {
    echo "metagrad: $1" >&2
    exit 2
}

[ $# -ge 2 ] || refuse "usage: sbatch metagrad.sh RUN_DIR EXPERIMENT [--field value …]"
bin=${METAGRAD_BIN:-${SLURM_SUBMIT_DIR:-$PWD}/.venv/bin}
[ -x "$bin/metagrad-continue" ] || refuse "METAGRAD_BIN = '$bin': holds no metagrad; install it there (make train), or name its folder"
export PATH="$bin:$PATH" RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 OMP_WAIT_POLICY=PASSIVE
export RAY_AUTH_TOKEN_PATH=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}
[ -s "$RAY_AUTH_TOKEN_PATH" ] || refuse "RAY_AUTH_TOKEN_PATH = '$RAY_AUTH_TOKEN_PATH': no token there; run ray get-auth-token --generate"

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
cpus=${SLURM_CPUS_PER_TASK:-1}
on() { # node, command …: run it with all of the node's share, next to what runs there, replacing the calling subshell
    local node=$1
    shift
    exec srun --nodes=1 --ntasks=1 --nodelist="$node" --cpus-per-task="$cpus" --overlap "$@"
}

# This is the node's address as another node sees it; its name may resolve to 127.0.1.1. No packet is sent.
address=$(python -c '
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    probe.connect((sys.argv[1], 9))
    print(probe.getsockname()[0])' "${nodes[1]:-$head}")
# Two jobs on one node must not collide: use ports above those of Ray's workers, and a folder of the job's own.
port=$((20000 + SLURM_JOB_ID % 6000 * 2))
folder=/tmp/ray-$SLURM_JOB_ID
export RAY_ADDRESS=$address:$port
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 # nodes end with or after the run; Slurm waits only 30 s for everything

# This script runs Ray on one node. It removes its folder itself, because Slurm starts no further step for a cancelled job.
# It is ended by a signal that srun forwards (srun kills after SIGTERM): SIGUSR2, or SIGUSR1 to keep Ray's logs.
# shellcheck disable=SC2016 # expanded there
node='
folder=$1 signal="" ray=""
shift
end() { signal=$1; kill -TERM "$ray" 2>/dev/null; }
trap "end USR1" USR1
trap "end USR2" USR2 TERM INT
ray start "$@" --temp-dir="$folder" --block &
ray=$!
code=0
wait "$ray" || code=$?
[ -n "$signal" ] || exit "$code"
while kill -0 "$ray" 2>/dev/null; do wait "$ray"; done
[ "$signal" = USR1 ] || rm -rf "$folder" || { sleep 1; rm -rf "$folder"; } # something may just have been written into it'
on "$head" bash -c "$node" ray-head "$folder" --head --node-ip-address="$address" --port="$port" \
    --ray-client-server-port=$((port + 1)) --include-dashboard=false --num-cpus="$cpus" &
raylets=($!)
for other in "${nodes[@]:1}"; do
    on "$other" bash -c "$node" ray-worker "$folder" --address="$RAY_ADDRESS" --num-cpus="$cpus" &
    raylets+=($!)
done

code=1
clean_up() {
    local signal=USR1
    trap - EXIT
    case $code in 0 | 75 | 143) signal=USR2 ;; esac
    kill "-$signal" "${raylets[@]}" 2>/dev/null || true
    wait "${raylets[@]}" || true
}
trap clean_up EXIT

joined() { on "$head" ray status --address="$RAY_ADDRESS" 2>/dev/null | grep -c '^ 1 node_' || true; }
for _ in $(seq 60); do
    [ "$(joined)" -lt "${#nodes[@]}" ] || break
    [ -z "$signals" ] || break
    kill -0 "${raylets[0]}" 2>/dev/null || refuse "Ray's head has ended on $head; what it said is above"
    sleep 5 &
    wait $! || kill $! 2>/dev/null || true # a signal ends the wait
done

code=75 # not started, hence not finished
if [ -z "$signals" ]; then
    metagrad-continue "$@" &
    run=$!
    while :; do # a signal ends a wait; the run still writes its checkpoint
        before=$signals
        code=0
        wait "$run" || code=$?
        [ "$signals" != "$before" ] || break
    done
fi
# 75: the run stopped properly before its end. 143: SIGTERM came before it could handle it, so there was nothing to save.
case "$code,$signals" in
    75,*USR1* | 143,*USR1*)
        clean_up # while steps can still be started
        echo "metagrad: the time is up; the job goes back into the queue, and then on from the newest checkpoint" >&2
        scontrol requeue "$SLURM_JOB_ID" || echo "metagrad: job $SLURM_JOB_ID cannot be queued again; call the same sbatch anew" >&2
        ;;
    75,*TERM* | 143,*TERM*)
        echo "metagrad: stopped as asked; the same sbatch goes on from the newest checkpoint" >&2
        clean_up
        exit 0
        ;;
esac
exit "$code"
