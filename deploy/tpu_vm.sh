#!/usr/bin/env bash
# Installs pixart_jax on every worker of a Cloud TPU VM, and starts a run on all of them; docs/containers.md has an example.
#
#   deploy/tpu_vm.sh install NAME ZONE                                    # this checkout's commit
#   deploy/tpu_vm.sh start NAME ZONE --config=CONFIG --workdir=/shared/DIR [--config.key=value ...]
#   deploy/tpu_vm.sh log NAME ZONE                                        # the last lines of every worker
#   deploy/tpu_vm.sh stop NAME ZONE                                       # with a checkpoint; start goes on from it
set -euo pipefail

usage() {
  sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

[[ $# -ge 3 ]] || usage
what=$1 name=$2 zone=$3
shift 3

# The same command on all workers at once; it ends when the last of them has.
on_all() {
  gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"
}

case $what in
  install)
    [[ $# -eq 0 ]] || usage
    root=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)
    archive=$(mktemp -d)/pixart_jax.tar.gz
    trap 'rm -rf "$(dirname "$archive")"' EXIT
    git -C "$root" archive --format=tar.gz --output="$archive" HEAD
    gcloud compute tpus tpu-vm scp "$archive" "$name:pixart_jax.tar.gz" --zone="$zone" --worker=all
    # Images of TPU VMs have an older Python than the package takes.
    on_all 'set -e
      if ! command -v python3.11 >/dev/null || ! python3.11 -c "import ensurepip" 2>/dev/null; then
        sudo apt-get update -qq && sudo apt-get install -y -qq python3.11-venv
      fi
      rm -rf pixart_jax.source && mkdir pixart_jax.source && tar -xzf pixart_jax.tar.gz -C pixart_jax.source
      [ -x pixart_jax.venv/bin/pip ] || python3.11 -m venv pixart_jax.venv
      pixart_jax.venv/bin/pip install --quiet "./pixart_jax.source[tpu]"
      pixart_jax.venv/bin/python -c "import importlib.metadata as m; print(m.version(\"pixart_jax\"), m.version(\"jax\"))"'
    ;;
  start)
    [[ $# -gt 0 ]] || usage
    arguments=$(printf ' %q' "$@")
    # It outlives this connection; a second start while one runs is refused.
    on_all "set -e
      if [ -e pixart_jax.pid ] && kill -0 \"\$(cat pixart_jax.pid)\" 2>/dev/null; then
        echo \"a run is under way here: process \$(cat pixart_jax.pid)\" >&2; exit 1
      fi
      nohup setsid pixart_jax.venv/bin/pixart-train$arguments >>pixart_jax.log 2>&1 </dev/null &
      echo \$! >pixart_jax.pid; echo \"started as process \$!\""
    ;;
  log)
    [[ $# -eq 0 ]] || usage
    on_all 'tail -n 5 pixart_jax.log'
    ;;
  stop)
    [[ $# -eq 0 ]] || usage
    # To all of them: they end after the same step, which is saved.
    # shellcheck disable=SC2016  # Expanded there.
    on_all 'pid=$(cat pixart_jax.pid) || exit 0
      kill -TERM "$pid" 2>/dev/null || exit 0
      while kill -0 "$pid" 2>/dev/null; do sleep 1; done; tail -n 1 pixart_jax.log'
    ;;
  *) usage ;;
esac
