#!/usr/bin/env bash
# Creates ./.venv from uv.lock; brings uv into ./.uv where there is none. `make setup` calls it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# A version manager's shim can stand on the PATH without a Python behind it, so every candidate is tried.
python=
for candidate in ${PYTHON:-} python3.12 python3.11 python3; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
        python=$(command -v "$candidate"); break
    fi
done
if [ -z "$python" ]; then
    echo "setup: error: Python 3.11 or 3.12 is needed and none was found; install one or set PYTHON=/path/to/python" >&2
    exit 2
fi
uv=$(command -v uv || true)
if [ -z "$uv" ]; then
    if [ ! -x .uv/bin/uv ]; then
        "$python" -m venv .uv
        .uv/bin/python -m pip install --quiet --disable-pip-version-check uv
    fi
    uv=.uv/bin/uv
fi
"$uv" sync --frozen --quiet --python "$python"
echo "setup  done: ./.venv, $(.venv/bin/python --version)"
