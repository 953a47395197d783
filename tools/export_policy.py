#!/usr/bin/env python
"""See `python tools/export_policy.py --help`; the command itself is dada_det/commands/export_policy.py."""

from dada_det.commands.export_policy import main

if __name__ == "__main__":
    raise SystemExit(main())
