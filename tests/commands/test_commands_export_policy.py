"""tools/export_policy.py: code on stdout or in a file, limits on stderr, and one sentence for each mistake."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dada_det.augment.export import TARGETS as EXPORTERS
from dada_det.augment.export import export, limits
from dada_det.augment.named import resolve_policy
from dada_det.commands.export_policy import TARGETS, main
from tests.messages import assert_error

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("target", TARGETS)
def test_code_is_printed_and_limits_are_said_beside_it(target: str, capsys: pytest.CaptureFixture) -> None:
    policy = resolve_policy("dada-imagenet")
    assert main(["dada-imagenet", "--to", target]) == 0
    captured = capsys.readouterr()
    assert captured.out == export(policy, target)
    assert captured.err.splitlines() == [f"export_policy  {sentence}" for sentence in limits(policy, target)]


def test_every_exporter_can_be_asked_for() -> None:
    assert tuple(EXPORTERS) == TARGETS


def test_a_file_goes_in_and_a_file_comes_out(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    resolve_policy("cutout").save(tmp_path / "policy.json")
    out = tmp_path / "new" / "code.py"
    assert main([str(tmp_path / "policy.json"), "--to", "timm", "--out", str(out)]) == 0
    assert capsys.readouterr().out == "" and out.read_text() == export(resolve_policy("cutout"), "timm")


@pytest.mark.parametrize(("policy", "names"), [
    ("none", ("none", "leave it out")),
    ("trivial", ("trivial", "torchvision.transforms.v2.TrivialAugmentWide()")),
    ("rand", ("rand", "torchvision.transforms.v2.RandAugment()")),
    ("nonesuch", ("nonesuch", "none, random")),
    ("{tmp}/broken.json", ("broken.json", "JSON")),
    ("{tmp}/weights.json", ("weights.json", "sub_policies[0]", "weight", "-1"))])
def test_mistakes_get_one_sentence(policy: str, names: tuple[str, ...], tmp_path: Path,
                                   capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "broken.json").write_text("{")
    data = resolve_policy("cutout").to_dict()
    data["sub_policies"][0]["weight"] = -1
    (tmp_path / "weights.json").write_text(json.dumps(data))
    assert main([policy.format(tmp=tmp_path), "--to", "timm"]) == 2
    captured = capsys.readouterr()
    assert_error(captured.err, "export_policy.py", *names)
    assert captured.out == ""


def test_a_place_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").touch()
    assert main(["cutout", "--to", "mmdet", "--out", str(tmp_path / "file" / "code.py")]) == 2
    captured = capsys.readouterr()
    assert "cannot write into" in captured.err and captured.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["dada-imagenet"], ["--to", "timm"], ["dada-imagenet", "--to", "kornia"]])
def test_flags_that_are_missing_or_unknown(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and "export_policy.py: error: " in capsys.readouterr().err


def test_the_tool_shows_an_example_without_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')\n")
    done = subprocess.run([sys.executable, ROOT / "tools/export_policy.py", "--help"], text=True, capture_output=True,
                          env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}, check=False)
    assert done.returncode == 0 and "example:" in done.stdout and "--to" in done.stdout, done.stderr
