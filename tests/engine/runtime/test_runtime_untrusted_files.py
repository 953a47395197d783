"""A file from outside is refused through every flag that takes a path, and what it carries does not run."""

import functools
import http.server
import json
import os
import pickle
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.runner import checkpoint as mmengine_checkpoint
from PIL import Image

from dada_det.commands import compare_policies, export_policy, pretrain, search, show_policy, test_det, train_det
from dada_det.commands.common import ROOT
from dada_det.engine.evaluate.submission import check_submission
from dada_det.engine.runtime.checkpoint import forbid_unsafe_loading
from dada_det.errors import UserError
from tests.messages import assert_names, refused

RETINANET = str(ROOT / "configs/debug/retinanet.py")
REFUSED = "carries code in its pickle and is not opened"


class Payload:
    """Pickles as the call os.system("touch <mark>")."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def mark(tmp_path):
    """The file that a payload makes; it must not be there at the end."""
    yield tmp_path / "ran"
    assert not (tmp_path / "ran").exists(), "the payload ran"


@pytest.fixture
def evil(tmp_path, mark):
    """A checkpoint that is one but for the payload among its entries."""
    path = tmp_path / "evil.pth"
    torch.save({"state_dict": {"conv1.weight": torch.ones(1)}, "meta": {"epoch": 1, "iter": 1}, "more": Payload(mark)}, path)
    return path


@pytest.fixture
def plain_pickle(tmp_path, mark):
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps(Payload(mark)))
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for split in ("train", "val"):
        for label in range(2):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(6):
                Image.fromarray(np.full((20, 20, 3), 90 * label + index, np.uint8)).save(folder / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """One image and one box to train and to validate on."""
    root = tmp_path_factory.mktemp("coco")
    (root / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        (root / split).mkdir()
        Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(root / split / "1.png")
        (root / f"annotations/instances_{split}.json").write_text(json.dumps({
            "images": [{"id": 1, "file_name": "1.png", "width": 40, "height": 40}], "categories": [{"id": 1, "name": "a"}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "bbox": [4, 4, 20, 20], "area": 400}]}))
    return root


@pytest.fixture
def refuses(capsys):
    def refuses(main, argv, *names):
        assert main([str(word) for word in argv]) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        assert len(errors) == 1, errors
        assert_names(errors[0], *(names or (REFUSED,)))
    return refuses


@pytest.mark.parametrize("name", ["epoch_1.pth", "iter_7.pth"])
def test_resume_of_search_and_pretraining(name, evil, images, tmp_path, refuses):
    work_dir = tmp_path / "w"
    work_dir.mkdir()
    evil.rename(work_dir / name)
    flags = ["--data", images, "--work-dir", work_dir, "--resume", "--image-size", "16", "--batch-size", "4"]
    refuses(pretrain.main, ["--policy", "none", *flags, "--cfg-options", "classifier.name=convnet", "workers=0"])
    refuses(search.main, ["--config", ROOT / "configs/debug/search.py", *flags])


def test_policy_of_every_command(evil, images, tmp_path, refuses):
    refuses(pretrain.main, ["--policy", evil, "--data", images, "--work-dir", tmp_path / "w"], "is no JSON")
    refuses(export_policy.main, [evil, "--to", "timm"], "is no JSON")
    refuses(show_policy.main, [evil, "--out", tmp_path / "page.html"], "is no JSON")
    refuses(compare_policies.main, ["--data", images, "--policies", f"learned={evil}", "--model", "convnet", "--epochs", "1",
                                    "--image-size", "16", "--batch-size", "4", "--work-dir", tmp_path / "c"], "is no JSON")


def test_weights_of_a_detector(evil, coco, backbone, tmp_path, refuses):
    flags = [RETINANET, "--data", coco, "--work-dir", tmp_path / "w"]
    refuses(train_det.main, [*flags, "--backbone", evil])
    refuses(test_det.main, [*flags, "none", "--backbone", evil])
    refuses(test_det.main, [*flags, evil, "--backbone", backbone])
    good = [*flags, "--backbone", backbone]
    refuses(train_det.main, [*good, "--resume", evil])
    refuses(train_det.main, [*good, "--cfg-options", f"load_from={evil}"])
    refuses(train_det.main, [*good, "--cfg-options", f"load_from={evil}", "resume=True"])
    refuses(train_det.main, [*good, "--cfg-options", "model.neck.init_cfg.type=Pretrained",
                             f"model.neck.init_cfg.checkpoint={evil}"])
    for name in ("epoch_3.pth", "iter_7.pth"):
        (tmp_path / "w").mkdir(exist_ok=True)
        evil.rename(tmp_path / "w" / name)
        refuses(train_det.main, [*good, "--resume"])
        (tmp_path / "w" / name).rename(evil)


@pytest.mark.parametrize(("entry", "names"), [
    ("proposal_file", ("train_dataloader", "proposal_file={file}", "pickle")),
    ("ann_file", ("{file}", "JSON"))])
def test_pickles_that_a_data_set_would_read(entry, names, plain_pickle, coco, backbone, tmp_path, refuses):
    refuses(train_det.main, [RETINANET, "--data", coco, "--work-dir", tmp_path / "w", "--backbone", backbone,
                             "--cfg-options", f"train_dataloader.dataset.{entry}={plain_pickle}"],
            *(name.format(file=plain_pickle) for name in names))


def test_a_checkpoint_from_an_address(evil, tmp_path, monkeypatch):
    """load_from may be a URL; mmengine would unpickle what it finds there."""
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    for name in ("_safe_torch_load", "load_url"):
        monkeypatch.setattr(mmengine_checkpoint, name, getattr(mmengine_checkpoint, name))
    forbid_unsafe_loading()
    torch.save({"state_dict": {"weight": torch.ones(2)}}, tmp_path / "good.pth")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(UserError, match=REFUSED):
            mmengine_checkpoint.CheckpointLoader.load_checkpoint(f"{address}/evil.pth", "cpu")
        content = mmengine_checkpoint.CheckpointLoader.load_checkpoint(f"{address}/good.pth", "cpu")
        server.shutdown()
    assert content["state_dict"]["weight"].tolist() == [1, 1]


def test_entries_of_a_zip_do_not_leave_their_folder(coco, tmp_path):
    stem = "detections_test-dev2017_x_results"
    folder = tmp_path / "zips"
    folder.mkdir()
    for name in ("../out.json", "/tmp/out.json", f"a/../../{stem}.json"):
        with zipfile.ZipFile(folder / f"{stem}.zip", "w") as archive:
            archive.writestr(name, "[]")
        with refused(f"{stem}.zip", f"{stem}.json", f"holds {name}"):
            check_submission(folder / f"{stem}.zip", coco / "annotations/instances_val2017.json")
    assert list(tmp_path.rglob("*.json")) == []
