"""What every command shares: its flags, its exit codes, and the start of several processes."""

import argparse
import atexit
import io
import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dada_det import keys
from dada_det.engine.runtime.environment import check_processes, started_processes
from dada_det.errors import UserError

SENTENCES = "DADA_DET_SENTENCES"  # names the file in which the processes of one command leave their mistakes
CHECKPOINT = {name: keys.ANY for name in (  # of `checkpoint` in a stage's config: AtomicCheckpoint's arguments
    "keep", "steps", "seconds",
    "interval", "max_keep_ckpts", "by_epoch", "save_optimizer", "save_param_scheduler", "save_last",
    "save_begin", "save_best", "rule", "greater_keys", "less_keys", "published_keys", "out_dir", "filename_tmpl")}
NEARLY = 0.75
NOT_THE_CLASSIFIERS = {"weights": "give weights itself", "image_size": "give image_size itself",
                       "num_classes": "the data say how many classes there are"}
ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "dada_det"

# Read when torch loads OpenMP: threads that wait must not hold a core that a loader's worker or another process needs.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def run(body: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser,
        argv: Sequence[str] | None = None, module: str | None = None) -> int:
    """Parses `argv`, runs `body` and returns the exit code: 0, 2 for a user's mistake, 130 for an interrupt.

    With --gpus N > 1 the command starts itself again as `python -m module` in N processes (torchrun). Where torchrun or srun
    has started it, it joins the others before it says anything, and args.gpus is their number on all machines.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name need not be in the terminal's encoding
    args = parser.parse_args(argv)
    try:
        if module is not None:
            started = started_processes()
            check_processes(args.gpus, started)
            if args.gpus > 1 and "LOCAL_RANK" not in os.environ:
                return start(module, argv, args.gpus)
            if started > 1:
                from dada_det.engine.runtime.launch import join_processes

                join_processes()
                args.gpus = started
        body(args)
        leave_group()
        end_before_destructors(module, 0)
    except UserError as error:
        say(f"{parser.prog}: error: {error}")
        leave_group(failed=True)
        end_before_destructors(module, 2)
        return 2
    except ImportError as error:
        if not any(library in str(error) for library in ("libGL", "libgthread", "libglib")):
            raise
        say(f"{parser.prog}: error: cv2 does not load ({error}); run `pip uninstall -y opencv-python && pip install "
            "--force-reinstall --no-deps opencv-python-headless`, which needs no screen")
        return 2
    except KeyboardInterrupt:
        advice = "; the same command with --resume goes on from the last checkpoint" if hasattr(args, "resume") else ""
        print(f"{parser.prog}: interrupted{advice}", file=sys.stderr)
        return 130
    return 0


def leave_group(failed: bool = False) -> None:
    """Ends the group of the processes that this one is one of, if it has joined them."""
    if "LOCAL_RANK" in os.environ and "torch.distributed" in sys.modules:
        from dada_det.engine.runtime.launch import leave_processes

        leave_processes(failed)


def end_before_destructors(module: str | None, code: int) -> None:
    """Lets a process that torchrun has started as `module` end with `code` before torch's threads are destroyed.

    Those of a group that has ended can still abort the process, seldom and after all work is done ("terminate called
    without an active exception").
    """
    main = getattr(sys.modules["__main__"], "__spec__", None)
    if module is not None and "LOCAL_RANK" in os.environ and main is not None and main.name == module:
        atexit.register(end_now, code)


def end_now(code: int) -> None:
    """Ends this process with `code`, after the other handlers at exit; what it has printed is written first."""
    atexit.unregister(end_now)
    atexit._run_exitfuncs()  # this handler was registered last and runs first
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def named(texts: Sequence[str], flag: str) -> dict[str, str]:
    """Names and values of `flag`'s `[NAME=]VALUE`; without one a file's stem.

    Raises:
        UserError: a name is impossible or given twice.
    """
    names: dict[str, str] = {}
    for text in texts:
        label, equals, value = text.partition("=")
        if not equals or "/" in label:
            value, label = text, re.sub(r"[^\w.-]+", "-", Path(text.replace("{seed}", "")).stem)
        if not re.fullmatch(r"\w[\w.-]*", label) or not value:
            raise UserError(f"{flag} {text}: a name is made of letters, digits, '.', '_' and '-'; write NAME=VALUE")
        if label in names:
            raise UserError(f"{flag} has two called {label}; give each a name of its own, as in NAME={value}")
        names[label] = value
    return names


def start(module: str, argv: Sequence[str], processes: int) -> int:
    """Runs the command in `processes` processes and says once what any of them had to say."""
    from dada_det.engine.runtime.faults import LOST
    from dada_det.engine.runtime.launch import start_processes

    with tempfile.TemporaryDirectory() as folder:
        shared = Path(folder, "sentences")
        os.environ[SENTENCES] = str(shared)
        killed = False
        try:
            return start_processes(module, argv, processes)
        except UserError:
            killed = True
            raise
        finally:
            del os.environ[SENTENCES]
            said = list(dict.fromkeys(shared.read_text(encoding="utf-8").splitlines())) if shared.exists() else []
            # That one process misses another is news only where nobody says why.
            causes = [sentence for sentence in said if LOST not in sentence]
            for sentence in causes or ([] if killed else said[:1]):
                print(sentence, file=sys.stderr)


def say(sentence: str) -> None:
    """Prints a mistake in one line, once.

    Processes that `start_processes` has started give it to their parent. Of those that torchrun or srun has started one
    prints it for all."""
    shared, sentence = os.environ.get(SENTENCES), " ".join(sentence.splitlines())
    if shared is None:
        if "LOCAL_RANK" in os.environ:
            from dada_det.engine.runtime.launch import said_already

            if said_already(sentence):
                return
        print(sentence, file=sys.stderr)
    else:
        with open(shared, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(sentence + "\n")


def parser_for(prog: str, description: str, example: str) -> argparse.ArgumentParser:
    if Path(sys.argv[0]).name == "dada-det":
        prog = " ".join(["dada-det", *sys.argv[1:2]])
    return argparse.ArgumentParser(prog=prog, description=description, epilog=f"example:\n  {example}",
                                   formatter_class=argparse.RawDescriptionHelpFormatter)


def add_stage_flags(parser: argparse.ArgumentParser, config: str) -> None:
    """The flags that search and pretraining have in common."""
    parser.add_argument("--config", default=config, help="mmengine config file (default: %(default)s)")
    parser.add_argument("--data", metavar="DIR", help="folder that holds train/<class>/*; default: data.root of the config")
    parser.add_argument("--val-data", metavar="DIR", help="what to validate on, instead of the default: a folder <class>/*; "
                        "for a search on a detector a COCO file, or a folder in COCO's layout")
    parser.add_argument("--work-dir", metavar="W", help="where results go (default: work_dirs/<config stem>)")
    parser.set_defaults(stage_config=config)
    add_weights_flag(parser)
    add_common_flags(parser)
    parser.add_argument("--epochs", type=positive, metavar="N")
    parser.add_argument("--batch-size", type=positive, metavar="N", help="total over all processes")
    parser.add_argument("--image-size", type=positive, metavar="N", help="side of the square images in pixels")
    parser.add_argument("--seed", type=seed, metavar="N", help="(default: the config's, 0)")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --work-dir")
    add_keep_flag(parser)


def add_weights_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", metavar="FILE|timm",
                        help="what the network starts from: a state dict of timm's or torchvision's (.pth, .safetensors), "
                        "the r50.pth of a pretraining, or `timm` for timm's own pretrained weights, which it downloads; the "
                        "images are then prepared as for those weights (default: random weights)")


def add_keep_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keep", type=positive, metavar="N",
                        help="checkpoints that stay, the newest; an older one goes once the new one is whole (default: 2)")


def add_mirror_flag(parser: argparse.ArgumentParser, default: str = "what the policy's file says, else flip") -> None:
    parser.add_argument("--mirror", action=argparse.BooleanOptionalAction, default=None,
                        help="flip half of the training images left to right, or none, as for digits, text and signs "
                        f"(default: {default})")


def mirror_of(args: argparse.Namespace, config: Any, policys: bool | None) -> bool:
    """Whether a training flips: what the flag says, else the config's `mirror`, else the policy, else yes."""
    given = config.get("mirror")
    if not isinstance(given, bool | None):
        raise UserError(f"mirror is {given!r}; write mirror = True (flips), False (none) or None (as the policy says)")
    return next((answer for answer in (args.mirror, given, policys) if answer is not None), True)


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gpus", type=positive, default=1, metavar="N",
                        help="processes here; with fewer GPUs they share what there is and talk over gloo (default: "
                        "1); left out under torchrun and srun, which start them")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="key=value",
                        help="change any entry of the config, as in MMDetection")


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return number


