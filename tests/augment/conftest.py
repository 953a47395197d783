"""The two ways through the batched kernels, which a batch on the CPU takes only where it pays."""

import pytest

from dada_det.augment import rows, transform

ROADS = ("members", "all rows")


@pytest.fixture(params=ROADS)
def road(request, monkeypatch):
    """apply_draws through the batched kernels, whatever the batch's size.

    "members": draws on the CPU, each kernel on the images that have its operation. "all rows": draws on a GPU, each
    kernel on every image.
    """
    monkeypatch.setattr(transform, "one_by_one_pays", lambda images_BCHW: False)
    if request.param == "all rows":
        monkeypatch.setattr(rows, "known", lambda tensor: False)
    return request.param
