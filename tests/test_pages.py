"""Pages: the commands that they and the commands' own help show have the flags that they are shown with."""

import re
from collections.abc import Callable
from functools import cache
from importlib import import_module

import pytest

from dada_det.commands.cli import COMMANDS
from tests.conftest import ROOT, load_bench

PAGES = ("README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))))
CODE = re.compile(r"`([^`]+)`|^ {4,}(\S.*)$", re.MULTILINE)  # a span, or a line that is indented
NAME = re.compile(r"(?<![\w/-])(?:tools/(?P<bench>bench/)?(?P<tool>\w+)\.(?:py|sh)|-m dada_det\.commands\.(?P<module>\w+)"
                  r"|dada-det (?P<command>[a-z-]+))")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
MODULE_OF = {"search_imagenet": "search", "pretrain_r50": "pretrain"}
NO_COMMAND = {"python", "setup", "measuring", "pillow_reference", "train"}  # the last is MMDetection's


def commands_in(text: str) -> list[tuple[str, bool, list[str]]]:
    """(module, whether it is in tools/bench, flags) of every command in `text`, a page or an example of --help."""
    found = []
    for span, line in CODE.findall(text.replace("\\\n", " ")):
        code = span or line
        names = list(NAME.finditer(code))
        ends = [*(name.start() for name in names[1:]), len(code)][:len(names)]
        for name, end in zip(names, ends, strict=True):
            tool = name["tool"] or name["module"] or COMMANDS[name["command"]][0]
            if tool not in NO_COMMAND:
                found.append((MODULE_OF.get(tool, tool), bool(name["bench"]), FLAG.findall(code[name.end():end])))
    return found


@cache
def main_of(module: str, bench: bool) -> Callable[[list[str]], int]:
    return (load_bench(module) if bench else import_module(f"dada_det.commands.{module}")).main


def help_of(module: str, bench: bool, capsys: pytest.CaptureFixture) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main_of(module, bench)(["--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


def unknown_flags(text: str, capsys: pytest.CaptureFixture) -> list[str]:
    unknown = []
    for module, bench, flags in commands_in(text):
        known = FLAG.findall(help_of(module, bench, capsys).split("\n\n")[0])  # the usage, without descriptions and example
        unknown += [f"{module} {flag}" for flag in flags if flag not in known]
    return unknown


@pytest.mark.parametrize("page", PAGES)
def test_a_page_shows_no_flag_that_its_command_lacks(page: str, capsys: pytest.CaptureFixture) -> None:
    assert unknown_flags((ROOT / page).read_text(), capsys) == []


@pytest.mark.parametrize("page", PAGES)
def test_a_flag_that_a_page_names_alone_is_some_commands(page: str, capsys: pytest.CaptureFixture) -> None:
    known = {flag for module, _ in COMMANDS.values() for flag in FLAG.findall(help_of(module, False, capsys))}
    benches = ("gpu", "natural", "planted", "pretrain")
    known |= {flag for bench in benches for flag in FLAG.findall(help_of(bench, True, capsys))}
    spans = [span for span, _ in CODE.findall((ROOT / page).read_text()) if span.startswith("--")]
    assert {flag for span in spans for flag in FLAG.findall(span)} - known - {"--gpus-per-task"} == set()  # Slurm's


@pytest.mark.parametrize("module", sorted(module for module, _ in COMMANDS.values()))
def test_a_commands_example_has_its_own_flags(module: str, capsys: pytest.CaptureFixture) -> None:
    text = help_of(module, False, capsys)
    example = text[text.index("\nexample:"):].replace("\n  ", "\n    ")
    assert commands_in(example)
    assert unknown_flags(example, capsys) == []


def test_a_flag_that_is_not_there_is_noticed(capsys: pytest.CaptureFixture) -> None:
    page = "Run `python tools/plan.py CONFIGS --gpus 8 --gone`.\n\n    dada-det search --data D \\\n      --lost 3\n"
    assert unknown_flags(page, capsys) == ["plan --gone", "search --lost"]
