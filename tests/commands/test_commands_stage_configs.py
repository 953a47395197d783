"""Entries of a stage's config and of --cfg-options: known ones of the right type work, all others get one sentence."""

from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from dada_det import keys
from dada_det.commands import pretrain, search
from dada_det.engine.runtime.launch import parse_options
from dada_det.errors import UserError
from tests.conftest import write_noise
from tests.messages import assert_error

ROOT = Path(__file__).resolve().parents[2]
STAGES = {path: module.KNOWN for path in sorted(ROOT.glob("configs/**/*.py"))
          for word, module in (("search = ", search), ("classifier = ", pretrain))
          if path.parent.name != "_base_" and "train_cfg" not in path.read_text() and
          (path.stem.startswith("search")) == (module is search) and path.stem.split("_")[0] in
          ("search", "pretrain", "cifar10", "cifar100", "svhn", "finetune")}


@pytest.mark.parametrize("path", STAGES, ids=lambda path: path.stem)
def test_every_config_that_comes_with_the_project_has_known_entries(path: Path) -> None:
    config = Config.fromfile(path, import_custom_modules=False, format_python_code=False)
    keys.demand_entries(config, STAGES[path], path.name)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for split in ("train", "val"):
        write_noise(root / split, 2, 8, side=16, spread=20)
    return root


def run(stage: Any, data: Path, work_dir: Path, *options: str) -> int:
    policy = ["--policy", "none"] if stage is pretrain else []
    return stage.main(["--config", f"configs/debug/{'search' if stage is search else 'pretrain'}.py", *policy, "--data",
                       str(data), "--work-dir", str(work_dir), "--epochs", "1", "--batch-size", "4", "--image-size", "16",
                       "--cfg-options", "classifier.name=convnet", *options])


@pytest.mark.parametrize(("stage", "option", "names"), [
    (pretrain, "label_smothing=0.3", ("label_smothing", "label_smoothing")),
    (pretrain, "optimizer.Lr=0.3", ("optimizer.Lr", "optimizer.lr")),
    (pretrain, "optimizer.type=SDG", ("optimizer.type", "'SDG'", "SGD")),
    (pretrain, "optimizer.lr=fast", ("{'lr': 'fast'", "optimizer")),
    (pretrain, "data.subset=imagenet120", ("data.subset",)),
    (pretrain, "ema=yes", ("'yes'", "ema", "dict or None")),
    (pretrain, "ema={'momentun': 0.1}", ("ema.momentun", "ema.momentum")),
    (pretrain, "ema.ema_type=Exponential", ("ema.ema_type", "'Exponential'", "write")),
    (pretrain, "mixup.mixup_alfa=0.1", ("mixup.mixup_alfa", "mixup.mixup_alpha")),
    (pretrain, "mixup.prob=often", ("'often'", "mixup.prob", "int or float")),
    (pretrain, "checkpoint.kep=3", ("checkpoint.kep", "checkpoint.keep")),
    (pretrain, "paramwise_cfg.norm_decay=0", ("paramwise_cfg.norm_decay", "paramwise_cfg.norm_decay_mult")),
    (pretrain, "checkpoint=None", None), (search, "clip_grad=None", None),
    (pretrain, "clip_grad=0", ("clip_grad = 0", "accumulation = 1", "None")),
    (pretrain, "epochs=2.5", ("2.5", "`epochs`", "int")),
    (pretrain, "warmup_epochs=soon", ("'soon'", "warmup_epochs", "int or float")),
    (pretrain, "auto_scale_lr.base_batch=8", ("auto_scale_lr.base_batch", "auto_scale_lr.base_batch_size")),
    (pretrain, "classifier.name=None", ("None", "classifier.name", "network")),
    (pretrain, "classifier.weights=x.pth", ("classifier.weights", "give weights itself")),
    (search, "classifier.num_classes=7", ("classifier.num_classes", "the data say")),
    (search, "classifier.name=darts_supernet", ("darts_supernet", "search_daas_cifar10.py")),
    (pretrain, "seed=-1", ("seed = -1",)),
    (search, "clip_grads=1.0", ("clip_grads", "clip_grad")),
    (search, "weights_optimizer.moment=0.9", ("weights_optimizer.moment", "weights_optimizer.momentum")),
    (search, "weights_optimizer.type=Adagrad", ("weights_optimizer.type", "'Adagrad'", "SGD or AdamW")),
    (search, "weights_optimizer.type=AdamW", ("weights_optimizer.momentum",)),
    (search, "policy_optimizer.betas=0.5", ("Adam",)),
    (search, "data.image_per_class=4", ("data.image_per_class", "data.images_per_class")),
    (search, "data.images_per_class=many", ("'many'", "data.images_per_class", "int or None")),
    (search, "mirror=maybe", ("'maybe'", "mirror", "bool")),
    (search, "data.root=3", ("3", "data.root", "str")),
    (search, "clip_grad={'max_norm': 5}", ("clip_grad", "int or float or None"))])
def test_an_entry_is_read_or_refused(stage: Any, option: str, names: tuple[str, ...] | None, data: Path, tmp_path: Path,
                                     capsys: pytest.CaptureFixture) -> None:
    code = run(stage, data, tmp_path, option)
    error = capsys.readouterr().err
    if names is None:
        assert code == 0, error
    else:
        assert code == 2
        assert_error(error, "search_imagenet.sh" if stage is search else "pretrain_r50.sh", *names)


@pytest.mark.parametrize(("option", "value"), [
    ("a.b=1e-3", {"a.b": 1e-3}), ("a=None", {"a": None}), ("a=[1,(2,3)]", {"a": [1, (2, 3)]}), ("a=x,y", {"a": ["x", "y"]}),
    ("ema={'momentum': 0.1, 'ema_type': 'ExponentialMovingAverage'}",
     {"ema": {"momentum": 0.1, "ema_type": "ExponentialMovingAverage"}}),
    ("a=dict(b=1, c=dict(d=[1, 2]))", {"a": {"b": 1, "c": {"d": [1, 2]}}}), ("a={}", {"a": {}}), ("a=b=c", {"a": "b=c"})])
def test_options_are_numbers_words_lists_and_dicts(option: str, value: dict[str, Any]) -> None:
    assert parse_options([option]) == value


@pytest.mark.parametrize("option", ["a", "=3", "a..b=3", "a={momentum: 0.1}", "a=dict(open('x'))", "a={1", "a=[(1]"])
def test_options_that_are_none(option: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_options([option])
    assert str(caught.value).startswith(f"--cfg-options {option}: ")
