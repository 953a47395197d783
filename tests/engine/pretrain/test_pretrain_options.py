"""What a pretraining config can ask for beside its recipe: precision, compilation, curves, networks; and its mistakes."""

import json
from pickle import UnpicklingError

import pytest
import timm
import torch

from dada_det.commands.common import ROOT
from dada_det.commands.pretrain import NEEDED, main
from dada_det.engine.pretrain import classifier
from dada_det.engine.runtime.checkpoint import check_checkpoint
from dada_det.models.backbone import load_backbone
from dada_det.models.classifiers import build_classifier
from dada_det.models.weights import Preprocessing, preprocessing_of
from tests.engine.pretrain.recipe_runs import assert_close, flags, weights
from tests.messages import assert_error, assert_names, refused

pytestmark = pytest.mark.usefixtures("without_gpu")


@pytest.mark.parametrize(("options", "dtype", "channels_last"), [
    ([], torch.float32, True), (["precision=bfloat16"], torch.bfloat16, True),
    (["channels_last=False"], torch.float32, False)])
def test_precision_and_memory_format_reach_the_convolutions(images, tmp_path, recorded, options, dtype, channels_last):
    notes = recorded(flags(images, tmp_path, epochs=1, options=options))
    assert set(notes.outputs) == {(dtype, channels_last)}
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in weights(tmp_path, 1).values())


@pytest.mark.gpu
def test_float16_trains_with_a_loss_scale(images, tmp_path, recorded):
    outputs = recorded(flags(images, tmp_path, options=["precision=float16"])).outputs
    assert {dtype for dtype, _ in outputs} == {torch.float16}
    assert "loss_scaler" in check_checkpoint(tmp_path / "epoch_2.pth")["optimizer"]


