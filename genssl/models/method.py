"""The interface between a method and everything else: what every method has, and what some methods can do."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genssl.runtime import Randomness
from genssl.settings import Config

if TYPE_CHECKING:
    from genssl.models.diffusion import NoiseSchedule, Prediction, StepCallback
    from genssl.models.gaussian import DiagonalGaussianDistribution


class Method(nn.Module):
    """What the training loop, the evaluations and the commands ask of every method.

    Images are float (B, C, H, W) in the range of `genssl.pixels`, unless said otherwise.
    """

    config: Config  # set by `build`
    epoch: float | None = None  # how many epochs the weights were trained; set by `checkpoint.load`
    class_names: tuple[str, ...] = ()  # of the data it was trained on; set by `checkpoint.load`
    classes: int = 0  # that it trains on: above 0 the `draws` of `loss` hold "labels", (B,) int64
    sees_scale: bool = False  # its loss depends on the lengths of its outputs, which may shrink to a point
    units: Mapping[str, str] = {}  # of the terms of `loss`, by name, e.g. {"kl": "nats per image"}

    @property
    def device(self) -> torch.device:
        """Where the weights are; the CPU where there are none."""
        first = next(chain(self.parameters(), self.buffers()), None)
        return torch.device("cpu") if first is None else first.device

    @classmethod
    def from_config(cls, config: Any) -> Self:
        """The method that a config of its class describes, its weights initialized by torch's generator."""
        raise NotImplementedError

    def remarks(self) -> tuple[str, ...]:
        """What a person should know before this method trains with these settings."""
        return ()

    def draws(self, n: int, generator: Randomness) -> dict[str, Tensor]:
        """All the randomness of one training step on `n` images; each tensor's first axis is `n`."""
        return {}

    def loss(self, views: tuple[Tensor, ...], draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """The scalar to minimize as "loss", and named scalar terms to log.

        No random number is drawn and nothing is read to the host, so that it compiles into one graph. In
        training it may write buffers (statistics of batch norms, MoCo's queue).
        """
        raise NotImplementedError

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimizer groups. A group may set `fix_lr`: True to stay out of the schedule.

        `is_probe`: True is for what learns from the method and is no part of it: LARS and clipping leave it
        out, so that it changes nothing else.
        """
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def after_step(self, progress: float) -> None:
        """Called after each optimizer step with the share of the run that is done; e.g. an EMA target."""

    def after_training(self, images: Tensor, generator: Randomness = None) -> None:
        """Fit what is fitted once, at the end. `images`: the train split, uint8 (N, C, H, W), anywhere."""

    def features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D), for kNN, linear evaluation and distances."""
        raise NotImplementedError

    def outputs(self, images: Tensor) -> Tensor | None:
        """(B, C, H, W) -> (B, D), what may collapse while training; None when nothing can."""
        return None

    def previews(self, images: Tensor, generator: Randomness) -> dict[str, Tensor]:
        """Pictures to draw while training, each (M, C, H, W), from fixed test images and fixed noise."""
        return {}


def count_parameters(method: nn.Module) -> tuple[int, int]:
    """How many parameters are trained, and how many there are: a target network's are not trained.

    Buffers are no parameters: batch-norm statistics, noise schedules, what is fitted after training.

    Examples:
        >>> layer, frozen = nn.Linear(3, 2), nn.Linear(3, 2).requires_grad_(False)
        >>> count_parameters(nn.Sequential(layer, frozen))
        (8, 16)
    """
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in method.parameters()]
    return sum(n for n, is_trained in counts if is_trained), sum(n for n, _ in counts)


# What only some methods can do. A method has an ability by having its members: commands and evaluations ask
# `isinstance(method, CanSample)`, never for a class or a name, so that a new method is served by all of them.


