"""Flow matching (Lipman et al. 2023; Liu et al. 2023): a velocity field that carries noise to images.

x_t = (1 - t) x_0 + t epsilon runs on a straight line from an image at t = 0 to noise at t = 1, with the
velocity epsilon - x_0. A network learns the mean velocity at each (x, t); following it from noise back to
t = 0 makes an image. A field is any callable (x (B, ...), t (B,) in [0, 1]) -> velocity, shape of x.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, Self

import torch
from torch import Tensor

from genssl.config import FlowConfig
from genssl.models.diffusion import StepCallback
from genssl.models.guidance import (
    GUIDANCE,
    conditional_model,
    dropout_draws,
    random_labels,
    shows_class,
    training_model,
)
from genssl.models.method import Method, chosen_blocks, pixel_features
from genssl.models.samplers import INPAINT_STEPS, JUMP_LENGTH, RESAMPLINGS, jump_path
from genssl.models.unet import LAYOUTS, Dropout, UNet
from genssl.runtime import Randomness, normal, step_noise, uniform

Field = Callable[[Tensor, Tensor], Tensor]
Sampler = Literal["heun", "euler"]
CALLS = 20  # of the network per image, where none are asked for
NOISE_LEVELS = 1000  # that t' counts
# Times at which image and noise have the ratio of 50, 150 and 250 of the DDPM's 1,000: 1/t - 1 = sqrt(SNR)
SPATIAL_TIMES = (0.15, 0.34, 0.49)
TIME_SCALE = 1000.0  # the network's sinusoids are made for times up to 1,000


class Flow(Method):
    """Images by following a learned velocity field from noise.

    Args:
        network: (x (B, C, H, W), 1000 t (B,), labels (B,) | None) -> velocity.
        image_size: pixels per side.
        channels: of the images.
        classes: number of classes of a class-conditional network; 0: unconditional.
        timestep_sampling: times of training drawn from a "logit_normal" distribution, or "uniform".
        features_t: the time at which `features` looks at an image, in [0, 1].
        dropout: share of the features in each block of the network that training sets to zero.

    Examples:
        >>> from genssl.models.unet import Layout
        >>> flow = Flow(UNet(Layout((16, 16), (1, 1), (False, False))), image_size=8).eval()
        >>> flow.sample(2, steps=2).shape
        torch.Size([2, 3, 8, 8])
    """

    guidance = GUIDANCE
    inpaint_steps = INPAINT_STEPS

    def __init__(
        self,
        network: UNet,
        image_size: int = 32,
        channels: int = 3,
        classes: int = 0,
        timestep_sampling: Literal["uniform", "logit_normal"] = "logit_normal",
        features_t: float = 0.05,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.network = network
        self.shape = (channels, image_size, image_size)
        self.classes, self.timestep_sampling, self.features_t = classes, timestep_sampling, features_t
        self.dropout = dropout
        self.units = {"loss": "mean squared error of the velocity"}

    @classmethod
    def from_config(cls, config: FlowConfig) -> Self:
        """The flow of a config."""
        classes = config.num_classes or 0
        network = UNet(LAYOUTS[config.network], config.channels, classes)
        return cls(
            network, config.image_size, config.channels, classes, config.timestep_sampling,
            config.features_t, config.dropout,
        )  # fmt: skip

    # Training

    def draws(self, n: int, generator: Randomness) -> dict[str, Tensor]:
        """The times, (n,) in [0, 1], the noise, (n, C, H, W), and whether the class is shown, (n,) bool.

        With dropout also its mask, see `dropout_draws`.
        """
        if self.timestep_sampling == "logit_normal":
            # Most times in the middle, where the velocity is hardest to tell (Esser et al. 2024, section 3.1)
            t = normal((n,), generator).sigmoid()
        else:
            t = uniform((n,), generator)
        draws = {"t": t, "noise": normal((n, *self.shape), generator)}
        draws |= {"shows_class": shows_class(n, generator)} if self.classes else {}
        if self.training:
            draws |= dropout_draws(self.network, self.dropout, n, self.shape[1], generator)
        return draws

    def loss(self, views: tuple[Tensor, ...], draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """Conditional flow matching (Lipman et al. 2023, equation 23): the squared error of the velocity.

        Its gradient is that of regressing the marginal velocity E[epsilon - x_0 | x_t], which no one knows.
        """
        (x_start,) = views
        t, noise = draws["t"], draws["noise"]
        share = t.view(-1, 1, 1, 1)
        x = (1 - share) * x_start + share * noise
        dropout = Dropout(draws["dropout_mask"], self.dropout) if self.dropout > 0 and self.training else None
        velocity = training_model(self._velocity, self.classes, draws, dropout)(x, t)
        return {"loss": (velocity - (noise - x_start)).square().mean()}

    def _velocity(
        self, x: Tensor, t: Tensor, labels: Tensor | None = None, dropout: Dropout | None = None
    ) -> Tensor:
        extra = () if dropout is None else (dropout,)
        velocity: Tensor = self.network(x, TIME_SCALE * t, labels, *extra)
        return velocity

    # Generation

    def sample(
        self,
        n: int,
        generator: Randomness = None,
        sampler: Sampler = "heun",
        steps: int | None = None,
        *,
        labels: Tensor | None = None,
        guidance: float | None = None,
        callback: StepCallback | None = None,
    ) -> Tensor:
        """Images (n, C, H, W) from noise; with one generator per image, image i depends on its own alone.

        Args:
            n: number of images.
            generator: one for all, or one per image.
            sampler: "heun", of second order at two network calls per step but the last, or "euler", at one.
            steps: 10 of "heun" or 20 of "euler" when None, 19 or 20 network calls.
            labels: the class of each image, (n,) int64; None: drawn uniformly where the network has classes.
            guidance: w of `guided`; GUIDANCE when None.
            callback: called with (noise levels left - 1, x) after each step.

        Raises:
            ValueError: an unknown sampler, no step, or a class or guidance that the network does not have.
        """
        x = normal((n, *self.shape), generator, self.device)
        if self.classes and labels is None:
            labels = random_labels(n, self.classes, generator, torch.device("cpu"))
        field = self._field(labels, guidance)
        if sampler not in {"heun", "euler"}:
            raise ValueError(f"unknown sampler {sampler!r}; use heun or euler")
        calls = 2 if sampler == "heun" else 1
        steps = CALLS // calls if steps is None else steps
        return solve_ode(field, x, steps, heun=sampler == "heun", callback=callback)

    def inpaint(
        self,
        images: Tensor,
        mask: Tensor,
        generator: Randomness = None,
        *,
        steps: int | None = None,
        jump_length: int = JUMP_LENGTH,
        resamplings: int = RESAMPLINGS,
        labels: Tensor | None = None,
        guidance: float | None = None,
        callback: StepCallback | None = None,
    ) -> Tensor:
        """`images` (B, C, H, W), the pixels of `mask` (H, W) filled anew by `fill`; see `CanInpaint`."""
        x = normal(images.shape, generator, images.device)
        noise = step_noise(images.shape, generator, images.device)
        field = self._field(labels, guidance)
        steps = self.inpaint_steps if steps is None else steps
        return fill(field, x, steps, noise, images, mask, jump_length, resamplings, callback)

    @property
    def noise_to_signal(self) -> Tensor:
        """t / (1 - t) at t' = 1 .. 1,000, thousandths of the time t, (1000,)."""
        t = torch.arange(1, NOISE_LEVELS + 1, device=self.device) / NOISE_LEVELS
        return t / (1 - t)

    def purify(
        self,
        images: Tensor,
        t_prime: int,
        generator: Randomness = None,
        steps: int | None = None,
        *,
        surrogate: bool = False,
    ) -> Tensor:
        """Images (B, C, H, W) carried to t = t' / 1,000 and back by Euler's steps; see `CanPurify`."""
        t = t_prime / NOISE_LEVELS
        x = (1 - t) * images + t * normal(images.shape, generator, images.device)
        steps = min(CALLS if steps is None else steps, t_prime)
        x = solve_ode(self._field(None, None), x, steps, heun=False, start=t)
        return x if surrogate else x.clamp(-1, 1)

    def _field(self, labels: Tensor | None, guidance: float | None) -> Field:
        if labels is not None and guidance is None:
            guidance = self.guidance
        return conditional_model(self._velocity, self.classes, labels, guidance, self.device)

    # Looking at it

    def features(self, images: Tensor) -> Tensor:
        """The middle of the network, averaged over places, for images (B, C, H, W): (B, D).

        Each image stands for x_t at `features_t` by its mean, (1 - t) x: nothing is drawn.
        """
        # By its shape, not its len(), which would fix the batch size of an exported graph
        t = images.new_full(images.shape[:1], self.features_t)
        return self.network.middle((1 - self.features_t) * images, TIME_SCALE * t)

    @property
    def spatial_blocks(self) -> int:
        """The residual blocks on the way up."""
        return self.network.up_blocks

    @property
    def spatial_times(self) -> tuple[float, ...]:
        """Those with as much noise as the DDPM's 50, 150 and 250 of 1,000."""
        return SPATIAL_TIMES

    def spatial_features(
        self,
        images: Tensor,
        noise: Tensor | None = None,
        *,
        blocks: Sequence[int] | None = None,
        times: Sequence[float] | None = None,
    ) -> Tensor:
        """The maps of the blocks on the way up for x_t of images (B, C, H, W): see `HasSpatialFeatures`."""
        chosen = chosen_blocks(blocks, self.spatial_blocks)
        maps: list[Tensor] = []
        for time in self.spatial_times if times is None else times:
            if not 0 <= time <= 1:
                raise ValueError(f"times must be from 0 to 1, not {time:g}")
            t = images.new_full((len(images),), time)
            # On the straight line of this image and this noise, as in training
            x = (1 - time) * images + (0.0 if noise is None else time * noise)
            outputs = self.network.up_maps(x, TIME_SCALE * t)
            maps += [outputs[block] for block in chosen]
        return pixel_features(maps, images.shape[2:])

    def previews(self, images: Tensor, generator: Randomness) -> dict[str, Tensor]:
        """Samples, as many as there are images."""
        return {"samples": self.sample(len(images), generator)}

    # Likelihood

    def log_likelihood_of_flow(self, x: Tensor, steps: int, generator: Randomness = None) -> Tensor:
        """log p(x) of images (B, C, H, W) of no class, (B,) nats; see `log_likelihood`."""
        return log_likelihood(self._velocity, x, steps, generator)


