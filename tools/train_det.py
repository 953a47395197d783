#!/usr/bin/env python
"""See `python tools/train_det.py --help`; the command itself is dada_det/commands/train_det.py."""

from dada_det.commands.train_det import main

if __name__ == "__main__":
    raise SystemExit(main())
