"""Where a run's curves go: config.vis_backends as mmengine's Visualizer."""

import importlib.util
from typing import Any

from mmengine.config import Config
from mmengine.registry import VISBACKENDS

from dada_det.errors import UserError

PACKAGES = {"TensorboardVisBackend": "tensorboard", "WandbVisBackend": "wandb"}  # what a visualisation back end needs


def visualizer(config: Config) -> dict[str, Any]:
    """mmengine's Visualizer with config.vis_backends.

    Raises:
        UserError: a back end is unknown or its package is missing.
    """
    backends = [{"type": backend} if isinstance(backend, str) else dict(backend)
                for backend in config.get("vis_backends") or ["LocalVisBackend"]]
    for backend in backends:
        kind = str(backend.get("type"))
        if VISBACKENDS.get(kind) is None:
            raise UserError(f"vis_backends names {kind!r}, which mmengine does not have; write LocalVisBackend, "
                            "TensorboardVisBackend or WandbVisBackend")
        package = PACKAGES.get(kind)
        if package and importlib.util.find_spec(package) is None:
            raise UserError(f"{kind} in vis_backends needs the package {package}; run `pip install {package}`, or take it "
                            "out of vis_backends")
    return {"type": "Visualizer", "vis_backends": backends}
