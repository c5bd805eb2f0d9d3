#!/usr/bin/env bash
# Runs one job on the cluster that this machine belongs to:
#     cluster/run.sh jobs/score_imagenet.py job.yaml [further options of raybench score]
# MLflow's address comes from MLFLOW_TRACKING_URI, which a Secret sets, or from ~/.raybench.env.
set -euo pipefail

if [ "$#" -lt 2 ]; then
  echo "usage: $0 jobs/JOB.py JOB.yaml [options]" >&2
  exit 2
fi
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
script="$1"
settings="$2"
shift 2

secrets="${RAYBENCH_ENV_FILE:-${HOME:-}/.raybench.env}"
if [ -f "$secrets" ]; then
  case "$(stat -c %a "$secrets")" in
    *00) ;;
    *)
      echo "$secrets can be read by others; run: chmod 600 $secrets" >&2
      exit 2
      ;;
  esac
  set -a
  # shellcheck disable=SC1090
  . "$secrets"
  set +a
fi

options=()
if [ -n "${MLFLOW_TRACKING_URI:-}" ]; then
  options+=(--tracking-uri "$MLFLOW_TRACKING_URI")
fi
exec "${RAYBENCH_PYTHON:-python}" "$here/$script" --config "$settings" "${options[@]}" "$@"