@runtime_checkable
class CanSample(Protocol):
    """Draws images from nothing but noise."""

    def sample(self, n: int, generator: Randomness = None) -> Tensor:
        """`n` images (n, C, H, W); with one generator per image, image i depends on its own alone.

        Further keyword parameters are the method's own sampling options (prior, sampler, steps, ...).
        """
        ...


@runtime_checkable
class CanReconstruct(Protocol):
    """Passes images through a bottleneck and back."""

    def reconstruct(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), deterministic."""
        ...


@runtime_checkable
class CanInterpolate(Protocol):
    """Decodes paths between latents (B, D), drawn from a prior or taken from images by `features`."""

    def sample_prior(self, n: int, generator: Randomness = None) -> Tensor:
        """Latents (n, D)."""
        ...

    def interpolate(self, z_1: Tensor, z_2: Tensor, n: int) -> Tensor:
        """`n` images on the straight line from z_1 to z_2, both (B, D): (n, B, C, H, W)."""
        ...

    def decode_path(self, z: Tensor) -> Tensor:
        """Latents (n, B, D) -> images (n, B, C, H, W)."""
        ...


@runtime_checkable
class CanDenoise(Protocol):
    """Undoes a diffusion process from any of its noise levels."""

    schedule: "NoiseSchedule"
    network: Any  # a module: (x (B, C, H, W), t (B,)) -> prediction
    prediction: "Prediction"  # what it predicts

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        ...

    def denoise(
        self,
        x: Tensor,
        t_start: int | None,
        generator: Randomness = None,
        sampler: Any = "dpm++",
        steps: int | None = None,
        *,
        spacing: Any = None,
        callback: "StepCallback | None" = None,
    ) -> Tensor:
        """x (B, C, H, W) at the zero-based time t_start -> clean images."""
        ...


@runtime_checkable
class CanInpaint(Protocol):
    """Fills parts of images, given the rest of them."""

    @property
    def inpaint_steps(self) -> int:
        """Steps from noise to the image, where none are asked for."""
        ...

    def inpaint(
        self,
        images: Tensor,
        mask: Tensor,
        generator: Randomness = None,
        *,
        steps: int | None = None,
        jump_length: int = 5,
        resamplings: int = 5,
        labels: Tensor | None = None,
        guidance: float | None = None,
        callback: "StepCallback | None" = None,
    ) -> Tensor:
        """One completion of each image; with one generator per image, it depends on its own alone.

        Args:
            images: (B, C, H, W); what is below the mask is not looked at.
            mask: bool (H, W), true where to fill; the other pixels are kept exactly.
            generator: of all noise; one for all, or one per image.
            steps: from noise to the image; `inpaint_steps` when None.
            jump_length, resamplings: see `genssl.models.samplers.jump_path`.
            labels: the class of each image, (B,) int64; None: no class.
            guidance: towards the classes; the method's default when None.
            callback: called with (noise levels left - 1, x), of a DDPM the time, after each step and jump.

        Raises:
            ValueError: numbers that do not fit, or a class or guidance that the network does not have.
        """
        ...


@runtime_checkable
class CanPurify(Protocol):
    """Puts noise into images and takes it out again, and with it what else was there (Nie et al. 2022)."""

    @property
    def noise_to_signal(self) -> Tensor:
        """Deviation of the noise over the image's share at t' = 1, 2, ..., (T,), rising."""
        ...

    def purify(
        self,
        images: Tensor,
        t_prime: int,
        generator: Randomness = None,
        steps: int | None = None,
        *,
        surrogate: bool = False,
    ) -> Tensor:
        """Images (B, C, H, W) noised to t' and denoised, of no class, since nobody knows theirs.

        Args:
            images: in the model's range.
            t_prime: the noise level, from 1 to T.
            generator: of all noise; one for all, or one per image.
            steps: network calls per image; 20 when None, fewer where there are fewer levels.
            surrogate: the same as a differentiable map of few steps that adds no noise on its way and cuts
                nothing off, for gradients.
        """
        ...


@runtime_checkable
class CanClassify(Protocol):
    """Knows the classes of the data it was trained on, `Method.class_names`."""

    def classify(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> unnormalized log-probabilities of the classes, logits (B, classes)."""
        ...


