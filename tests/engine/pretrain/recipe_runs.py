"""Runs of the pretraining command at toy size, and what their tests look at."""

import torch
from mmengine.hooks import Hook

from dada_det.engine.runtime.checkpoint import check_checkpoint


def flags(images, work_dir, *more, options=(), network="convnet", size=16, epochs=2):
    return ["--policy", "one-op", "--data", str(images), "--work-dir", str(work_dir), "--image-size", str(size),
            "--batch-size", "8", "--epochs", str(epochs), *more, "--cfg-options", f"classifier.name={network}", "workers=0",
            "optimizer.lr=1", *options]


def weights(work_dir, epoch):
    return check_checkpoint(work_dir / f"epoch_{epoch}.pth")["state_dict"]


def assert_equal(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def assert_close(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-3, atol=1e-5)


class Recorder(Hook):
    """Notes of each training step its lr, the side of its images, the weights after it and what a convolution gave."""

    priority = "LOWEST"

    def __init__(self):
        self.rates, self.sides, self.states, self.outputs = [], [], [], []

    def before_train(self, runner):
        convolution = next(module for module in runner.model.modules() if isinstance(module, torch.nn.Conv2d))
        convolution.register_forward_hook(self.note)

    def note(self, module, inputs, output):
        if module.training:
            self.outputs.append((output.dtype, output.is_contiguous(memory_format=torch.channels_last)))

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.rates.append(runner.optim_wrapper.get_lr()["lr"][0])
        self.sides.append(data_batch["image"].shape[-1])

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.states.append({name: tensor.clone() for name, tensor in runner.model.state_dict().items()})
