import math

import torch

from genssl.metrics.latents import bound_by_samples, effective_sample_size
from genssl.runtime import generator


def test_effective_sample_size_of_known_weights() -> None:
    equal = torch.full((50, 2), 3.0)
    one = torch.full((50, 1), -1e4)
    one[7] = 0
    torch.testing.assert_close(effective_sample_size(equal), torch.full((2,), 50.0))
    torch.testing.assert_close(effective_sample_size(one), torch.ones(1))
    weights = torch.tensor([[1.0], [2.0], [3.0]])
    torch.testing.assert_close(effective_sample_size(weights.log()), torch.tensor([36 / 14]))


def test_effective_sample_size_ignores_the_scale() -> None:
    weights = torch.randn(20, 4, generator=generator(0, "test")).double()
    torch.testing.assert_close(effective_sample_size(weights), effective_sample_size(weights - 5000))


def test_bound_by_samples_is_the_log_mean() -> None:
    weights = torch.randn(30, 4, generator=generator(0, "test")).double()
    bound = bound_by_samples(weights, [1, 7, 30])
    for row, k in zip(bound, [1, 7, 30], strict=True):
        torch.testing.assert_close(row, weights[:k].exp().mean(0).log())


def test_bound_survives_the_size_of_real_likelihoods() -> None:
    weights = torch.tensor([[-3000.0], [-3001.0]])
    expected = -3000 + math.log((1 + math.exp(-1)) / 2)
    assert math.isclose(float(bound_by_samples(weights, [2])[0, 0]), expected, rel_tol=1e-6)