@runtime_checkable
class HasProbe(Protocol):
    """May train a linear classifier on its features along the way."""

    probe: nn.Linear | None

    def probe_logits(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, classes), of a method whose probe is not None."""
        ...


@runtime_checkable
class HasLatents(Protocol):
    """Has a posterior over latents for each image."""

    def encode(self, x: Tensor) -> "DiagonalGaussianDistribution":
        """q(z|x) of images (B, C, H, W)."""
        ...


@runtime_checkable
class HasSpatialFeatures(Protocol):
    """Has features at every pixel, from the maps of its layers."""

    @property
    def spatial_blocks(self) -> int:
        """How many layers give a map."""
        ...

    @property
    def spatial_times(self) -> tuple[float, ...]:
        """The noise levels at which it looks at an image, where none are asked for; (): at no noise."""
        ...

    def spatial_features(
        self,
        images: Tensor,
        noise: Tensor | None = None,
        *,
        blocks: Sequence[int] | None = None,
        times: Sequence[float] | None = None,
    ) -> Tensor:
        """(B, C, H, W) -> (B, D, H, W) float32: maps upsampled to the images and concatenated.

        Args:
            images: (B, C, H, W).
            noise: (C, H, W), standard normal, the same for all images and times, so that an image's features
                depend on it alone; None: images are scaled as at the time, and nothing is added.
            blocks: zero-based, in the order of the network; all when None. Of each time in turn, the maps of
                each block in turn.
            times: noise levels; `spatial_times` when None. Ignored by a method that looks at no noise.

        Raises:
            ValueError: there is no such block or time.
        """
        ...


def pixel_features(maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Maps (B, D_i, h_i, w_i), each upsampled bilinearly to `size`, (H, W): (B, sum of D_i, H, W).

    Examples:
        >>> pixel_features([torch.zeros(1, 4, 8, 8), torch.zeros(1, 8, 4, 4)], (16, 16)).shape
        torch.Size([1, 12, 16, 16])
    """
    # Of the maps' own float32: bf16 would round the weights of the interpolation
    upsampled = [F.interpolate(m.float(), tuple(size), mode="bilinear", align_corners=False) for m in maps]
    return torch.cat(upsampled, 1)


def chosen_blocks(blocks: Sequence[int] | None, count: int) -> Sequence[int]:
    """The zero-based blocks that are asked for, of `count`; all when None.

    Raises:
        ValueError: there is no such block, or none is asked for.

    Examples:
        >>> list(chosen_blocks(None, 4)), chosen_blocks([3], 4)
        ([0, 1, 2, 3], [3])
    """
    chosen = range(count) if blocks is None else blocks
    if not chosen or not all(0 <= block < count for block in chosen):
        raise ValueError(f"blocks must be from 1 to {count}, not {', '.join(str(b + 1) for b in chosen)}")
    return chosen


@runtime_checkable
class HasFlow(Protocol):
    """Carries images to noise by an invertible flow, whose change of variables gives log p(x)."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        ...

    def log_likelihood_of_flow(self, x: Tensor, steps: int, generator: Randomness = None) -> Tensor:
        """log p(x) of images (B, C, H, W), (B,) nats, estimated without bias but for the steps."""
        ...


@runtime_checkable
class HasLikelihood(Protocol):
    """Has importance weights for log p(x)."""

    @property
    def likelihood_caveat(self) -> str | None:
        """Why its bits/dim are not comparable with other models'; None where they are."""
        ...

    def log_weights(self, x: Tensor, k: int, generator: Randomness = None) -> Tensor:
        """log p(x, z_k) - log q(z_k|x) of k draws per image, (k, B) in nats."""
        ...
