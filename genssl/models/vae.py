"""The variational autoencoder (Kingma & Welling 2014), with the course's network."""

import math
import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from genssl.config import VAEConfig
from genssl.models.gaussian import (
    DiagonalGaussianDistribution,
    gaussian_mixture_sample,
    standard_normal_log_density,
)
from genssl.models.guidance import check_labels, random_labels, shown_labels, shows_class
from genssl.models.method import Method, chosen_blocks, pixel_features
from genssl.pixels import to_model
from genssl.runtime import Randomness, normal, uniform


class ConvolutionalEncoder(nn.Sequential):
    """(B, C, H, W) -> (B, 8 width (H/16)(W/16)): four times [conv k4 s2 p1, LeakyReLU 0.2, BatchNorm]."""

    def __init__(self, channels: int, width: int) -> None:
        layers: list[nn.Module] = []
        for source, target in pairwise([channels, width, 2 * width, 4 * width, 8 * width]):
            layers += [nn.Conv2d(source, target, 4, 2, 1), nn.LeakyReLU(0.2), nn.BatchNorm2d(target)]
        super().__init__(*layers, nn.Flatten())

    def maps(self, x: Tensor) -> list[Tensor]:
        """The output of each batch norm, from fine to coarse: (B, width, H/2, W/2) to (B, 8 width, ...)."""
        maps = []
        for layer in list(self)[:-1]:
            x = layer(x)
            # A batch norm ends each of the four steps
            if isinstance(layer, nn.BatchNorm2d):
                maps.append(x)
        return maps


class ConvolutionalDecoder(nn.Module):
    """(B, z_dim) -> (B, C, H, W): linear, ReLU, then four times [nearest x2, conv 3x3]."""

    def __init__(self, channels: int, width: int, z_dim: int, image_size: int) -> None:
        super().__init__()
        self.start = (8 * width, image_size // 16, image_size // 16)
        self.project = nn.Linear(z_dim, self.start[0] * self.start[1] * self.start[2])
        layers: list[nn.Module] = []
        for source, target in pairwise([8 * width, 4 * width, 2 * width, width, channels]):
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(source, target, 3, 1, 1), nn.LeakyReLU(0.2)]
        self.upsample = nn.Sequential(*layers[:-1])  # the output is linear

    def forward(self, z: Tensor, shift: Tensor | None = None) -> Tensor:
        """Decode `z`, (B, z_dim); `shift`, (B, 8 width (H/16)(W/16)), is added before the first ReLU."""
        projected = self.project(z) if shift is None else self.project(z) + shift
        x = projected.relu().view(-1, *self.start)  # (B, 8 width, H/16, W/16)
        image: Tensor = self.upsample(x)
        return image


Prior = Literal["normal", "mixture"]
NOT_COMPARABLE = (
    "bits/dim under an identity covariance is not comparable with other models': its floor is "
    "D/2 ln 2 pi nats (8.33 bits/dim); train with --set decoder_variance=learned for one that is"
)
MIXTURE_IMAGES = 100_000  # that the mixture is fitted to, at most
VARIANCE_RATE = 1e-2  # learning rate of the decoder's log variance


