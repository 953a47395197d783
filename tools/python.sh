#!/usr/bin/env bash
# The active environment's python or python3, where it has dada_det; else that of ./.venv, which `make setup` creates.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
has='import sys; from importlib.util import find_spec; sys.exit(not (find_spec("dada_det") and find_spec("mmengine")))'
for python in python python3 "$root/.venv/bin/python"; do
    if (cd / && "$python" -c "$has") 2>/dev/null; then exec "$python" "$@"; fi
done
echo "tools: error: neither the active environment nor $root/.venv has dada_det whole; run \`make setup\` in $root" >&2
exit 2
