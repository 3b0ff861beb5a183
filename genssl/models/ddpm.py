"""Denoising diffusion (Ho et al. 2020): a U-Net that finds the noise, trained at random noise levels."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal, Self

import torch
from torch import Tensor

from genssl.config import DDPMConfig
from genssl.models.diffusion import (
    Loss,
    NoiseSchedule,
    Prediction,
    Predictor,
    StepCallback,
    TimestepSampling,
    Variance,
    Weighting,
    cosine_schedule,
    extract,
    linear_schedule,
    p_losses_per_image,
    probability_of_times,
    q_sample,
    t_sample,
    zero_terminal_snr,
)
from genssl.models.guidance import (
    GUIDANCE,
    conditional_model,
    dropout_draws,
    random_labels,
    shows_class,
    training_model,
)
from genssl.models.method import Method, chosen_blocks, pixel_features
from genssl.models.samplers import (
    INPAINT_STEPS,
    JUMP_LENGTH,
    RESAMPLINGS,
    ancestral,
    ddim,
    dpm_solver_pp,
    heun,
    repaint,
    unipc,
)
from genssl.models.sampling_times import Spacing
from genssl.models.unet import LAYOUTS, Dropout, UNet
from genssl.runtime import Randomness, normal, step_noise

Sampler = Literal["dpm++", "ddim", "ancestral", "heun", "unipc"]
DETERMINISTIC = {"dpm++": dpm_solver_pp, "heun": heun, "unipc": unipc}
TARGETS = {"epsilon": "noise", "v": "v", "x": "image"}
FAST_STEPS = 20
VISIBLE = 1e-3  # alpha-bar at the last time above which an image shows through the noise
SPATIAL_TIMES = (50, 150, 250)  # of 1,000 with linear betas (Baranchuk et al. 2022, section 4)
NOISE_THIRDS = ("low", "mid", "high")  # thirds of the times, by noise


class DDPM(Method):
    """p(x_0) by undoing T small steps of noise, x_t = sqrt(alpha-bar_t) x_0 + sqrt(1 - alpha-bar_t) epsilon.

    Args:
        schedule: of T steps.
        network: (x (B, C, H, W), t (B,), labels (B,) | None) -> prediction.
        image_size: pixels per side.
        channels: of the images.
        loss: on the prediction, "smooth_l1" or "mse".
        features_t: the time at which `features` looks at an image.
        classes: number of classes of a class-conditional network; 0: unconditional.
        prediction: what the network predicts, see `x_start_and_epsilon`.
        weighting: of an image's loss by its noise, see `loss_weights`.
        timestep_sampling: how training draws times, see `t_sample`.
        dropout: share of the features in each block of the network that training sets to zero.

    Examples:
        >>> from genssl.models.unet import Layout
        >>> network = UNet(Layout((16, 16), (1, 1), (False, False)))
        >>> ddpm = DDPM(linear_schedule(100, scaled=True), network, image_size=8, features_t=5).eval()
        >>> ddpm.sample(2, steps=4).shape, ddpm.features(torch.zeros(2, 3, 8, 8)).shape
        (torch.Size([2, 3, 8, 8]), torch.Size([2, 16]))
    """

    guidance = GUIDANCE

    def __init__(
        self,
        schedule: NoiseSchedule,
        network: UNet,
        image_size: int = 32,
        channels: int = 3,
        loss: Loss = "smooth_l1",
        features_t: int = 50,
        *,
        classes: int = 0,
        prediction: Prediction = "epsilon",
        weighting: Weighting = "simple",
        timestep_sampling: TimestepSampling = "uniform",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.schedule = schedule
        self.network = network
        self.shape = (channels, image_size, image_size)
        self.loss_kind: Loss = loss
        error = {"smooth_l1": "smooth L1 error", "mse": "mean squared error"}[loss]
        names = ("loss", *(f"loss_{level}" for level in NOISE_THIRDS))
        self.units = dict.fromkeys(names, f"{error} of the {TARGETS[prediction]}")
        self.features_t = features_t
        self.classes, self.prediction = classes, prediction
        self.weighting, self.timestep_sampling, self.dropout = weighting, timestep_sampling, dropout

    @classmethod
    def from_config(cls, config: DDPMConfig) -> Self:
        """The DDPM of a config."""
        if config.beta_schedule == "cosine":
            schedule = cosine_schedule(config.timesteps)
        else:
            betas = (config.beta_start, config.beta_end)
            schedule = linear_schedule(config.timesteps, *betas, scaled=config.scale_betas)
        if config.zero_terminal_snr:
            schedule = zero_terminal_snr(schedule)
        network = UNet(LAYOUTS[config.network], config.channels, config.num_classes or 0)
        return cls(
            schedule, network, config.image_size, config.channels, config.loss, config.features_t,
            classes=config.num_classes or 0, prediction=config.prediction, weighting=config.weighting,
            timestep_sampling=config.timestep_sampling, dropout=config.dropout,
        )  # fmt: skip

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        # The schedule follows the weights from device to device. It is no buffer: it is made from the config,
        # and belongs neither in a checkpoint nor in an average.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.schedule = self.schedule.to(self.device)
        return self

    # Training

    def remarks(self) -> tuple[str, ...]:
        """Says when the forward process does not end in noise (Lin et al. 2024)."""
        signal = float(self.schedule.alphas_cumprod[-1])
        if signal < VISIBLE:
            return ()
        what = f"{self.schedule.timesteps} steps with these betas end with visible signal"
        advice = (
            "sampling starts from none; --set scale_betas=true mends it, or prediction=v with "
            "zero_terminal_snr=true"
        )
        return (f"{what} (alpha-bar {signal:.1e}), {advice}",)

    def draws(self, n: int, generator: Randomness) -> dict[str, Tensor]:
        """The times, (n,) int64, the noise, (n, C, H, W), and whether the class is shown, (n,) bool.

        With dropout also its mask, see `dropout_draws`.
        """
        t = t_sample(self.schedule.timesteps, n, generator, self.timestep_sampling)
        draws = {"t": t, "noise": normal((n, *self.shape), generator)}
        if self.classes:
            draws["shows_class"] = shows_class(n, generator)
        if self.training:
            draws |= dropout_draws(self.network, self.dropout, n, self.shape[1], generator)
        return draws

    def loss(self, views: tuple[Tensor, ...], draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """The simplified objective (equation 14), and its part in each third of the times.

        A part is the sum over a third's images over the number of images expected there, not over those
        present: finite when there are none, without bias when averaged over steps.
        """
        # Algorithm 1: draw t and epsilon, noise x_0 to x_t in one jump, and regress epsilon. Leaving out the
        # weights of the variational bound (L_simple) favors the noisier times, and gives better samples
        (x_start,) = views
        t = draws["t"]
        # Held-out images are looked at with the whole network
        dropout = Dropout(draws["dropout_mask"], self.dropout) if self.dropout > 0 and self.training else None
        losses = p_losses_per_image(
            training_model(self.network, self.classes, draws, dropout), self.schedule, x_start, t,
            draws["noise"], self.loss_kind, prediction=self.prediction, weighting=self.weighting,
        )  # (B,)  # fmt: skip
        terms = {"loss": losses.mean()}
        for name, (first, end) in zip(NOISE_THIRDS, thirds(self.schedule.timesteps), strict=True):
            inside = (t >= first) & (t < end)
            share = probability_of_times(self.schedule.timesteps, first, end, self.timestep_sampling)
            expected = len(t) * share
            terms[f"loss_{name}"] = (losses.detach() * inside).sum() / max(expected, 1e-12)
        return terms

    # Generation

    def sample(
        self,
        n: int,
        generator: Randomness = None,
        sampler: Sampler = "dpm++",
        steps: int | None = None,
        *,
        labels: Tensor | None = None,
        guidance: float | None = None,
        spacing: Spacing | None = None,
        eta: float = 0.0,
        variance: Variance = "posterior",
        clip: bool = True,
        callback: StepCallback | None = None,
    ) -> Tensor:
        """Images (n, C, H, W) from noise; with one generator per image, image i depends on its own alone.

        Args:
            n: number of images.
            generator: of all noise; one for all, or one per image.
            sampler, steps, spacing, eta, variance, clip, callback: as for `denoise`.
            labels: the class of each image, (n,) int64; None: drawn uniformly where the network has classes.
            guidance: as for `denoise`; GUIDANCE when None.

        Raises:
            ValueError: as for `denoise`.
        """
        x = normal((n, *self.shape), generator, self.device)
        if self.classes and labels is None:
            labels = random_labels(n, self.classes, generator, torch.device("cpu"))
        return self.denoise(
            x, None, generator, sampler, steps, labels=labels, guidance=guidance,
            spacing=spacing, eta=eta, variance=variance, clip=clip, callback=callback,
        )  # fmt: skip

    def denoise(
        self,
        x: Tensor,
        t_start: int | None,
        generator: Randomness = None,
        sampler: Sampler = "dpm++",
        steps: int | None = None,
        *,
        labels: Tensor | None = None,
        guidance: float | None = None,
        spacing: Spacing | None = None,
        eta: float = 0.0,
        variance: Variance = "posterior",
        clip: bool = True,
        callback: StepCallback | None = None,
    ) -> Tensor:
        """Clean images from noisy ones.

        Args:
            x: at time t_start, (B, C, H, W).
            t_start: T - 1 when None.
            generator: of the noise that stochastic samplers add; one for all, or one per image.
            sampler: "dpm++", "unipc", "heun", "ddim" or "ancestral".
            steps: of the sampler, with one network call each, or two of "heun"; 20 when not given, or as many
                as there are times; all for "ancestral".
            labels: the class of each image, (B,) int64; None: no class.
            guidance: w of `guided`; GUIDANCE when None and there are labels.
            spacing: of the times that the sampler visits, see `sampling_levels`; `default_spacing` when None.
            eta: of "ddim".
            variance: of "ancestral".
            clip: keep the predicted images in [-1, 1] on the way.
            callback: called with (time, x) after each step.

        Raises:
            ValueError: an unknown sampler or spacing, steps or t_start that do not fit the schedule, or a
                class or guidance that the network does not have.
        """
        times = self.schedule.timesteps if t_start is None else t_start + 1
        if steps is None:
            steps = times if sampler == "ancestral" else min(FAST_STEPS, times)

        model = self._model(labels, guidance)
        spacing = default_spacing(sampler) if spacing is None else spacing
        common: dict[str, Any] = {
            "spacing": spacing, "prediction": self.prediction, "clip": clip, "callback": callback,
        }  # fmt: skip
        if sampler in DETERMINISTIC:
            return DETERMINISTIC[sampler](model, self.schedule, x, steps, t_start, **common)
        noise = step_noise(x.shape, generator, x.device)
        match sampler:
            case "ddim":
                return ddim(model, self.schedule, x, steps, t_start, noise, eta, **common)
            case "ancestral":
                return ancestral(model, self.schedule, x, steps, t_start, noise, variance, **common)
        raise ValueError(f"unknown sampler {sampler!r}; use dpm++, unipc, heun, ddim or ancestral")

    @property
    def inpaint_steps(self) -> int:
        """Steps of `inpaint` where none are asked for."""
        return min(INPAINT_STEPS, self.schedule.timesteps)

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
        """`images` (B, C, H, W), the pixels of `mask` (H, W) filled anew by `repaint`; see `CanInpaint`."""
        noise = step_noise(images.shape, generator, images.device)
        return repaint(
            self._model(labels, guidance), self.schedule, noise(0),
            self.inpaint_steps if steps is None else steps, noise, images, mask, jump_length, resamplings,
            prediction=self.prediction, clip=True, callback=callback,
        )  # fmt: skip

    @property
    def noise_to_signal(self) -> Tensor:
        """sqrt((1 - alpha-bar) / alpha-bar) at t' = 1 .. T, (T,)."""
        return self.schedule.snr.rsqrt()

    def purify(
        self,
        images: Tensor,
        t_prime: int,
        generator: Randomness = None,
        steps: int | None = None,
        *,
        surrogate: bool = False,
    ) -> Tensor:
        """Images (B, C, H, W) noised to t' and denoised by ancestral steps, or DDIM's; see `CanPurify`."""
        times = torch.full((len(images),), t_prime - 1, device=images.device)
        x = q_sample(self.schedule, images, times, normal(images.shape, generator, images.device))
        sampler: Sampler = "ddim" if surrogate else "ancestral"
        steps = min(FAST_STEPS if steps is None else steps, t_prime)
        # Clipping has no gradient where it acts: a surrogate for gradients does without
        return self.denoise(x, t_prime - 1, generator, sampler, steps, clip=not surrogate)

    def _model(self, labels: Tensor | None, guidance: float | None) -> Predictor:
        if labels is not None and guidance is None:
            guidance = self.guidance
        return conditional_model(self.network, self.classes, labels, guidance, self.device)

    # Looking at it

    def features(self, images: Tensor) -> Tensor:
        """The middle of the network, averaged over places, for images (B, C, H, W): (B, D).

        Each image stands for x_t at `features_t` by its mean, sqrt(alpha-bar) x: nothing is drawn.
        """
        return self.features_at(images, self.features_t)

    def features_at(self, images: Tensor, level: int) -> Tensor:
        """`features` at another zero-based time, in [0, T)."""
        t = torch.full(images.shape[:1], level, device=images.device)
        return self.network.middle(extract(self.schedule.sqrt_alphas_cumprod, t, images) * images, t)

    @property
    def spatial_blocks(self) -> int:
        """The residual blocks on the way up."""
        return self.network.up_blocks

    @property
    def spatial_times(self) -> tuple[float, ...]:
        """The times as noisy as 50, 150 and 250 of 1,000 with linear betas (Baranchuk et al. 2022)."""
        paper = linear_schedule().log_alphas_cumprod
        return tuple(dict.fromkeys(self._time_of(paper[t]) for t in SPATIAL_TIMES))

    def _time_of(self, log_alpha_cumprod: float) -> int:
        """The time whose noise is nearest to this level."""
        levels = self.schedule.log_alphas_cumprod
        return min(range(len(levels)), key=lambda t: abs(levels[t] - log_alpha_cumprod))

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
            if time not in range(self.schedule.timesteps):
                raise ValueError(
                    f"times must be whole, from 0 to {self.schedule.timesteps - 1}, not {time:g}"
                )
            t = torch.full((len(images),), int(time), device=images.device)
            still = images.new_zeros(self.shape) if noise is None else noise
            # Little noise asks the network for edges, much noise for what the image may be of: several times
            # see more than one
            outputs = self.network.up_maps(q_sample(self.schedule, images, t, still.expand_as(images)), t)
            maps += [outputs[block] for block in chosen]
        return pixel_features(maps, images.shape[2:])

    def previews(self, images: Tensor, generator: Randomness) -> dict[str, Tensor]:
        """Samples by the fast sampler, as many as there are images."""
        return {"samples": self.sample(len(images), generator)}


def default_spacing(sampler: Sampler) -> Spacing:
    """The spacing of the times that a sampler visits, where none is asked for.

    Examples:
        >>> default_spacing("dpm++"), default_spacing("ancestral")
        ('karras', 'quadratic')
    """
    return "karras" if sampler in DETERMINISTIC else "quadratic"


def thirds(timesteps: int) -> list[tuple[int, int]]:
    """The times 0 .. T - 1 in three runs of nearly equal length, each [first, end).

    Examples:
        >>> thirds(1000)
        [(0, 333), (333, 666), (666, 1000)]
    """
    edges = [timesteps * i // 3 for i in range(4)]
    return list(pairwise(edges))