@pytest.mark.slow
def test_the_network_is_compiled_with_the_configs_arguments(images, tmp_path):
    graphs = []

    def counting(graph, inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph.forward

    torch._dynamo.register_backend(counting, name="counting")
    assert main(flags(images, tmp_path / "compiled", epochs=1, options=["compile.backend=counting"])) == 0
    assert max(sum("conv2d" in target for target in graph) for graph in graphs) == 3  # the whole network in one graph
    assert main(flags(images, tmp_path / "plain", epochs=1)) == 0
    assert_close(weights(tmp_path / "compiled", 1), weights(tmp_path / "plain", 1))
    of_plain, graphs[:] = list(graphs), []
    torch._dynamo.reset()
    assert main(flags(images, tmp_path / "device", epochs=1,
                      options=["compile.backend=counting", "policy_on=device"])) == 0
    assert len(graphs) == len(of_plain)  # the policy on the device breaks no graph, and is compiled into none


@pytest.mark.slow
def test_a_compiler_that_fails_is_told_in_one_sentence(images, tmp_path, capsys):
    def failing(graph, inputs):
        raise RuntimeError("no compiler")

    torch._dynamo.register_backend(failing, name="failing")
    assert main(flags(images, tmp_path, epochs=1, options=["compile.backend=failing"])) == 2
    assert_names(capsys.readouterr().err, "torch.compile", "convnet", "no compiler", "compile = False")


STAND_IN = """
import json, types
config = types.SimpleNamespace(update=lambda *values, **options: None)
run = types.SimpleNamespace(log_code=lambda **options: None)

def init(dir):
    global folder
    folder = dir

def log(values, **options):
    with open(f"{folder}/log", "a") as file:
        print(json.dumps({name: float(value) for name, value in values.items()}), file=file)

def join():
    pass
"""


def test_losses_reach_a_visualisation_back_end(images, tmp_path, monkeypatch):
    (tmp_path / "wandb.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path)
    config = tmp_path / "config.py"
    config.write_text(f"_base_ = '{ROOT}/configs/pretrain_r50.py'\n"
                      f"vis_backends = [dict(type='WandbVisBackend', init_kwargs=dict(dir='{tmp_path}'))]\n")
    assert main(flags(images, tmp_path / "w", "--config", str(config))) == 0
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert {"loss", "lr"} <= set(lines[0]) and {"top1", "top5"} <= set(lines[-1]), lines


def test_a_config_of_the_needed_entries_alone_trains(images, tmp_path, recorded):
    values = {"data": {"root": str(images)}, "classifier": {"name": "convnet"}, "optimizer": {"type": "SGD", "lr": 0.1},
              "auto_scale_lr": {"enable": False, "base_batch_size": 8}, "image_size": 16, "batch_size": 8, "epochs": 2,
              "seed": 0, "precision": "float32"}
    assert values.keys() == NEEDED.keys()
    config = tmp_path / "config.py"
    config.write_text("\n".join(f"{name} = {value!r}" for name, value in values.items()))
    notes = recorded(["--policy", "none", "--config", str(config), "--work-dir", str(tmp_path / "w")])
    assert notes.rates[0] == 0.1 and set(notes.sides) == {16}  # no warm-up
    assert "top1" in json.loads((tmp_path / "w/metrics.json").read_text())


def test_another_network_of_timms_is_exported_with_its_own_keys(images, tmp_path):
    assert main(flags(images, tmp_path, epochs=1, network="test_resnet.r160_in1k", size=32)) == 0
    tensors, meta = load_backbone(tmp_path / "test_resnet.pth")
    assert (meta["architecture"], meta["library"], meta["weights"]) == ("test_resnet", "timm", "last")
    network = timm.create_model("test_resnet", num_classes=0)
    network.load_state_dict(tensors)
    maps = timm.create_model("test_resnet", features_only=True)(torch.zeros(1, 3, 64, 64))
    assert meta["features"] == {"channels": [found.shape[1] for found in maps],
                                "strides": [64 // found.shape[2] for found in maps]}


def test_a_network_of_a_cell_search_drops_paths_and_ends_without_a_backbone(images, tmp_path, capsys, monkeypatch):
    seen = []

    def tell(self, runner, before=classifier.TellProgress.before_train_epoch):
        before(self, runner)
        seen.append((runner.model.network.drop_path, runner.model.network.progress))

    monkeypatch.setattr(classifier.TellProgress, "before_train_epoch", tell)
    config = tmp_path / "config.py"
    name = "darts/2/2/0.2/1/sep_conv_3x3:0,skip_connect:1|max_pool_3x3:0,skip_connect:1"
    config.write_text(f"_base_ = '{ROOT}/configs/pretrain_r50.py'\nclassifier = dict(name='{name}')\n")
    arguments = flags(images, tmp_path / "w", "--config", str(config), epochs=2)
    assert main([argument for argument in arguments if not argument.startswith("classifier.name")]) == 0
    assert seen == [(0.2, 0.0), (0.2, 0.5)]
    assert {path.name for path in (tmp_path / "w").glob("*.pth")} == {"epoch_1.pth", "epoch_2.pth"}
    assert_names(capsys.readouterr().out, f"pretrain  done: metrics.json in {tmp_path}")


def test_options_that_make_another_network_are_refused_before_anything_is_trained(images, tmp_path, capsys):
    assert main(flags(images, tmp_path, network="resnet18", options=["classifier.stem_type=deep"])) == 2
    assert_error(capsys.readouterr().err, "pretrain_r50.sh", "stem_type", "timm's resnet18", "conv1.0.weight")
    assert not list(tmp_path.iterdir())


def test_a_trainings_checkpoint_gives_its_weights_and_how_its_images_were_prepared(images, tmp_path):
    options = ["interpolation=nearest", "data_preprocessor.mean=[1.0,2.0,3.0]"]
    assert main(flags(images, tmp_path / "one", epochs=1, network="test_resnet", size=32, options=options)) == 0
    path = tmp_path / "one/epoch_1.pth"
    with pytest.raises(UnpicklingError, match="HistoryBuffer"):  # it holds more than tensors
        torch.load(path, weights_only=True)
    network = build_classifier("test_resnet", 2, 32, weights=str(path))
    for name, tensor in weights(tmp_path / "one", 1).items():
        assert torch.equal(network.state_dict()[name.removeprefix("network.")], tensor)
    assert preprocessing_of(path, "test_resnet") == Preprocessing((1.0, 2.0, 3.0), interpolation="nearest")
    assert main(flags(images, tmp_path / "two", "--weights", str(path), epochs=1, network="test_resnet", size=32)) == 0
    # Who has started from others does not say how those want them.
    assert preprocessing_of(tmp_path / "two/epoch_1.pth", "test_resnet") == preprocessing_of("timm", "test_resnet")
    with refused("epoch_1.pth", "a whole checkpoint"):
        load_backbone(path)


MISTAKES = {
    ("precision", "'half'", "auto, float32, bfloat16, float16"): ["precision=half"],
    ("progressive_size is 16", "image_size 16", "smaller"): ["progressive_size=16"],
    ("test_vit", "one size"): ["progressive_size=8", "classifier.name=test_vit"],
    ("color_jitter and lighting", "policy_on"): ["policy_on=device", "lighting=0.1"],
    ("'tint'", "ColorJitter"): ["color_jitter.tint=0.1"],
    ("color_jitter = 0.4", "ColorJitter", "brightness"): ["color_jitter=0.4"],
    ("lighting is -1", "standard deviation"): ["lighting=-1"],
    ("'fast'", "layer_decay", "int or float"): ["layer_decay=fast"],
    ("workers = -1", "from 0"): ["workers=-1"],
    ("label_smoothing = 1.5", "from 0 to 1"): ["label_smoothing=1.5"],
    ("warmup_epochs = -1", "from 0"): ["warmup_epochs=-1"],
    ("lr_drops = ['a']", "shares of the training"): ["lr_drops=[a]"],
    ("modee", "torch.compile"): ["compile={'modee': 'x'}"],
    ("fast", "torch.compile"): ["compile={'mode': 'fast'}"],
    ("darts_supernet", "train_arch.py"): ["classifier.name=darts_supernet"],
    ("interpolation 'lanczoz'", "the config", "nearest, bilinear, bicubic, lanczos"): ["interpolation=lanczoz"],
    ("train_size is 'abc'", "number of pixels"): ["train_size=abc"],
    ("test_vit", "one size", "train_size = None"): ["train_size=8", "classifier.name=test_vit"],
    ("repeats is -2", "1 or more"): ["repeats=-2"],
    ("repeats is 'x'",): ["repeats=x"],
    ("accumulation = 3", "8 images"): ["accumulation=3"],
    ("accumulation = 2", "32 images", "16"): ["accumulation=2", "batch_size=32"],
    ("vis_backends", "'Nope'"): ["vis_backends=[Nope]"],
    ("TensorboardVisBackend", "vis_backends", "package tensorboard"): ["vis_backends=[TensorboardVisBackend]"],
}


@pytest.mark.parametrize("names", MISTAKES)
def test_a_mistake_in_a_recipe_is_told_in_one_sentence(names, images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    arguments = flags(images, tmp_path, options=MISTAKES[names])
    if "batch_size=32" in arguments:
        arguments[arguments.index("--batch-size") + 1] = "32"
    assert main(arguments) == 2
    assert_error(capsys.readouterr().err, "pretrain_r50.sh", *names)


def test_float16_is_refused_without_a_gpu(images, tmp_path, capsys):
    assert main(flags(images, tmp_path, options=["precision=float16"])) == 2
    assert_names(capsys.readouterr().err, "precision = 'float16'", "GPU")
