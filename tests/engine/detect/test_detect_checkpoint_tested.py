"""tools/test_det.py tests the checkpoint that it is given, whatever the config would begin a training with."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import load

from dada_det.commands import test_det
from dada_det.commands.train_det import detector_config
from tests.engine.detect.test_detect_detection_commands import RETINANET, TINY, write_coco
from tests.messages import refused

OPTIONS = [*TINY, "model.test_cfg.score_thr=0.0", "model.test_cfg.max_per_img=5"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Data of one class, and two checkpoints of a RetinaNet with random weights."""
    from mmengine.registry import init_default_scope

    from dada_det.engine.detect import config as change
    from dada_det.engine.detect import guard  # noqa: F401

    from mmdet.registry import MODELS  # isort: skip

    folder = tmp_path_factory.mktemp("files")
    config = detector_config(Namespace(config=RETINANET, cfg_options=[], backbone=None, data=None, work_dir=None))
    change.use_classes(config, ("cell",))
    init_default_scope("mmdet")
    model = MODELS.build(config.model)
    for seed, name in enumerate(("given", "other")):
        generator = torch.Generator().manual_seed(seed)
        head = model.bbox_head.retina_cls
        head.weight.data.copy_(0.02 * torch.randn(head.weight.shape, generator=generator))
        content = {"state_dict": model.state_dict(), "meta": {"dataset_meta": {"classes": ("cell",)}}}
        torch.save(content, folder / f"{name}.pth")
    write_coco(folder / "coco", [{"id": 3, "name": "cell"}])
    return {name: str(folder / name) for name in ("coco", "given.pth", "other.pth")}


def scores(files: dict[str, str], name: str, folder: Path, *options: str) -> torch.Tensor:
    """The scores of all that test_det.py finds with the checkpoint `name`."""
    out = folder / f"{name}{len(options)}.pkl"
    assert test_det.main([RETINANET, files[name], "--data", files["coco"], "--work-dir", str(folder / "w"),
                          "--out", str(out), *OPTIONS, *options]) == 0
    return torch.cat([image["pred_instances"]["scores"] for image in load(out)])


def test_load_from_and_resume_of_the_config_are_not_what_is_tested(files: dict[str, str], tmp_path: Path) -> None:
    given, other = scores(files, "given.pth", tmp_path), scores(files, "other.pth", tmp_path)
    assert len(given) == len(other) == 20 and not torch.equal(given, other)
    assert torch.equal(scores(files, "given.pth", tmp_path, f"load_from={files['other.pth']}"), given)
    (tmp_path / "w/last_checkpoint").write_text(files["other.pth"])
    assert torch.equal(scores(files, "given.pth", tmp_path, f"load_from={files['other.pth']}", "resume=True"), given)


def test_each_kind_is_evaluated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dada_det.engine.detect import run

    kinds = []

    def evaluate(annotations: Path, results: Path, kind: str) -> dict[str, float]:
        kinds.append(kind)
        return dict.fromkeys(run.FIGURES, 50.0)

    monkeypatch.setattr(run, "evaluate_results", evaluate)
    config: Any = Namespace(work_dir=str(tmp_path), filename="mask_rcnn.py")
    run._score({"bbox": Path("b.json"), "segm": Path("s.json")}, Path("a.json"), config)
    assert kinds == ["bbox", "segm"]
    assert list(load(tmp_path / "metrics.json")["segm"]) == list(run.FIGURES[:6])


@pytest.mark.parametrize("meta", [None, {}, {"dataset_meta": None}, {"dataset_meta": "cell"},
                                  {"dataset_meta": {"classes": 1}}])
def test_a_checkpoint_need_not_name_its_categories(meta: object) -> None:
    from dada_det.engine.detect.run import matching_weights

    config = Config({"test_dataloader": {"dataset": {"metainfo": {"classes": ("cell",)}}}})
    content: dict[str, Any] = {"state_dict": {}, "meta": meta}
    assert matching_weights(content, torch.nn.Identity(), "epoch_1.pth", config) == {}
    content["meta"] = {"dataset_meta": {"classes": ["nucleus"]}}
    with refused("epoch_1.pth", "nucleus", "cell"):
        matching_weights(content, torch.nn.Identity(), "epoch_1.pth", config)
