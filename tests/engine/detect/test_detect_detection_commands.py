"""tools/train_det.py and tools/test_det.py: the road on a few small images, and one sentence for each mistake."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.fileio import load
from PIL import Image

from dada_det.commands import test_det, train_det
from dada_det.data.checks import coco_categories
from tests.messages import assert_names

ROOT = Path(__file__).resolve().parents[3]
MASK_RCNN = str(ROOT / "configs/debug/mask_rcnn.py")
RETINANET = str(ROOT / "configs/debug/retinanet.py")
TINY = ["--cfg-options", "train_cfg.max_iters=2", "train_cfg.val_interval=2", "train_dataloader.batch_size=2",
        "train_dataloader.dataset.pipeline.2.scale=(64,64)", "val_dataloader.dataset.pipeline.1.scale=(64,64)",
        "test_dataloader.dataset.pipeline.1.scale=(64,64)", "optim_wrapper.optimizer.type=SGD"]
FEW = ["model.test_cfg.rcnn.score_thr=0.0", "model.test_cfg.rcnn.max_per_img=5"]


def write_coco(root: Path, categories, seed: int = 0) -> Path:
    """Six training, four validation and three test images of 64 px with one bright rectangle each."""
    random = np.random.default_rng(seed)
    for split, count in {"train2017": 6, "val2017": 4, "test2017": 3}.items():
        (root / split).mkdir(parents=True)
        images, annotations = [], []
        for number in range(count):
            x, y, w, h = (int(v) for v in random.integers([2, 2, 20, 20], [20, 20, 40, 40]))
            pixels = random.integers(0, 60, (64, 64, 3), dtype=np.uint8)
            pixels[y:y + h, x:x + w] += 150
            Image.fromarray(pixels).save(root / split / f"{number}.jpg")
            images.append({"id": number + 1, "file_name": f"{number}.jpg", "width": 64, "height": 64})
            annotations.append({"id": number + 1, "image_id": number + 1, "category_id": categories[0]["id"],
                                "iscrowd": 0, "bbox": [x, y, w, h], "area": w * h,
                                "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]})
        content = {"images": images, "categories": categories}
        name = "image_info_test-dev2017.json" if split == "test2017" else f"instances_{split}.json"
        if split != "test2017":
            content["annotations"] = annotations
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / name).write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def coco80(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("data") / "coco80", coco_categories())


@pytest.fixture(scope="module")
def one_class(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("data") / "one", [{"id": 3, "name": "cell"}])


@pytest.fixture(scope="module")
def trained(backbone, coco80, tmp_path_factory):
    """The work_dir of a Mask R-CNN after two steps."""
    work_dir = tmp_path_factory.mktemp("work") / "det"
    run(train_det.main, [MASK_RCNN, "--backbone", backbone, "--data", coco80, "--work-dir", work_dir, *TINY, *FEW])
    return work_dir


def run(main, argv):
    assert main([str(part) for part in argv]) == 0


def checkpoint_of(work_dir):
    return Path((work_dir / "last_checkpoint").read_text())


def test_training_leaves_a_checkpoint_without_code(trained):
    from dada_det.engine.runtime.checkpoint import check_checkpoint

    state = check_checkpoint(checkpoint_of(trained))["state_dict"]
    assert state["roi_head.bbox_head.fc_cls.weight"].shape[0] == 81


def test_faster_rcnn_trains_and_closes_with_its_ap(backbone, coco80, tmp_path, capsys):
    config = ROOT / "configs/debug/faster_rcnn.py"
    run(train_det.main, [config, "--backbone", backbone, "--data", coco80, "--work-dir", tmp_path, "--auto-scale-lr",
                         *TINY, *FEW])
    assert checkpoint_of(tmp_path).is_file()
    out = capsys.readouterr().out
    assert_names(out, "learning rate 0.00025", "0.0005", "4 images a step", "has 2")
    last = out.strip().splitlines()[-1]
    assert last.startswith(f"faster_rcnn  done: wrote {checkpoint_of(tmp_path)}; box AP ")


def test_metrics_hold_box_and_mask_figures_in_percent(trained, coco80, tmp_path, capsys):
    run(test_det.main, [MASK_RCNN, checkpoint_of(trained), "--data", coco80, "--work-dir", tmp_path / "w",
                        "--out", tmp_path / "w" / "dump.pkl", "--show-dir", "painted", *TINY, *FEW])
    metrics = json.loads((tmp_path / "w" / "metrics.json").read_text())
    assert list(metrics) == ["bbox", "segm"]
    assert all(list(values) == ["AP", "AP50", "AP75", "APs", "APm", "APl"] for values in metrics.values())
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith(f"mask_rcnn  done: wrote {tmp_path / 'w' / 'metrics.json'}; box AP ")
    assert (tmp_path / "w" / "dump.pkl").is_file()
    assert len(list((tmp_path / "w").rglob("painted/*.jpg"))) == 4
    assert not list((tmp_path / "w").glob(".results-*"))


def test_test_dev_writes_two_checked_zips(trained, coco80, tmp_path, capsys):
    from dada_det.engine.evaluate.submission import check_submission

    run(test_det.main, [MASK_RCNN, checkpoint_of(trained), "--data", coco80, "--work-dir", tmp_path, "--test-dev",
                        *TINY, *FEW])
    stem = "detections_test-dev2017_mask_rcnn_results"
    for kind in ("bbox", "segm"):
        path = tmp_path / "test-dev" / kind / f"{stem}.zip"
        assert zipfile.ZipFile(path).namelist() == [f"{stem}.json"]
        coverage = check_submission(path, coco80 / "annotations" / "image_info_test-dev2017.json")
        assert (coverage.results, coverage.covered, coverage.images) == (15, 3, 3)
    assert "15 bbox results on 3 of 3 images" in capsys.readouterr().out
    assert not (tmp_path / "metrics.json").exists()


def test_resume_goes_on_from_the_newest_checkpoint(trained, backbone, coco80, tmp_path, capsys):
    work_dir = shutil.copytree(trained, tmp_path / "det")
    run(train_det.main, [MASK_RCNN, "--resume", "--backbone", backbone, "--data", coco80, "--work-dir", work_dir,
                         *TINY, *FEW, "train_cfg.max_iters=3"])
    said = capsys.readouterr().out
    assert "step 3/3" in said and "learning rate" not in said
    assert "step 1/3" not in said


def test_untrained_detector_has_equal_random_heads_in_two_runs(backbone, one_class, tmp_path):
    for work_dir in (tmp_path / "a", tmp_path / "b"):
        run(test_det.main, [RETINANET, "none", "--backbone", backbone, "--data", one_class, "--work-dir", work_dir,
                            "--tta", "--out", work_dir / "all.pkl", *TINY, "model.test_cfg.score_thr=0.0"])
    scores = [[image["pred_instances"]["scores"] for image in load(tmp_path / name / "all.pkl")] for name in "ab"]
    assert all(torch.equal(left, right) and len(left) > 0 for left, right in zip(*scores, strict=True))
    assert list(json.loads((tmp_path / "a" / "metrics.json").read_text())) == ["bbox"]


def says(capsys, main, argv, *names):
    """Whether `main(argv)` ends with code 2 and one sentence that names each of `names`."""
    assert main([str(part) for part in argv]) == 2
    said = capsys.readouterr()
    assert "executed" not in said.out
    error = [line for line in said.err.splitlines() if "error:" in line]
    assert len(error) == 1
    assert_names(error[0], *names)


def test_training_names_what_is_missing(backbone, coco80, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    def flags(backbone, data):
        return ["--backbone", backbone, "--data", data]

    says(capsys, train_det.main, [RETINANET, *flags("no.pth", coco80)], "--backbone no.pth does not exist")
    says(capsys, train_det.main, [RETINANET, *flags(backbone, "nowhere")], "--data nowhere does not exist")
    says(capsys, train_det.main, ["no.py", "--data", coco80], "the config no.py does not exist")
    says(capsys, train_det.main, [ROOT / "configs/retinanet_r50_baseline.py", "--data", coco80],
         "work_dirs/pretrain_r50_none/r50.pth",
         "`tools/pretrain_r50.sh --policy none --work-dir work_dirs/pretrain_r50_none`")
    says(capsys, train_det.main, [ROOT / "configs/retinanet_r50_dada.py", "--backbone", backbone],
         "the data folder data/coco does not exist")
    says(capsys, train_det.main, [RETINANET, *flags(backbone, coco80), "--auto-scale-lr", "--cfg-options",
                                  "auto_scale_lr=None"], "batch", "learning rate")
    says(capsys, train_det.main, [RETINANET, *flags(backbone, coco80), "--resume", "no.pth"],
         "no.pth", "--resume")
    says(capsys, train_det.main, [RETINANET, "--data", coco80], "work_dirs/pretrain/r50.pth",
         "`tools/pretrain_r50.sh --config configs/debug/pretrain.py --policy dada-imagenet`")
    for stage in ("search_imagenet", "pretrain_r50", "debug/search", "debug/pretrain"):
        config = ROOT / f"configs/{stage}.py"
        says(capsys, train_det.main, [config, *flags(backbone, coco80)], config, "detector")
        says(capsys, test_det.main, [config, "none", *flags(backbone, coco80)], config, "detector")
    for command in ([RETINANET], [RETINANET, "none"]):
        says(capsys, test_det.main if "none" in command else train_det.main,
             [*command, *flags(backbone, coco80), "--cfg-options", "model.backbone.init_cfg=None"],
             "model.backbone.init_cfg is None", "dict(type='Pretrained', checkpoint=FILE)")
    says(capsys, train_det.main, ["mmdet::retinanet/retinanet_r50_fpn_1x_coco.py", "--data", coco80],
         "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py", "backbone file", "--backbone")
    says(capsys, train_det.main, ["mmdat::retinanet/retinanet_r50_fpn_1x_coco.py", *flags(backbone, coco80)],
         "package mmdat")
    assert not (tmp_path / "work_dirs").exists()


def test_training_refuses_another_preprocessing_and_amp_without_gpu(backbone, coco80, tmp_path, capsys):
    argv = [RETINANET, "--backbone", backbone, "--data", coco80, "--work-dir", tmp_path / "w"]
    says(capsys, train_det.main, [*argv, "--cfg-options", "model.data_preprocessor.bgr_to_rgb=False"],
         "has channel_order BGR, but the backbone")
    if not torch.cuda.is_available():
        says(capsys, train_det.main, [*argv, "--amp"], "--amp trains in float16 and needs a GPU")
    assert not list((tmp_path / "w").glob("*.pth"))


def edited(root: Path, target: Path, change, split="train2017") -> Path:
    shutil.copytree(root, target)
    file = target / "annotations" / f"instances_{split}.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return target


def test_training_names_what_is_wrong_with_the_annotations(backbone, one_class, tmp_path, capsys):
    def fails(name, change, *names, split="train2017"):
        data = edited(one_class, tmp_path / name, change, split)
        says(capsys, train_det.main, [MASK_RCNN, "--backbone", backbone, "--data", data, "--work-dir", tmp_path / "w"],
             *names)

    fails("a", lambda c: c.update(categories=[]), "has no categories")
    fails("b", lambda c: c["annotations"][0].update(image_id=77), "image 77", "remove")
    fails("c", lambda c: c["annotations"][0].pop("segmentation"),
          "1 annotations", "segmentation", "mask_rcnn")
    fails("e", lambda c: [entry.update(bbox=[5, 5, 0.5, 9]) for entry in c["annotations"]],
          "6 of 6 boxes", "6 without area", "1 px", "images 1, 2, 3, 4,")
    fails("d", lambda c: c["categories"][0].update(name="dog"), "list different categories", split="val2017")


def test_boxes_without_area_and_a_broken_image_are_left_out_and_named_once(backbone, one_class, tmp_path, capsys):
    data = edited(one_class, tmp_path / "data", lambda c: c["annotations"][2].update(bbox=[5, 5, 0, 9], area=0))
    (data / "train2017" / "4.jpg").write_bytes((data / "train2017" / "4.jpg").read_bytes()[:500])
    run(train_det.main, [RETINANET, "--backbone", backbone, "--data", data, "--work-dir", tmp_path / "w", *TINY])
    said = capsys.readouterr().out
    assert_names(said, "1 of 6 boxes", "1 without area", "images 3")
    assert said.count("1 of 6 boxes") == said.count("4.jpg") == 1


def test_many_broken_images_stop_and_one_stops_an_evaluation(backbone, one_class, tmp_path, capsys):
    data = shutil.copytree(one_class, tmp_path / "data")
    (data / "train2017" / "1.jpg").write_bytes(b"")
    (data / "train2017" / "2.jpg").write_bytes((data / "train2017" / "2.jpg").read_bytes()[:500])
    argv = [RETINANET, "--backbone", backbone, "--data", data, "--work-dir", tmp_path / "w"]
    says(capsys, train_det.main, argv, "2 of the 6 images in")
    (data / "val2017" / "3.jpg").write_bytes(b"no image")
    says(capsys, test_det.main, [*argv, "none"], "an evaluation needs every image")


def test_a_loss_that_becomes_nan_stops_with_its_step(backbone, one_class, tmp_path, capsys):
    says(capsys, train_det.main, [RETINANET, "--backbone", backbone, "--data", one_class, "--work-dir", tmp_path, *TINY,
                                  "optim_wrapper.optimizer.lr=1e30", "train_cfg.max_iters=4"],
         "the loss became NaN or infinite at step")


class Payload:
    def __reduce__(self):
        return os.system, ("echo executed",)


def test_testing_names_what_is_wrong_with_the_checkpoint(trained, coco80, one_class, tmp_path, capfd):
    capsys = capfd  # so that a payload's own process would be heard

    def argv(checkpoint, data=coco80, *flags):
        return [MASK_RCNN, checkpoint, "--data", data, "--work-dir", tmp_path, *flags]

    says(capsys, test_det.main, argv("no.pth"), "the checkpoint no.pth does not exist")
    says(capsys, test_det.main, argv("none", coco80, "--out", "x.json"), "--out x.json must end in .pkl")
    torch.save({"state_dict": {"x": Payload()}}, tmp_path / "evil.pth")
    says(capsys, test_det.main, argv(tmp_path / "evil.pth"), "carries code in its pickle and is not opened")
    says(capsys, test_det.main, argv(checkpoint_of(trained), one_class),
         "roi_head.bbox_head.fc_cls.weight is (81, 256) in the file and (2, 256) in the detector")
    says(capsys, test_det.main, argv(checkpoint_of(trained), coco80, "--tta"),
         "but not their masks; leave it out for mask_rcnn")
    assert not (tmp_path / "metrics.json").exists()


def test_test_dev_demands_coco_s_categories_and_its_image_list(trained, coco80, one_class, tmp_path, capsys):
    argv = [MASK_RCNN, checkpoint_of(trained), "--work-dir", tmp_path, "--test-dev", "--data"]
    says(capsys, test_det.main, [*argv, one_class], "does not list COCO's 80 categories")
    data = shutil.copytree(coco80, tmp_path / "data")
    (data / "annotations" / "image_info_test-dev2017.json").unlink()
    says(capsys, test_det.main, [*argv, data],
         "--test-dev needs annotations/image_info_test-dev2017.json and test2017/")


def test_testing_needs_only_the_part_that_it_uses(backbone, coco80, tmp_path):
    def only(split, annotations):
        shutil.copytree(coco80 / split, tmp_path / split / split)
        (tmp_path / split / "annotations").mkdir()
        shutil.copy(coco80 / "annotations" / annotations, tmp_path / split / "annotations")
        return [RETINANET, "none", "--backbone", backbone, "--data", tmp_path / split, "--work-dir", tmp_path / "w"]

    flags = [*TINY, "model.test_cfg.score_thr=0.0"]
    run(test_det.main, [*only("val2017", "instances_val2017.json"), *flags])
    assert (tmp_path / "w" / "metrics.json").is_file()
    run(test_det.main, [*only("test2017", "image_info_test-dev2017.json"), "--test-dev", *flags])
    assert list((tmp_path / "w" / "test-dev" / "bbox").glob("*.zip"))


def test_a_place_that_cannot_be_written_is_refused_before_the_test_runs(backbone, coco80, tmp_path, capsys, monkeypatch):
    from dada_det.engine.detect import run as detection_runs

    monkeypatch.setattr(detection_runs, "run_test", lambda *_: pytest.fail("the test ran"))
    (tmp_path / "file").touch()
    (tmp_path / "folder.pkl").mkdir()
    argv = [RETINANET, "none", "--backbone", backbone, "--data", coco80, "--work-dir", tmp_path / "w", "--out"]
    says(capsys, test_det.main, [*argv, tmp_path / "file" / "x.pkl"], "x.pkl cannot be written, as its folder cannot: ")
    says(capsys, test_det.main, [*argv, tmp_path / "folder.pkl"], "folder.pkl is a folder; give the name of a file")


@pytest.mark.slow
def test_two_gloo_processes_train_and_test(backbone, coco80, tmp_path):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    common = ["--data", coco80, "--work-dir", tmp_path, "--gpus", "2", "--backbone", backbone, *TINY, *FEW]

    def start(*command):
        done = subprocess.run([sys.executable, *map(str, [*command, *common])], env=environment, capture_output=True,
                              text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("done: wrote") == 1

    start(ROOT / "tools/train_det.py", MASK_RCNN)
    start(ROOT / "tools/test_det.py", MASK_RCNN, checkpoint_of(tmp_path))
    alone = tmp_path / "alone"
    run(test_det.main, [MASK_RCNN, checkpoint_of(tmp_path), "--data", coco80, "--work-dir", alone, *TINY, *FEW])
    two, one = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path, alone))
    assert two["bbox"] == pytest.approx(one["bbox"], abs=1e-3)


@pytest.mark.slow
def test_mmdetection_s_own_tool_is_guarded_too(backbone, coco80, tmp_path):
    from mmengine.utils import get_installed_path

    tool = f"{get_installed_path('mmdet')}/.mim/tools/train.py"
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "part.pth")
    parts = {part: f"{part}_dataloader.dataset.data_root={coco80}" for part in ("train", "val", "test")}
    evaluators = [f"{part}_evaluator.ann_file={coco80}/annotations/instances_val2017.json" for part in ("val", "test")]
    mistakes = {f"model.backbone.init_cfg.checkpoint={tmp_path / 'part.pth'}": "holds only 1 of a ResNet-50's 265",
                "model.data_preprocessor.bgr_to_rgb=False": "has channel_order BGR, but the backbone"}
    for change, message in mistakes.items():
        argv = [sys.executable, tool, RETINANET, "--work-dir", tmp_path / "w", *TINY, *parts.values(), *evaluators,
                f"model.backbone.init_cfg.checkpoint={backbone}", change]
        stock = subprocess.run(list(map(str, argv)), capture_output=True, text=True, check=False)
        assert stock.returncode != 0
        assert message in stock.stderr
