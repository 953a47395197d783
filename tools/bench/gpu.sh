#!/usr/bin/env bash
# All that only a GPU can show, in about eight minutes: bash tools/bench/gpu.sh OUT [--cpu] [--only NAME ..]
# A bare GPU machine with torch and torchvision gets the other packages from .whl/ (wheels), where there are some.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
if [ -d .whl ] && [ ! -d .site ]; then
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target .site .whl/*.whl
fi
if [ -d .site ]; then
    export PYTHONPATH=$PWD/.site:$PWD${PYTHONPATH:+:$PYTHONPATH}
    exec python3 tools/bench/gpu.py "$@"
fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
exec bash tools/python.sh tools/bench/gpu.py "$@"
