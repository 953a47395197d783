#!/usr/bin/env python
"""See `python tools/test_det.py --help`; the command itself is dada_det/commands/test_det.py."""

from dada_det.commands.test_det import main

if __name__ == "__main__":
    raise SystemExit(main())
