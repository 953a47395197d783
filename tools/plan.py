#!/usr/bin/env python
"""See `python tools/plan.py --help`; the command itself is dada_det/commands/plan.py."""

from dada_det.commands.plan import main

if __name__ == "__main__":
    raise SystemExit(main())
