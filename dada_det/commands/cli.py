"""dada-det: the commands of tools/ under one name, where the project is installed and tools/ is not at hand."""

import importlib
import sys
from collections.abc import Sequence

COMMANDS = {  # name -> (module of dada_det.commands, what it does)
    "search": ("search", "search an augmentation policy"),
    "pretrain": ("pretrain", "train a classifier with a policy, and export it as a backbone"),
    "train-det": ("train_det", "train a detector on a backbone"),
    "test-det": ("test_det", "evaluate a detector"),
    "predict": ("predict", "paint what a detector finds"),
    "show-policy": ("show_policy", "a page about a policy"),
    "export-policy": ("export_policy", "a policy for other frameworks"),
    "compare-policies": ("compare_policies", "policies against each other under one recipe"),
    "compare-backbones": ("compare_backbones", "backbones against each other in detectors"),
    "train-arch": ("train_arch", "train the network of a joint search"),
    "plan": ("plan", "what the whole road costs here"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `argv`'s first word as a command with the others; returns its exit code, 2 where there is no such command."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in COMMANDS:
        return importlib.import_module(f"dada_det.commands.{COMMANDS[argv[0]][0]}").main(argv[1:])
    table = "\n".join(f"  {name:18} {what}" for name, (_, what) in COMMANDS.items())
    usage = f"usage: dada-det COMMAND [--help] ..\n\n{table}"
    asked = argv[:1] in ([], ["-h"], ["--help"])
    if not asked:
        usage = f"dada-det: error: there is no command {argv[0]!r}; give one of {', '.join(COMMANDS)}"
    print(usage, file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


if __name__ == "__main__":
    raise SystemExit(main())
