#!/usr/bin/env python
"""See `python tools/compare_backbones.py --help`; the command itself is dada_det/commands/compare_backbones.py."""

from dada_det.commands.compare_backbones import main

if __name__ == "__main__":
    raise SystemExit(main())
