"""Exit codes and sentences that all commands share."""

import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from dada_det.commands import common, pretrain, search, test_det, train_det
from dada_det.errors import UserError


def outcome(error: BaseException | None, capsys: pytest.CaptureFixture) -> tuple[int, str]:
    def body(args: Namespace) -> None:
        if error is not None:
            raise error

    code = common.run(body, common.parser_for("tool", "does it", "tool --flag"), [])
    return code, capsys.readouterr().err


def test_exit_codes(capsys: pytest.CaptureFixture) -> None:
    assert outcome(None, capsys) == (0, "")
    assert outcome(UserError("x is missing"), capsys) == (2, "tool: error: x is missing\n")
    code, sentence = outcome(KeyboardInterrupt(), capsys)
    assert (code, sentence) == (130, "tool: interrupted\n")


def test_names_that_the_terminal_cannot_show_are_printed_and_a_mistake_is_one_line(capsys: pytest.CaptureFixture) -> None:
    def body(args: Namespace) -> None:
        print("caf\udce9")
        raise UserError("the folder new\nline is empty; \udce9")

    assert common.run(body, common.parser_for("p", "does it", "p"), []) == 2
    captured = capsys.readouterr()
    assert captured.out == "caf\\udce9\n" and captured.err.startswith("p: error: the folder new line is empty")
    assert captured.err.count("\n") == 1


def test_cv2_without_libgl_gets_one_sentence_of_advice(capsys: pytest.CaptureFixture) -> None:
    code, sentence = outcome(ImportError("libGL.so.1: cannot open shared object file"), capsys)
    assert code == 2 and "opencv-python-headless" in sentence and sentence.count("\n") == 1
    with pytest.raises(ImportError):
        outcome(ImportError("no module named dada"), capsys)


def test_processes_say_a_mistake_once(capfd: pytest.CaptureFixture, tmp_path) -> None:
    """Both of two processes find the same mistake; the parent says it and ends with code 2."""
    code = search.main(["--config", "configs/debug/search.py", "--data", str(tmp_path), "--gpus", "2",
                        "--work-dir", str(tmp_path / "w")])
    error = capfd.readouterr().err
    assert code == 2 and error.count("has no folder train/<class>/") == 1 and "Traceback" not in error


@pytest.mark.parametrize("main", [search.main, pretrain.main, train_det.main, test_det.main])
def test_help_shows_an_example(main, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "example:" in text and "--gpus" in text and "--work-dir" in text


PROGRAM = """
import atexit, sys
atexit.register(print, "handler")
from dada_det.commands import common
from dada_det.errors import UserError

class Late:
    def __del__(self):
        print("destroyed")

def body(args):
    global late
    late = Late()
    sys.modules["kept"] = late  # until the interpreter ends
    print("body", end=" ")
    if args.bad:
        raise UserError("bad")

parser = common.parser_for("program", "does it", "program")
parser.add_argument("--bad", action="store_true")
sys.exit(common.run(body, parser, module="program"))
"""


@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.parametrize("launched", [False, True])
def test_a_process_of_torchrun_ends_after_its_handlers_and_before_destructors(launched: bool, bad: bool, tmp_path: Path,
                                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "program.py").write_text(PROGRAM.replace("parser.add", 'parser.set_defaults(gpus=1)\nparser.add'))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{common.ROOT}")
    if launched:
        monkeypatch.setenv("LOCAL_RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "1")
    ended = subprocess.run([sys.executable, "-m", "program", *["--bad"] * bad], capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 2 * bad, ended.stderr
    assert ended.stdout.split() == ["body", "handler", *["destroyed"] * (not launched)]
