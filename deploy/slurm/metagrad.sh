#!/usr/bin/env bash
# A training run on a Slurm allocation: a Ray head on its first node, a worker on each other one, the run on all of them.
#
#   sbatch deploy/slurm/metagrad.sh RUN_DIR EXPERIMENT [--field value …]
#   sbatch --nodes 5 --cpus-per-task 32 deploy/slurm/metagrad.sh /scratch/me/pong-0 atari --env.game Pong --actors 128 …
#
# RUN_DIR is on storage that all nodes share, or a URL. Three minutes before the time is up the run writes a checkpoint and
# the job goes back into the queue, where the same command continues it; so it does before preemption where Slurm has
# PreemptParameters=send_user_signal. To end a run with a checkpoint: `scancel --batch --signal=TERM JOB`. Plain scancel
# ends Ray's processes along with it, and the run keeps its last regular checkpoint.
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

refuse() {
    echo "metagrad: $1" >&2
    exit 2
}

[ $# -ge 2 ] || refuse "usage: sbatch metagrad.sh RUN_DIR EXPERIMENT [--field value …]"
root=${SLURM_SUBMIT_DIR:-$PWD}
bin=${METAGRAD_BIN:-$root/.venv/bin}
[ -x "$bin/metagrad" ] || refuse "METAGRAD_BIN = '$bin': holds no metagrad; install it there (make train), or name its folder"
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
shared=(--num-cpus="$cpus" --temp-dir="$folder" --block)
export RAY_ADDRESS=$address:$port

on "$head" ray start --head --node-ip-address="$address" --port="$port" --ray-client-server-port=$((port + 1)) \
    --include-dashboard=false "${shared[@]}" &
raylets=($!)
for node in "${nodes[@]:1}"; do
    on "$node" ray start --address="$RAY_ADDRESS" "${shared[@]}" &
    raylets+=($!)
done

code=1
clean_up() {
    trap - EXIT
    kill "${raylets[@]}" 2>/dev/null || true
    wait || true
    case $code in # otherwise Ray's logs are of use
        0 | 75) srun --ntasks-per-node=1 --overlap rm -rf "$folder" || true ;;
    esac
}
trap clean_up EXIT

joined() { on "$head" ray status --address="$RAY_ADDRESS" 2>/dev/null | grep -c '^ 1 node_' || true; }
for _ in $(seq 60); do
    [ "$(joined)" -lt "${#nodes[@]}" ] || break
    kill -0 "${raylets[0]}" 2>/dev/null || refuse "Ray's head has ended on $head; what it said is above"
    sleep 5
done

python "$root/deploy/continue_run.py" "$@" &
run=$!
is_time_up=""
# shellcheck disable=SC2329 # the traps call it
stop() { kill -TERM "$run" 2>/dev/null || true; }
trap 'is_time_up=yes; stop' USR1
trap stop TERM INT
code=0
wait "$run" || code=$?
while kill -0 "$run" 2>/dev/null; do # a signal ended the first wait; the run still writes its checkpoint
    code=0
    wait "$run" || code=$?
done
if [ "$code" -eq 75 ] && [ -n "$is_time_up" ]; then # stopped in good order, and not finished
    clean_up # while there still are steps
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
