#!/usr/bin/env python
"""See `python tools/train_arch.py --help`; the command itself is dada_det/commands/train_arch.py."""

from dada_det.commands.train_arch import main

if __name__ == "__main__":
    raise SystemExit(main())
