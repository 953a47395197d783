#!/usr/bin/env python
"""See `python tools/predict.py --help`; the command itself is dada_det/commands/predict.py."""

from dada_det.commands.predict import main

if __name__ == "__main__":
    raise SystemExit(main())
