#!/usr/bin/env python
"""See `python tools/compare_policies.py --help`; the command itself is dada_det/commands/compare_policies.py."""

from dada_det.commands.compare_policies import main

if __name__ == "__main__":
    raise SystemExit(main())
