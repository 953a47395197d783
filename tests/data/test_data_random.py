"""Random streams: a tuple of whole numbers is a stream, whatever type its numbers have."""

import numpy as np
import pytest
import torch

from dada_det.data.random import generator_for


def test_equal_numbers_are_equal_streams():
    as_ever = 2278187260253625782, 7210762507766007076
    assert (generator_for(3, 1, 7).initial_seed(), generator_for(0).initial_seed()) == as_ever
    for one in (np.int64(1), np.int32(1), np.uint8(1), torch.tensor(1)):
        assert generator_for(3, one, 7).initial_seed() == generator_for(3, 1, 7).initial_seed()
    assert len({generator_for(*keys).initial_seed() for keys in ((1, 2), (2, 1), (12,), (1,), (1, 2, 0))}) == 5


def test_what_is_no_whole_number_is_refused():
    for key in (1.0, "1", None, np.float64(1)):
        with pytest.raises(TypeError):
            generator_for(0, key)
