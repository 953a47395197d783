"""Data sets inside others and lists of evaluators, as MMDetection's users write them, through training and testing."""

import json
from pathlib import Path

import pytest
import torch
from torchvision.models import resnet50

from dada_det.commands import test_det, train_det
from tests.engine.detect.test_detect_detection_commands import write_coco

ROOT = Path(__file__).resolve().parents[3]
CONFIG = """
_base_ = {base!r}
one = dict(_base_.train_dataloader.dataset)
more = dict(one, ann_file={more!r}, data_prefix=dict(img={images!r}))
train_dataloader = dict(dataset=dict(_delete_=True, type="RepeatDataset", times=2, dataset=dict(
    type="ClassBalancedDataset", oversample_thr=0.1, dataset=dict(type="ConcatDataset", datasets=[one, more]))))
evaluated = dict(_base_.val_dataloader.dataset)
val_dataloader = dict(dataset=dict(_delete_=True, type="ConcatDataset", datasets=[evaluated, dict(
    evaluated, ann_file={more!r}, data_prefix=dict(img={images!r}))]))
test_dataloader = val_dataloader
val_evaluator = [dict(type="CocoMetric", metric="bbox"), dict(type="DumpDetResults", out_file_path={dump!r})]
test_evaluator = val_evaluator
train_cfg = dict(max_iters=2, val_interval=2)
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """Config, backbone, data and work folder of a small RetinaNet on two data sets of one class."""
    coco, more = (write_coco(tmp_path / name, [{"id": 3, "name": "cell"}], seed=len(name)) for name in ("coco", "others"))
    torch.save(resnet50(weights=None).state_dict(), tmp_path / "r50.pth")
    config = tmp_path / "retinanet.py"
    config.write_text(CONFIG.format(base=str(ROOT / "configs/debug/retinanet.py"), dump=str(tmp_path / "dump.pkl"),
                                    more=str(more / "annotations/instances_val2017.json"), images=str(more / "val2017")))
    return [str(config), "--backbone", str(tmp_path / "r50.pth"), "--data", str(coco), "--work-dir", str(tmp_path / "w")]


def test_they_train_validate_and_test(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert train_det.main(command) == 0, capsys.readouterr().err
    merged = {path.name.split("-")[0]: json.loads(path.read_text()) for path in (tmp_path / "w/data").glob("*.json")}
    assert {name: len(content["images"]) for name, content in merged.items()} == {"train": 6 + 4, "val": 4 + 4}
    checkpoint = (tmp_path / "w/last_checkpoint").read_text()
    (tmp_path / "dump.pkl").unlink()  # of the validation
    assert test_det.main([command[0], checkpoint, *command[1:]]) == 0, capsys.readouterr().err
    assert list(json.loads((tmp_path / "w/metrics.json").read_text())) in (["bbox"], []) and (tmp_path / "dump.pkl").exists()
