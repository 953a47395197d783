"""What every command shares: its flags, its exit codes, and the start of several processes."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dada_det.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def run(body: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser,
        argv: Sequence[str] | None = None, module: str | None = None) -> int:
    """Parses `argv`, runs `body` and returns the exit code: 0, 2 for a user's mistake, 130 for an interrupt.

    With --gpus N > 1 the command starts itself again as `python -m module` in N processes (torchrun).
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(argv)
    try:
        if module is not None and getattr(args, "gpus", 1) > 1 and "LOCAL_RANK" not in os.environ:
            from dada_det.engine.launch import start_processes

            return start_processes(module, argv, args.gpus)
        body(args)
    except UserError as error:
        if int(os.environ.get("RANK", "0")) == 0:
            print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted; the same command with --resume goes on from the last checkpoint",
              file=sys.stderr)
        return 130
    return 0


def parser_for(prog: str, description: str, example: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=prog, description=description, epilog=f"example:\n  {example}",
                                   formatter_class=argparse.RawDescriptionHelpFormatter)


def add_stage_flags(parser: argparse.ArgumentParser, config: str) -> None:
    """The flags that search and pretraining have in common (DESIGN: "Names others rely on")."""
    parser.add_argument("--config", default=config, help="mmengine config file (default: %(default)s)")
    parser.add_argument("--data", metavar="DIR", help="folder that holds train/<class>/*; default: data.root of the config")
    parser.add_argument("--val-data", metavar="DIR", help="folder <class>/* to validate on, instead of the default one")
    parser.add_argument("--work-dir", metavar="W", help="where results go (default: work_dirs/<config stem>)")
    add_common_flags(parser)
    parser.add_argument("--epochs", type=positive, metavar="N")
    parser.add_argument("--batch-size", type=positive, metavar="N", help="total over all processes")
    parser.add_argument("--image-size", type=positive, metavar="N", help="side of the square images in pixels")
    parser.add_argument("--seed", type=int, metavar="N", help="(default: the config's, 0)")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --work-dir")


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gpus", type=positive, default=1, metavar="N",
                        help="processes; without that many GPUs they talk over gloo on the CPU (default: 1)")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="key=value",
                        help="change any entry of the config, as in MMDetection")


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return number


def load_config(path: str, options: Sequence[str] = ()) -> Any:
    """Reads an mmengine config and applies `key=value` options; UserError where file or option is broken."""
    if not Path(path).is_file() and (ROOT / path).is_file():
        path = str(ROOT / path)  # the project's own configs are found from any folder
    if not Path(path).is_file():
        raise UserError(f"the config {path} does not exist; configs/ holds those that come with the project")
    from dada_det.engine.launch import read_config

    return read_config(path, options)