def solve_ode(
    field: Field,
    x: Tensor,
    steps: int,
    *,
    heun: bool = True,
    to_noise: bool = False,
    start: float = 1.0,
    callback: StepCallback | None = None,
) -> Tensor:
    """Solve dx/dt = field(x, t) in equal steps, from noise at t = 1 to images at t = 0.

    Args:
        field: the velocity.
        x: (B, ...) at t = `start`, or at t = 0 where `to_noise`.
        steps: number of steps.
        heun: Heun's method, of second order and two calls per step; else Euler's. The last step to images is
            Euler's, as in Karras et al. (2022), algorithm 1: a network knows the velocity at t = 0, the mean
            noise of an image without any, least of all, and would leave noise in the samples.
        to_noise: from images to noise at t = `start`.
        start: the noisy end.
        callback: called with (noise levels left - 1, x) after each step.

    Raises:
        ValueError: there is no step.

    Examples:
        >>> field = lambda x, t: (x - 0.5) / t[:, None]  # straight lines to an image of 0.5 everywhere
        >>> [round(value, 3) for value in solve_ode(field, torch.randn(1, 3), steps=4)[0].tolist()]
        [0.5, 0.5, 0.5]
    """
    if steps < 1:
        raise ValueError(f"steps must be 1 or more, not {steps}")
    dt = (start if to_noise else -start) / steps
    first = 0.0 if to_noise else start
    for i in range(steps):
        t, t_next = (x.new_full((len(x),), first + k * dt) for k in (i, i + 1))
        velocity = field(x, t)
        # One Euler step of n has a local error of second order, and leaves the whole of second order
        if heun and (to_noise or i < steps - 1):
            velocity = 0.5 * (velocity + field(x + dt * velocity, t_next))
        x = x + dt * velocity
        if callback is not None:
            callback(steps - i - 2, x)
    return x


