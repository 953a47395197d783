#!/usr/bin/env bash
# The python of the active environment, where it has dada_det; else that of ./.venv, which `make setup` creates.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then exec python "$@"; fi
if [ -x "$root/.venv/bin/python" ]; then exec "$root/.venv/bin/python" "$@"; fi
echo "tools: error: no environment is active and $root/.venv does not exist; run \`make setup\` there" >&2
exit 2