class VAE(Method):
    """q(z|x) = N(mu(x), diag sigma(x)^2), p(z) = N(0, I), p(x|z) = N(mu(z), s I).

    s is 1 with decoder_variance="unit", one learned number with "learned" (sigma-VAE, Rybkin et al. 2021).
    After training a Gaussian mixture, fitted to one draw of q(z|x) per training image, gives an alternative
    prior to sample from; likelihoods stay under N(0, I).

    Args:
        image_size: pixels per side, a multiple of 16.
        channels: of the images.
        width: channels of the encoder's first layer.
        z_dim: latent dimensions.
        decoder_variance: "unit" or "learned".
        mixture_components: of the mixture that `after_training` fits; 0 for none.
        classes: number of classes of a conditional VAE (Sohn et al. 2015); 0: unconditional. One image in ten
            is trained on without its class, so that everything works without classes, too.

    Examples:
        >>> vae = VAE(image_size=16, width=4, z_dim=5).eval()
        >>> mode, nll, kl = vae(torch.zeros(2, 3, 16, 16))
        >>> mode.shape, nll.shape, vae.sample(4).shape
        (torch.Size([2, 3, 16, 16]), torch.Size([2]), torch.Size([4, 3, 16, 16]))
    """

    units = dict.fromkeys(("loss", "nll", "kl"), "nats per image") | {"decoder_std": "pixel range [-1, 1]"}
    mixture_weights: Tensor  # (K,), all zero until fitted
    mixture_means: Tensor  # (K, z_dim)
    mixture_scales: Tensor  # (K, z_dim, z_dim), lower Cholesky factors

    def __init__(
        self,
        image_size: int = 32,
        channels: int = 3,
        width: int = 32,
        z_dim: int = 32,
        decoder_variance: Literal["unit", "learned"] = "unit",
        mixture_components: int = 10,
        classes: int = 0,
    ) -> None:
        super().__init__()
        self.z_dim, self.classes = z_dim, classes
        self.encoder = ConvolutionalEncoder(channels, width)
        # Four halvings: 8 width channels on (H/16, W/16) places, 1,024 numbers for the course's 32x32 images
        hidden = 8 * width * (image_size // 16) ** 2
        self.mean = nn.Linear(hidden, z_dim)
        self.logvar = nn.Linear(hidden, z_dim)
        self.decoder = ConvolutionalDecoder(channels, width, z_dim, image_size)
        learned = decoder_variance == "learned"
        self.decoder_logvar = nn.Parameter(torch.zeros(())) if learned else None
        self.register_buffer("mixture_weights", torch.zeros(mixture_components))
        self.register_buffer("mixture_means", torch.zeros(mixture_components, z_dim))
        self.register_buffer("mixture_scales", torch.zeros(mixture_components, z_dim, z_dim))
        # Made last, and only for classes: the other weights are as they always were. A class is a picture, at
        # first 0, that is added to the encoder's input, and a shift in the decoder's first layer
        self.class_picture = nn.Linear(classes, channels * image_size**2, bias=False) if classes else None
        self.class_shift = nn.Linear(classes, hidden, bias=False) if classes else None
        if self.class_picture is not None:
            nn.init.zeros_(self.class_picture.weight)

    @classmethod
    def from_config(cls, config: VAEConfig) -> Self:
        """The VAE of a config."""
        variance, components = config.decoder_variance, config.mixture_components
        sizes = (config.image_size, config.channels, config.width, config.z_dim)
        return cls(*sizes, variance, components, config.num_classes or 0)

    # The model

    def encode(self, x: Tensor, labels: Tensor | None = None) -> DiagonalGaussianDistribution:
        """The posterior q(z|x) of images (B, C, H, W), over (B, z_dim); q(z|x, class) of labels (B,)."""
        if labels is not None and self.class_picture is not None:
            x = x + self.class_picture(self._one_hot(labels)).view(x.shape)
        hidden = self.encoder(x)
        return DiagonalGaussianDistribution(self.mean(hidden), self.logvar(hidden))

    def decode(self, z: Tensor, labels: Tensor | None = None) -> DiagonalGaussianDistribution:
        """The likelihood p(x|z) of latents (B, z_dim), over (B, C, H, W); p(x|z, class) of labels (B,)."""
        shift = None
        if labels is not None and self.class_shift is not None:
            shift = self.class_shift(self._one_hot(labels))
        return DiagonalGaussianDistribution(self.decoder(z, shift), self.decoder_logvar)

    def _one_hot(self, labels: Tensor) -> Tensor:
        # All zero for the label `classes`, no class: the network is then the same as without labels
        return (labels[:, None] == torch.arange(self.classes, device=labels.device)).float()

    def forward(self, x: Tensor, generator: Randomness = None) -> tuple[Tensor, Tensor, Tensor]:
        """Encode, draw one latent, decode: (mode (B, C, H, W), nll (B,), kl (B,)), nats."""
        return self._through(x, normal((len(x), self.z_dim), generator, x.device))

    def _through(
        self, x: Tensor, noise: Tensor, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        posterior = self.encode(x, labels)
        # One draw of z per image estimates E_q[-log p(x|z)] without bias; z = mu + sigma * noise lets its
        # gradient reach the encoder (Kingma & Welling 2014, section 2.4)
        likelihood = self.decode(posterior.reparameterize(noise), labels)
        return likelihood.mode(), likelihood.nll(x), posterior.kl()

    # Training

    def draws(self, n: int, generator: Randomness) -> dict[str, Tensor]:
        """The posterior's noise, (n, z_dim), and whether the class is shown, (n,) bool."""
        draws = {"noise": normal((n, self.z_dim), generator)}
        return draws | ({"shows_class": shows_class(n, generator)} if self.classes else {})

    def loss(self, views: tuple[Tensor, ...], draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """-ELBO = E_q[-log p(x|z)] + KL(q(z|x) || p(z)), in nats, the mean over images."""
        (x,) = views
        # Both terms are sums over dimensions: a mean over pixels in only one of them would weigh the KL 3,072
        # times as much, and the posterior would collapse onto the prior
        labels = shown_labels(self.classes, draws) if self.classes else None
        _, nll, kl = self._through(x, draws["noise"], labels)
        terms = {"loss": (nll + kl).mean(), "nll": nll.mean(), "kl": kl.mean()}
        if self.decoder_logvar is not None:
            terms["decoder_std"] = (0.5 * self.decoder_logvar.detach()).exp()
        return terms

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The networks, and the decoder's variance at a rate of its own.

        Its logarithm starts at 0 and has its optimum near log(1/90) = -4.5, and Adam moves it by about the
        learning rate per step: 45,000 steps at the networks' 1e-4.
        """
        networks = [p for p in self.parameters() if p is not self.decoder_logvar]
        groups: list[dict[str, Any]] = [{"params": networks}]
        if self.decoder_logvar is not None:
            groups.append({"params": [self.decoder_logvar], "lr": VARIANCE_RATE})
        return groups

    @torch.no_grad()
    def after_training(self, images: Tensor, generator: Randomness = None) -> None:
        """Fit the Gaussian mixture to one draw of q(z|x) per training image, uint8 (N, C, H, W).

        Where there are many, every second, third, ... of them will do.
        """
        components = len(self.mixture_weights)
        if components == 0:
            return
        if len(images) < 2 * components:
            warnings.warn(f"no mixture was fitted: it needs {2 * components} images or more", stacklevel=2)
            return
        chosen = images[:: -(-len(images) // MIXTURE_IMAGES)]
        points = self._aggregate_posterior(chosen, normal((len(chosen), self.z_dim), generator))
        weights, centers, scales = fit_mixture(points, components)
        self.mixture_weights.copy_(weights)
        self.mixture_means.copy_(centers)
        self.mixture_scales.copy_(scales)

    def _aggregate_posterior(self, images: Tensor, noise: Tensor) -> Tensor:
        """One draw of q(z|x) for each of `images`, uint8 (N, C, H, W), from `noise` (N, z_dim): (N, z_dim).

        The decoder was trained on these, Cov = Var(mu) + E[sigma^2]; the means alone lack the second term.
        """
        where = self.mean.weight.device
        draws = [
            self.encode(to_model(chunk.to(where))).reparameterize(chunk_noise.to(where))
            for chunk, chunk_noise in zip(images.split(512), noise.split(512), strict=True)
        ]
        return torch.cat(draws)

    # Generation

    def sample(
        self, n: int, generator: Randomness = None, prior: Prior = "normal", *, labels: Tensor | None = None
    ) -> Tensor:
        """The modes of p(x|z) for `n` latents from the prior: (n, C, H, W).

        Args:
            n: number of images.
            generator: one for all, or one per image.
            prior: "normal", or the fitted "mixture", which is over latents of images without their class.
            labels: the class of each image, (n,) int64; None: drawn uniformly where there are classes and
                the prior is normal, no class for the mixture.

        Raises:
            ValueError: prior is "mixture" and no mixture was fitted, or there is no such class.
        """
        z = self.sample_prior(n, generator, prior)
        if labels is not None:
            check_labels(labels, self.classes)
        elif self.classes and prior == "normal":
            labels = random_labels(n, self.classes, generator, z.device)
        return self.decode(z, None if labels is None else labels.to(z.device)).mode()

    def sample_prior(self, n: int, generator: Randomness = None, prior: Prior = "normal") -> Tensor:
        """Latents (n, z_dim) from N(0, I) or from the fitted mixture."""
        noise = normal((n, self.z_dim), generator, self.mean.weight.device)
        if prior == "normal":
            return noise
        if not self.has_mixture:
            raise ValueError("it has no mixture: training ends with one, given enough images")
        chance = uniform((n,), generator, noise.device)
        return gaussian_mixture_sample(
            self.mixture_weights, self.mixture_means, self.mixture_scales, chance, noise
        )

    @property
    def has_mixture(self) -> bool:
        """Whether the mixture over the latents has been fitted."""
        return bool(self.mixture_weights.sum() > 0)

    def interpolate(self, z_1: Tensor, z_2: Tensor, n: int) -> Tensor:
        """Decode `n` points on the straight line from z_1 to z_2, both (B, z_dim): (n, B, C, H, W)."""
        share = torch.linspace(0, 1, n, device=z_1.device).view(n, 1, 1)
        return self.decode_path(z_1 + share * (z_2 - z_1))

    def decode_path(self, z: Tensor) -> Tensor:
        """Decode latents (n, B, z_dim) to the modes (n, B, C, H, W)."""
        return torch.stack([self.decode(row).mode() for row in z])  # one place of all paths at a time

    # Likelihood

    @property
    def likelihood_caveat(self) -> str | None:
        """Why its bits/dim are not comparable with other models'; None where they are."""
        return NOT_COMPARABLE if self.decoder_logvar is None else None

    def log_weights(self, x: Tensor, k: int, generator: Randomness = None) -> Tensor:
        """Importance log-weights log p(x, z_k) - log q(z_k|x), z_k ~ q(z|x), in nats.

        Args:
            x: (B, C, H, W).
            k: samples per image.
            generator: one for all, or one per image.

        Returns:
            (k, B). All k B decodings are held at once: draw in portions when k is large.
        """
        posterior = self.encode(x)
        # Drawn per image first, so that image i's draws do not depend on the batch that it is in
        noise = normal((len(x), k, self.z_dim), generator, x.device).transpose(0, 1)  # (k, B, z_dim)
        z = posterior.reparameterize(noise)
        likelihood = self.decode(z.flatten(0, 1))
        repeated = x.expand(k, *x.shape).flatten(0, 1)  # (k B, C, H, W)
        log_likelihood = -likelihood.nll(repeated).view(k, len(x))
        assert posterior.logvar is not None
        # log q(z|x) in terms of the noise: a change of variables, log N(noise; 0, I) - sum log sigma
        log_posterior = standard_normal_log_density(noise) - 0.5 * posterior.logvar.sum(1)
        return log_likelihood + standard_normal_log_density(z) - log_posterior

    def log_likelihood(self, x: Tensor, k: int, generator: Randomness = None) -> Tensor:
        """log p(x) ~ log 1/K sum_k p(x, z_k) / q(z_k|x), a lower bound in expectation: (B,) nats.

        Burda et al. 2016, equation 8, through log-sum-exp.
        """
        return self.log_weights(x, k, generator).logsumexp(0) - math.log(k)

    # Looking at it

    def features(self, images: Tensor) -> Tensor:
        """The posterior means, (B, z_dim)."""
        return self.encode(images).mode()

    @property
    def spatial_blocks(self) -> int:
        """The encoder's four convolutions."""
        return 4

    @property
    def spatial_times(self) -> tuple[float, ...]:
        """(): it looks at images without noise."""
        return ()

    def spatial_features(
        self,
        images: Tensor,
        noise: Tensor | None = None,
        *,
        blocks: Sequence[int] | None = None,
        times: Sequence[float] | None = None,
    ) -> Tensor:
        """The maps of the encoder for images (B, C, H, W), (B, D, H, W): see `HasSpatialFeatures`.

        Not those of the decoder: what that knows of a pixel has passed through z_dim numbers.
        """
        chosen, maps = chosen_blocks(blocks, self.spatial_blocks), self.encoder.maps(images)
        return pixel_features([maps[block] for block in chosen], images.shape[2:])

    def reconstruct(self, images: Tensor) -> Tensor:
        """The mode of p(x|z) at the posterior mean, (B, C, H, W): deterministic."""
        return self.decode(self.encode(images).mode()).mode()

    def previews(self, images: Tensor, generator: Randomness) -> dict[str, Tensor]:
        """Samples from the prior, and pairs of an image and its reconstruction, side by side."""
        pairs = torch.stack([images, self.reconstruct(images)], 1).flatten(0, 1)
        return {"samples": self.sample(len(images), generator), "reconstructions": pairs}


def fit_mixture(points: Tensor, components: int) -> tuple[Tensor, Tensor, Tensor]:
    """Fit a full-covariance Gaussian mixture by expectation maximization.

    Args:
        points: (N, D).
        components: K.

    Returns:
        weights (K,), means (K, D) and lower Cholesky factors of the covariances (K, D, D), float32.

    Examples:
        >>> points = torch.tensor([[-1.0], [-1.2], [1.0], [1.2]])
        >>> weights, means, scales = fit_mixture(points, components=2)
        >>> [round(weight, 3) for weight in weights.tolist()], scales.shape
        ([0.5, 0.5], torch.Size([2, 1, 1]))
        >>> sorted(round(mean, 3) for mean in means.flatten().tolist())
        [-1.1, 1.1]
    """
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(components, reg_covar=1e-4, random_state=0, max_iter=200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer distinct points than components: it fits what there is
        mixture.fit(points.cpu().double().numpy())
    scales = torch.linalg.cholesky(torch.from_numpy(mixture.covariances_))
    weights, means = torch.from_numpy(mixture.weights_), torch.from_numpy(mixture.means_)
    return weights.float(), means.float(), scales.float()
