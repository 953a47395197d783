#!/usr/bin/env bash
# The active environment's python, where it has dada_det; else that of ./.venv, which `make setup` creates.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
has='import sys; from importlib.util import find_spec; sys.exit(not (find_spec("dada_det") and find_spec("mmengine")))'
if (cd / && python -c "$has") 2>/dev/null; then exec python "$@"; fi
if [ -x "$root/.venv/bin/python" ]; then exec "$root/.venv/bin/python" "$@"; fi
echo "tools: error: the active environment has no dada_det and $root/.venv does not exist; run \`make setup\` there" >&2
exit 2
