"""Runs several commands in one process, as the imports of each would take longer than the command itself on tiny data.

    command.py stages.py TASKS LOGS      TASKS: a JSON file {name: [module, argument, ..]}; a module has main(argv)

What a command says goes to LOGS/<name>.log; the last line of it is its exit code, or that of a traceback.
"""

import contextlib
import importlib
import json
import traceback
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> int:
    tasks, logs = Path(argv[0]), Path(argv[1])
    logs.mkdir(parents=True, exist_ok=True)
    for name, (module, *arguments) in json.loads(tasks.read_text()).items():
        with open(logs / f"{name}.log", "w", encoding="utf-8") as log, contextlib.redirect_stdout(log), \
                contextlib.redirect_stderr(log):
            try:
                print("exit code", importlib.import_module(module).main(arguments))
            except BaseException:  # a stage that fails costs no other
                traceback.print_exc()
    return 0


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
