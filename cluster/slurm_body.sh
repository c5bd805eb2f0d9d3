
set -euo pipefail

fail() {
  echo "raybench: $*" >&2
  exit 2
}

for name in SLURM_JOB_ID SLURM_JOB_NODELIST; do
  [ -n "${!name:-}" ] || fail "$name is not set: submit this file with sbatch"
done
[ -x "$VENV/bin/ray" ] || fail "there is no $VENV/bin/ray: make the environment as in cluster/README.md"
[ -f "$CHECKOUT/cluster/run.sh" ] || fail "there is no checkout of raybench at $CHECKOUT"
[ -f "$JOB" ] || fail "there is no $JOB: run python cluster/render.py in the checkout"
# shellcheck disable=SC1091
source "$VENV/bin/activate"

# A node that dies takes its own step with it and nothing else: raybench goes on with the rest.
steps=()
driver=""
signals=0
private="$ROOT/.raybench/$SLURM_JOB_ID"
temp="/tmp/ray-$SLURM_JOB_ID"

cleanup() {
  trap '' TERM
  if [ "${#steps[@]}" -gt 0 ]; then
    kill -TERM "${steps[@]}" 2>/dev/null || true
    for _ in $(seq "$GRACE_S"); do
      kill -0 "${steps[@]}" 2>/dev/null || break
      sleep 1
    done
    kill -KILL "${steps[@]}" 2>/dev/null || true
  fi
  rm -rf "$private" "$temp"
}

# Sent some time before the time limit (--signal above), at a preemption where the site sends it to
# scripts, and by scancel. The driver keeps what is computed, hands back the rest and ends with 143.
# shellcheck disable=SC2317,SC2329
on_term() {
  echo "raybench: asked to stop; results stay in $ROOT" >&2
  signals=$((signals + 1))
  if [ -n "$driver" ]; then
    kill -TERM "$driver" 2>/dev/null || true
  fi
}
trap cleanup EXIT
trap on_term TERM

# The token: made anew for every allocation, seen by every node, read by its owner only.
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH="$private/token"
(
  umask 077
  mkdir -p "$ROOT/.raybench" "$private"
  chmod 700 "$private"
  python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$RAY_AUTH_TOKEN_PATH"
  chmod 600 "$RAY_AUTH_TOKEN_PATH"
)

export RAY_USAGE_STATS_ENABLED=0
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=10
export RAYBENCH_CACHE="$ROOT/results/cache"
export TORCH_HOME="$RAYBENCH_CACHE/torch"
export HF_HOME="$RAYBENCH_CACHE/huggingface"
# srun does not take over --cpus-per-task by itself.
export SRUN_CPUS_PER_TASK="$CPUS"

# Ports by job, so that two jobs on one machine do not meet; below the ephemeral ports.
slot=$((SLURM_JOB_ID % 4000))
port=$((20000 + 2 * slot))
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
[ -n "${nodes[0]:-}" ] || fail "scontrol names no nodes for $SLURM_JOB_NODELIST"
head="${nodes[0]}"
address="$head:$port"

launch() { # NODE, then options of ray start; runs in the background and becomes srun
  exec srun --nodes=1 --ntasks=1 --nodelist="$1" \
    ray start --block --num-cpus="$CPUS" --num-gpus="$GPUS" --dashboard-agent-listen-port=0 \
    "${@:2}"
}

# A worker whose Ray ends gets it started again, twice: Ray gives a node 30 seconds to come up,
# which a busy file system overruns, and one that runs out of memory is worth having back.
keep() {
  local step=""
  trap 'kill -TERM "$step" 2>/dev/null || true; wait "$step" || true; exit 143' TERM
  for _ in 1 2 3; do
    launch "$@" &
    step=$!
    wait "$step" && return
  done
}

echo "raybench: head on $address, ${#nodes[@]} node(s)"
ready=""
for try in 1 2 3; do
  launch "$head" --head --port="$port" --ray-client-server-port="$((port + 1))" \
    --dashboard-host=127.0.0.1 --dashboard-port="$((28000 + slot))" --temp-dir="$temp" \
    >"$private/head.log" 2>&1 &
  steps=("$!")
  for _ in $(seq "$START_S"); do
    if [ "$signals" -gt 0 ] || ! kill -0 "${steps[0]}" 2>/dev/null; then break; fi
    if grep -q "Ray runtime started" "$private/head.log"; then ready=yes; break; fi
    sleep 1
  done
  if [ "$signals" -gt 0 ] || [ -n "$ready" ]; then break; fi
  cat "$private/head.log" >&2
  kill -KILL "${steps[0]}" 2>/dev/null || true
  [ "$try" -lt 3 ] || fail "the head did not start on $address; see above"
done

code=143
if [ "$signals" -eq 0 ]; then
  for node in "${nodes[@]:1}"; do
    keep "$node" --address="$address" &
    steps+=("$!")
  done
  "$CHECKOUT/cluster/run.sh" "$SCRIPT" "$JOB" --address "$address" "$@" &
  driver=$!
  [ "$signals" -eq 0 ] || kill -TERM "$driver" 2>/dev/null || true
  # A signal ends `wait` early, with a code that is not the driver's.
  while true; do
    before="$signals"
    code=0
    wait "$driver" || code=$?
    [ "$before" -ne "$signals" ] || break
  done
fi
if [ "$code" -ne 0 ] && ! kill -0 "${steps[0]}" 2>/dev/null; then
  cat "$private/head.log" >&2
  echo "raybench: the head on $head ended before the job did; see above" >&2
fi
echo "raybench: ended with $code"

if [ "$signals" -gt 0 ] && [ "$code" -ne 0 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt "$REQUEUES" ]; then
  # A job that is still running was warned of its end; one that was cancelled stays cancelled.
  state="$(scontrol show job "$SLURM_JOB_ID" | grep -o 'JobState=[A-Z_]*' || true)"
  if [ "$state" = "JobState=RUNNING" ]; then
    cleanup
    trap - EXIT
    scontrol requeue "$SLURM_JOB_ID"
  fi
fi
exit "$code"
