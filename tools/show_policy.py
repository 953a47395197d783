#!/usr/bin/env python
"""See `python tools/show_policy.py --help`; the command itself is dada_det/commands/show_policy.py."""

from dada_det.commands.show_policy import main

if __name__ == "__main__":
    raise SystemExit(main())
