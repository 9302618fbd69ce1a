#!/usr/bin/env bash
# A training run on a Slurm allocation: a Ray head on its first node, a worker on each other one, the run on all of them.
#
#   sbatch deploy/slurm/metagrad.sh RUN_DIR EXPERIMENT [--field value …]
#   METAGRAD_BIN=/opt/metagrad/bin sbatch --nodes 5 --cpus-per-task 32 metagrad.sh /scratch/me/pong-0 atari --env.game Pong …
#
# RUN_DIR is on storage that all nodes share, or a URL. This file may lie anywhere; of metagrad it needs what pip installs.
#
# Three minutes before the time is up the run writes a checkpoint and the job goes back into the queue, where the same
# command continues it; so it does before preemption where Slurm has PreemptParameters=send_user_signal. To end a run with a
# checkpoint: `scancel --batch --signal=TERM JOB`; the job is COMPLETED then, and the same sbatch goes on with the run. Plain
# scancel ends Ray's processes along with it, and the run keeps its last regular checkpoint.
#
#   METAGRAD_BIN   folder with ray and metagrad, on all nodes; .venv/bin of the folder that sbatch was called in
#   RAY_AUTH_TOKEN_PATH   the token's file, on all nodes; ~/.ray/auth_token (`ray get-auth-token --generate` makes it)
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

# From the first line on, signals are remembered: unanswered, one would end the job at once, with nothing queued again.
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
on() { # node, command …: with all of the node's share, beside what runs there, in place of the subshell that asks for it
    local node=$1
    shift
    exec srun --nodes=1 --ntasks=1 --nodelist="$node" --cpus-per-task="$cpus" --overlap "$@"
}

# This node's address as another one sees it; its name may stand for 127.0.1.1. No packet is sent.
address=$(python -c '
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    probe.connect((sys.argv[1], 9))
    print(probe.getsockname()[0])' "${nodes[1]:-$head}")
# Two jobs on one node do not meet: ports above those of Ray's workers, and a folder that no other user has made.
port=$((20000 + SLURM_JOB_ID % 6000 * 2))
folder=/tmp/ray-$SLURM_JOB_ID
export RAY_ADDRESS=$address:$port
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 # a node ends after the run or together with it; Slurm waits 30 s for all of it

# Ray on one node. The step removes its folder itself: of a job that is cancelled, Slurm starts no further step. It ends by
# a signal that srun passes on (after SIGTERM srun kills): SIGUSR2, or SIGUSR1 where Ray's logs are of use.
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
[ "$signal" = USR1 ] || rm -rf "$folder" || { sleep 1; rm -rf "$folder"; } # it may just have been written into'
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

code=75 # not begun, so not finished
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
# 75: stopped in good order, and not finished. 143: SIGTERM came before the run could listen, so it had nothing to keep.
case "$code,$signals" in
    75,*USR1* | 143,*USR1*)
        clean_up # while there still are steps
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
