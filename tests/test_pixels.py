import math

import torch

from genssl.pixels import bits_per_dim, to_bytes, to_model


def test_every_byte_comes_back() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(to_model(every)), every)
    assert torch.equal(to_bytes(to_model(every, 0.0)), every)
    assert torch.equal(to_bytes(to_model(every, 0.999)), every)


def test_bins_tile_the_range() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    left, right = to_model(every, 0.0), to_model(every, 1.0)
    assert left[0] == -1
    assert right[-1] == 1
    assert torch.equal(right[:-1], left[1:])


def test_values_outside_are_clamped() -> None:
    assert to_bytes(torch.tensor([-3.0, 1.0, 7.0])).tolist() == [0, 255, 255]


def test_uniform_density_costs_eight_bits() -> None:
    # density 1/2 a dimension on [-1, 1]: NLL = D ln 2, and a byte drawn uniformly takes 8 bits
    assert math.isclose(bits_per_dim(3072 * math.log(2), 3072), 8.0)