def seed(text: str) -> int:
    number = int(text)
    if not 0 <= number < 2**32:
        raise argparse.ArgumentTypeError(f"{text} is not in 0..2^32-1")
    return number


def load_config(path: str, options: Sequence[str] = ()) -> Any:
    """Reads an mmengine config and applies `key=value` options.

    Raises:
        UserError: the file or an option is broken.
    """
    package, separator, inside = path.partition("::")
    if separator:  # as in MMDetection's _base_: mmdet::retinanet/retinanet_r50_fpn_1x_coco.py
        try:
            found = find_spec(package)
        except ModuleNotFoundError:  # of the package above it
            found = None
        if found is None or found.origin is None:
            raise UserError(f"the config {path} is of the package {package}, which is not installed; install it, or give a "
                            "file")
        path = str(Path(found.origin).parent / ".mim/configs" / inside)
    for folder in (ROOT, PACKAGE):  # the project's own configs are found from any folder, and without the repository
        if not Path(path).is_file() and (folder / path).is_file():
            path = str(folder / path)
    if not Path(path).is_file():
        raise UserError(f"the config {path} does not exist; configs/ holds those that come with the project")
    from dada_det.engine.runtime.launch import read_config

    return read_config(path, options)


def stage_config(args: argparse.Namespace, needed: dict[str, type], known: keys.Table) -> Any:
    """The config with the flags on top; flags and config entries have the same names.

    Raises:
        UserError: an entry of `needed` is missing or has another type, one is not in `known` or has another type, or a size
            is out of range.
    """
    config = load_config(args.config, args.cfg_options)
    for entry, kind in needed.items():
        if not isinstance(config.get(entry), kind):
            raise UserError(f"the config {args.config} has {config.get(entry)!r} for `{entry}`, which this stage needs "
                            f"as {kind.__name__}; give one of this stage, such as {args.stage_config}")
    given = [option.partition("=")[0].partition(".")[0] for option in args.cfg_options]
    # A config with a detector, in MMDetection's way, has variables of its own; one that is nearly an entry is a slip.
    variables = [name for name in config if config.get("kind") == "coco" and name not in (*known, *given)
                 and not keys.nearest(name, known, NEARLY)]
    keys.demand_entries({name: config[name] for name in config if name not in variables}, known, what_gives(args))
    if any(option.startswith("backbone=") for option in args.cfg_options):
        raise UserError("--cfg-options gives backbone, a variable of the config, which has been read; give "
                        "model.backbone.init_cfg.checkpoint=FILE")
    if isinstance(config.get("classifier"), dict) and not isinstance(config.classifier.get("name"), str):
        raise UserError(f"{what_gives(args)} has {config.classifier.get('name')!r} for classifier.name; give the name of a "
                        "network, such as resnet50")
    for entry, instead in NOT_THE_CLASSIFIERS.items():
        if entry in (config.get("classifier") or {}):
            raise UserError(f"{what_gives(args)} gives classifier.{entry}, which nothing reads; {instead}")
    for entry in ("epochs", "batch_size", "image_size", "seed"):
        if getattr(args, entry) is not None:
            config[entry] = getattr(args, entry)
    if args.keep is not None:
        others = {name: value for name, value in (config.get("checkpoint") or {}).items() if name != "max_keep_ckpts"}
        config.checkpoint = {**others, "keep": args.keep}
    if args.weights:
        config.weights = args.weights
    if config.get("weights"):
        from dada_det.models.weights import check_weights

        if "classifier" not in config:
            raise UserError("--weights starts a classifier, and this config has a detector; give its backbone with "
                            "--cfg-options model.backbone.init_cfg.checkpoint=FILE")
        check_weights(config.weights, config.classifier.name)
    if args.data:
        config.data.root = args.data
    elif config.data.get("demo"):
        from dada_det.data.synthetic import ensure_demo_data

        ensure_demo_data()
    if args.val_data:
        config.data.val_root = args.val_data
    if config.get("clip_grad", 1) == 0 or (config.get("clip_grad") or 1) < 0 or (config.get("accumulation") or 1) < 1:
        raise UserError(f"{what_gives(args)} has clip_grad = {config.get('clip_grad')} and accumulation = "
                        f"{config.get('accumulation')}; give numbers above 0, or None")
    if config.epochs < 1 or not 0 <= config.seed < 2**32:
        raise UserError(f"{what_gives(args)} has epochs = {config.epochs} and seed = {config.seed}; give one epoch or more, "
                        "and a seed in 0..2^32-1")
    if config.image_size < 8 or config.batch_size < 2 * args.gpus:
        raise UserError(f"--image-size {config.image_size} and --batch-size {config.batch_size} are too small; give at "
                        "least 8 px and two images for each process")
    config.work_dir = args.work_dir or config.get("work_dir") or f"work_dirs/{Path(args.config).stem}"
    return config


def what_gives(args: argparse.Namespace) -> str:
    """Where a config's entries come from, for a sentence."""
    return f"the config {args.config}{' with --cfg-options' if args.cfg_options else ''}"


def demand_optimizer(options: Mapping[str, Any], kind: str, what: str, entry: str) -> None:
    """Raises UserError if torch's optimiser `kind` does not take `options`, the config's `entry`; imports torch."""
    import torch

    optimizer = getattr(torch.optim, kind, None)
    if not isinstance(optimizer, type):
        return  # another library's, which mmengine knows; its own error tells what it takes
    keys.demand_arguments(options, optimizer, what, f"{entry}.")
    try:
        optimizer([torch.zeros(1, requires_grad=True)], **options)
    except (TypeError, ValueError) as error:
        raise UserError(f"{what} has {dict(options)} for {entry}, which does not fit torch's {kind} ({error})") from error
