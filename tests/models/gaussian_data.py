"""Gaussian data, for which everything about diffusion is known in closed form."""

import math

import torch
from torch import Tensor

from genssl.models.diffusion import NoiseSchedule, Prediction
from genssl.runtime import generator


class GaussianData:
    """x_0 ~ N(mean, diag std^2) over D = 32 dimensions, in float64, under a schedule.

    Called as a model it finds the noise as well as anything can: E[epsilon | x_t].
    """

    def __init__(self, schedule: NoiseSchedule, narrowest: float = 0.05) -> None:
        self.schedule = schedule
        log_kept = torch.log1p(-schedule.betas.double()).cumsum(0)
        self.alpha, self.variance = (0.5 * log_kept).exp(), -torch.expm1(log_kept)
        self.mean = torch.linspace(-0.5, 0.5, 32, dtype=torch.float64)
        self.std = torch.logspace(math.log10(narrowest), 0, 32, dtype=torch.float64)

    def marginal_std(self, t: int) -> Tensor:
        """Of x_t, (D,)."""
        return (self.alpha[t] ** 2 * self.std**2 + self.variance[t]).sqrt()

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, variance = self.alpha[t][:, None], self.variance[t][:, None]
        off = x - alpha * self.mean
        return variance.sqrt() * off / (alpha**2 * self.std**2 + variance)

    def noised(self, t: int, n: int = 16) -> Tensor:
        """Draws of x_t, (n, D)."""
        draws = torch.randn(n, 32, generator=generator(0, "test"), dtype=torch.float64)
        return self.alpha[t] * self.mean + self.marginal_std(t) * draws

    def flow(self, x: Tensor, t: int) -> Tensor:
        """Where the probability-flow equation carries x_t = x (n, D): the same quantile of the data."""
        return self.mean + self.std * (x - self.alpha[t] * self.mean) / self.marginal_std(t)


class Predicting:
    """The same as a model of another quantity, by its definition: E[x_0 | x_t], or v from it."""

    def __init__(self, data: GaussianData, prediction: Prediction) -> None:
        self.data, self.prediction = data, prediction

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        data, prediction = self.data, self.prediction
        if prediction == "epsilon":
            return data(x, t)
        alpha, variance = data.alpha[t][:, None], data.variance[t][:, None]
        off = x - alpha * data.mean
        x_start = data.mean + alpha * data.std**2 * off / (alpha**2 * data.std**2 + variance)
        return x_start if prediction == "x" else alpha * data(x, t) - variance.sqrt() * x_start


def distance(x: Tensor, y: Tensor) -> float:
    """Root mean square difference."""
    return float((x - y).square().mean().sqrt())