def fill(
    field: Field,
    x: Tensor,
    steps: int,
    noise: Callable[[int], Tensor],
    known: Tensor,
    mask: Tensor,
    jump_length: int = JUMP_LENGTH,
    resamplings: int = RESAMPLINGS,
    callback: StepCallback | None = None,
) -> Tensor:
    """Fill a part of images on the way from noise: what RePaint (Lugmayr et al. 2022) is to diffusion.

    In Euler's steps the filled pixels follow the field, and the known ones the straight line to their image.
    Jumps add noise to both, so that x at time t becomes one at a later time, and lead down again: they let
    the filled pixels come to agree with the known ones.

    Args:
        field: the velocity.
        x: noise, (B, ...).
        steps: from t = 1 to 0.
        noise: draws standard normal noise, shape of x, for the jump to a level.
        known: the image where the mask is false, (B, ...).
        mask: where to fill, bool, broadcast to x.
        jump_length, resamplings: see `jump_path`.
        callback: called with (noise levels left - 1, x) after each step and each jump.

    Raises:
        ValueError: as in `jump_path`.

    Examples:
        >>> field = lambda x, t: (x - 0.5) / t[:, None]
        >>> known, mask = torch.ones(1, 4), torch.tensor([False, False, True, True])
        >>> x = fill(field, torch.randn(1, 4), 10, lambda i: torch.randn(1, 4), known, mask)
        >>> [round(value, 3) for value in x[0].tolist()]
        [1.0, 1.0, 0.5, 0.5]
    """
    for i, j in pairwise(jump_path(steps, jump_length, resamplings)):
        t, t_next = 1 - i / steps, 1 - j / steps
        if j > i:
            # epsilon - x_0 of the line that x is on: known pixels arrive whatever noise they came from
            line = (x - known) / t
            x = x + (t_next - t) * torch.where(mask, field(x, x.new_full((len(x),), t)), line)
        else:
            # (1 - t) x_0 + t epsilon, scaled to the image's share at t_next; the rest of its noise is new
            share = (1 - t_next) / (1 - t)
            x = share * x + math.sqrt(t_next**2 - (share * t) ** 2) * noise(j)
        if callback is not None:
            callback(steps - j - 1, x)
    return torch.where(mask, x, known)


@torch.inference_mode(False)
@torch.enable_grad()
def log_likelihood(field: Field, x: Tensor, steps: int, generator: Randomness = None) -> Tensor:
    """log p(x), by the instantaneous change of variables along the flow to noise: (B,) nats.

    log p_0(x_0) = log N(x_1; 0, I) + integral from 0 to 1 of div field(x_t, t) dt (Chen et al. 2018). The
    divergence is estimated by e^T J e with random signs e (Hutchinson 1989), without bias; Heun's method, in
    steps that grow with t: near images the field changes fastest.

    Args:
        field: the velocity.
        x: at t = 0, (B, ...).
        steps: of Heun's method.
        generator: of the signs; one for all, or one per image.

    Examples:
        >>> still = lambda x, t: 0 * x  # images are noise already
        >>> log_likelihood(still, torch.zeros(1, 2), steps=2)  # -log 2 pi
        tensor([-1.8379])
    """
    signs = torch.where(uniform(x.shape, generator, x.device).to(x.dtype) < 0.5, -1.0, 1.0)

    def slope(x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        velocity = field(x, x.new_full((len(x),), t))
        # One product with the transposed Jacobian, e^T J: a backward pass
        (product,) = torch.autograd.grad((velocity * signs).sum(), x)
        return velocity.detach(), (product * signs).flatten(1).sum(1)

    # A copy, since a tensor of inference mode takes part in no gradient
    x = x.detach().clone()
    integral = x.new_zeros(len(x))
    times = [(i / steps) ** 2 for i in range(steps + 1)]
    for t, t_next in pairwise(times):
        dt = t_next - t
        velocity, divergence = slope(x, t)
        velocity_next, divergence_next = slope(x + dt * velocity, t_next)
        x = x + 0.5 * dt * (velocity + velocity_next)
        integral = integral + 0.5 * dt * (divergence + divergence_next)
    squares = x.square().flatten(1)
    return -0.5 * (squares.sum(1) + squares.shape[1] * math.log(2 * math.pi)) + integral
