"""The VAE against models whose likelihood is known, and against its own definitions."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genssl.config import VAEConfig
from genssl.models import vae as module
from genssl.models.build import build
from genssl.models.gaussian import DiagonalGaussianDistribution
from genssl.models.method import count_parameters
from genssl.models.vae import VAE, fit_mixture
from genssl.pixels import to_model
from genssl.runtime import generator, generators

from ..narrow import given

SIDE = 16


def small(**settings: Any) -> VAE:
    torch.manual_seed(0)
    return VAE(image_size=SIDE, width=4, z_dim=5, mixture_components=2, **settings).eval()


def images(n: int = 3) -> Tensor:
    return torch.rand(n, 3, SIDE, SIDE, generator=generator(0, "test")) * 2 - 1


class LinearGaussian(VAE):
    """p(x|z) = N(W z + b, s I) with orthogonal columns, so that p(x) and p(z|x) are known exactly."""

    def __init__(self, widen: float = 1.0) -> None:
        super().__init__(image_size=SIDE, width=1, z_dim=4)
        source = generator(1, "test")
        basis, _ = torch.linalg.qr(torch.randn(12, 4, generator=source, dtype=torch.float64))
        self.weight = basis * torch.tensor([2.0, 1.0, 0.5, 1.5], dtype=torch.float64)  # (12, 4)
        self.bias = torch.randn(12, generator=source, dtype=torch.float64)
        self.variance = 0.3
        self.widen = widen

    def encode(self, x: Tensor, labels: Tensor | None = None) -> DiagonalGaussianDistribution:
        precision = 1 + self.weight.square().sum(0) / self.variance  # diagonal: the columns are orthogonal
        mean = (x.flatten(1).double() - self.bias) @ self.weight / self.variance / precision
        logvar = (self.widen / precision).log().expand_as(mean)
        return DiagonalGaussianDistribution(mean, logvar)

    def decode(self, z: Tensor, labels: Tensor | None = None) -> DiagonalGaussianDistribution:
        mean = z.double() @ self.weight.T + self.bias
        return DiagonalGaussianDistribution(mean.view(-1, 3, 2, 2), torch.tensor(math.log(self.variance)))

    def exact(self, x: Tensor) -> Tensor:
        covariance = self.weight @ self.weight.T + self.variance * torch.eye(12, dtype=torch.float64)
        model = torch.distributions.MultivariateNormal(self.bias, covariance)
        log_p: Tensor = model.log_prob(x.flatten(1).double())
        return log_p.float()


def test_every_weight_is_the_likelihood_when_the_posterior_is_exact() -> None:
    model = LinearGaussian()
    x = torch.randn(6, 3, 2, 2, generator=generator(2, "test"))
    weights = model.log_weights(x, 8, generator(3, "test"))
    torch.testing.assert_close(weights, model.exact(x).expand(8, 6), rtol=0, atol=2e-4)
    # and so is the ELBO, whose gap is KL(q || posterior) = 0
    posterior = model.encode(x)
    torch.testing.assert_close(model.log_likelihood(x, 8), model.exact(x), rtol=0, atol=2e-4)
    assert posterior.kl().shape == (6,)


def test_importance_sampling_finds_the_likelihood_from_a_wrong_posterior() -> None:
    model = LinearGaussian(widen=1.5)
    x = torch.randn(6, 3, 2, 2, generator=generator(2, "test"))
    k = 20_000
    weights = model.log_weights(x, k, generator(3, "test")).double()
    exact = model.exact(x).double()
    relative = (weights - exact).exp()  # mean 1
    error = relative.std(0) / math.sqrt(k)  # of the mean; d log = d at 1
    found = model.log_likelihood(x, k, generator(3, "test"))
    assert ((found - exact).abs() < 5 * error + 1e-4).all()
    elbo = weights.mean(0)
    assert (elbo < exact - 0.01).all()  # a wrong posterior pays KL(q || p(z|x))


def test_identity_covariance_bounds_the_likelihood() -> None:
    vae, x = small(), images()
    ceiling = -x[0].numel() / 2 * math.log(2 * math.pi)
    assert (vae.log_likelihood(x, 4) <= ceiling).all()
    assert (vae.decode(vae.encode(x).mode()).nll(x) >= -ceiling).all()


def test_forward_gives_the_terms_of_the_elbo() -> None:
    vae, x = small(), images()
    mode, nll, kl = vae(x, generator(0, "test"))
    posterior = vae.encode(x)
    z = posterior.sample(generator(0, "test"))
    torch.testing.assert_close(mode, vae.decode(z).mean)
    flat = (vae.decode(z).mean - x).square().flatten(1).sum(1)
    torch.testing.assert_close(nll, 0.5 * flat + x[0].numel() / 2 * math.log(2 * math.pi))
    torch.testing.assert_close(kl, posterior.kl())
    noise = torch.randn(3, 5, generator=generator(0, "test"))
    terms = vae.loss((x,), {"noise": noise})
    torch.testing.assert_close(terms["loss"], (nll + kl).mean())


def test_its_networks_are_the_layers_of_the_assignment() -> None:
    vae, x = small(), images()
    layers: list[nn.Module] = []
    for wide, narrow in pairwise((3, 4, 8, 16, 32)):
        layers += [nn.Conv2d(wide, narrow, 4, stride=2, padding=1), nn.LeakyReLU(0.2), nn.BatchNorm2d(narrow)]
    encoder = nn.Sequential(*layers, nn.Flatten()).eval()
    layers = [nn.Linear(5, 32), nn.ReLU(), nn.Unflatten(1, (32, 1, 1))]
    for wide, narrow in pairwise((32, 16, 8, 4, 3)):
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d(wide, narrow, 3, padding=1), nn.LeakyReLU(0.2)]
    decoder = nn.Sequential(*layers[:-1]).eval()
    for reference, network in ((encoder, vae.encoder), (decoder, vae.decoder)):
        pairs = zip(reference.state_dict().values(), network.state_dict().values(), strict=True)
        for target, value in pairs:
            target.copy_(value)
    torch.testing.assert_close(vae.encoder(x), encoder(x))
    z = torch.randn(3, 5, generator=generator(0, "test"))
    torch.testing.assert_close(vae.decoder(z), decoder(z))


def test_the_learned_variance_is_optimized_at_a_rate_of_its_own() -> None:
    vae = small(decoder_variance="learned")
    networks, variance = vae.parameter_groups()
    grouped = [*networks["params"], *variance["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in vae.parameters()}
    assert len(grouped) == len(list(vae.parameters()))
    assert len(variance["params"]) == 1
    assert variance["params"][0] is vae.decoder_logvar
    assert variance["lr"] == 1e-2
    optimizer = torch.optim.Adam([networks, variance], lr=1e-4)
    for _ in range(10):
        optimizer.zero_grad()
        vae.loss((images(8),), vae.draws(8, generator(0, "test")))["loss"].backward()
        optimizer.step()
    # Far from its optimum, Adam moves a scalar by about the rate per step
    assert abs(float(given(vae.decoder_logvar))) == pytest.approx(10 * 1e-2, rel=0.2)


def test_a_learned_variance_has_its_optimum_at_the_error() -> None:
    # sigma-VAE, equation 7: at the best shared variance, sigma^2 is the mean squared error
    vae, x = small(decoder_variance="learned"), images(8)
    draws = vae.draws(8, generator(0, "test"))
    mse = (vae._through(x, draws["noise"])[0] - x).square().mean().detach()
    assert vae.decoder_logvar is not None
    with torch.no_grad():
        vae.decoder_logvar.copy_(mse.log())
    vae.loss((x,), draws)["loss"].backward()
    assert abs(float(given(vae.decoder_logvar.grad))) < 1e-3 * x[0].numel()
    with torch.no_grad():
        vae.decoder_logvar.add_(0.5)
    vae.zero_grad()
    vae.loss((x,), draws)["loss"].backward()
    assert float(given(vae.decoder_logvar.grad)) > 0.1 * x[0].numel()


def test_interpolation_runs_from_the_first_point_to_the_second() -> None:
    vae = small()
    z_1, z_2 = torch.randn(2, 4, 5, generator=generator(0, "test"))
    path = vae.interpolate(z_1, z_2, 7)
    assert path.shape == (7, 4, 3, SIDE, SIDE)
    torch.testing.assert_close(path[0], vae.decode(z_1).mode())
    torch.testing.assert_close(path[-1], vae.decode(z_2).mode())
    torch.testing.assert_close(path[3], vae.decode((z_1 + z_2) / 2).mode())


def test_a_sample_depends_on_its_own_generator_alone() -> None:
    vae = small()
    whole = vae.sample(5, generators(0, "sample", range(5)))
    alone = vae.sample(1, generators(0, "sample", [3]))
    torch.testing.assert_close(whole[3:4], alone)


def levels(n: int) -> Tensor:
    return torch.randint(0, 256, (n, 3, SIDE, SIDE), generator=generator(0, "test"), dtype=torch.uint8)


def test_mixture_is_fitted_once_and_sampled() -> None:
    vae = small()
    with pytest.raises(ValueError, match="no mixture"):
        vae.sample(2, prior="mixture")
    vae.after_training(levels(60), generator(0, "test"))
    assert vae.has_mixture
    assert vae.sample(3, generators(0, "sample", range(3)), "mixture").shape == (3, 3, SIDE, SIDE)
    again = small()
    again.after_training(levels(60), generator(0, "test"))
    assert torch.equal(vae.mixture_means, again.mixture_means)  # the draws are the generator's


def test_mixture_has_the_covariance_of_the_aggregate_posterior() -> None:
    # of z ~ q(z|x) over images: Cov[mu] + E[sigma^2], by the law of total covariance
    vae, images = small(), levels(3000)
    with torch.no_grad():
        vae.logvar.weight.zero_()
        vae.logvar.bias.copy_(torch.tensor([0.5, 1.0, 2.0, 3.0, 4.0]).log())
    vae.after_training(images, generator(0, "test"))
    posterior = vae.encode(to_model(images))
    assert posterior.logvar is not None
    mean, of_means = posterior.mean.detach().mean(0), posterior.mean.detach().T.cov()
    expected = of_means + posterior.logvar.exp().mean(0).detach().diag()
    weights, means = vae.mixture_weights, vae.mixture_means
    second = vae.mixture_scales @ vae.mixture_scales.mT + means[:, :, None] * means[:, None, :]
    center = weights @ means
    covariance = torch.einsum("k,kij->ij", weights, second) - center.outer(center)
    # A covariance over n draws is off by about sqrt((S_ii S_jj + S_ij^2) / n)
    variances = expected.diagonal()
    error = ((variances.outer(variances) + expected.square()) / len(images)).sqrt()
    assert ((covariance - expected).abs() < 4 * error).all()
    assert ((center - mean).abs() < 4 * (variances / len(images)).sqrt()).all()
    assert (covariance.diagonal() > of_means.diagonal() + 0.4).all()


@pytest.mark.parametrize(("most", "step"), [(100, 1), (20, 1), (19, 2), (7, 3), (4, 5)])
def test_mixture_of_many_images_is_fitted_to_images_of_all_classes(
    most: int, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    points: list[Tensor] = []

    def remember(found: Tensor, components: int) -> tuple[Tensor, Tensor, Tensor]:
        points.append(found)
        return fit_mixture(found, components)

    monkeypatch.setattr(module, "MIXTURE_IMAGES", most)
    monkeypatch.setattr(module, "fit_mixture", remember)
    vae, twenty = small(), levels(20)
    vae.after_training(twenty, generator(0, "test"))  # a path's images come sorted by their class
    expected = vae.encode(to_model(twenty[::step])).sample(generator(0, "test"))
    assert torch.allclose(points[0], expected, atol=1e-6)
    assert len(points[0]) <= most


def test_fitted_mixture_finds_two_clusters() -> None:
    source = generator(0, "test")
    left = torch.randn(300, 2, generator=source) * 0.1 - 3
    right = torch.randn(100, 2, generator=source) * 0.2 + 3
    weights, means, scales = fit_mixture(torch.cat([left, right]), 2)
    order = means[:, 0].argsort()
    torch.testing.assert_close(weights[order], torch.tensor([0.75, 0.25]), rtol=0, atol=1e-3)
    covariance = scales[order][0] @ scales[order][0].mT
    torch.testing.assert_close(covariance, left.T.cov() + 1e-4 * torch.eye(2), rtol=0.02, atol=1e-4)


def test_the_default_network_is_the_courses() -> None:
    vae = build(VAEConfig())
    assert isinstance(vae, VAE)
    assert count_parameters(vae) == (1_178_659, 1_178_659)  # the mixture's buffers are no parameters
    learned = build(VAEConfig(decoder_variance="learned"))
    assert count_parameters(learned) == (1_178_660, 1_178_660)
    assert vae.encode(torch.zeros(2, 3, 32, 32)).mean.shape == (2, 32)
    assert vae.decode(torch.zeros(2, 32)).mean.shape == (2, 3, 32, 32)


def test_initial_weights_depend_on_the_seed_alone() -> None:
    before = torch.random.get_rng_state()
    first, again = build(VAEConfig(width=4)), build(VAEConfig(width=4))
    other = build(VAEConfig(width=4, seed=1))
    assert torch.equal(before, torch.random.get_rng_state())
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert not torch.equal(first.state_dict()["mean.weight"], other.state_dict()["mean.weight"])


def conditional() -> VAE:
    vae = small(classes=3)
    assert vae.class_picture is not None
    torch.nn.init.normal_(vae.class_picture.weight, generator=generator(1, "test"))
    return vae


def test_classes_are_layers_beside_the_weights_that_it_always_had() -> None:
    plain = build(VAEConfig(width=4)).state_dict()
    weights = build(VAEConfig(width=4, conditional=True, num_classes=10)).state_dict()
    assert set(weights) - set(plain) == {"class_picture.weight", "class_shift.weight"}
    assert all(torch.equal(value, weights[name]) for name, value in plain.items())


def test_the_loss_shows_the_networks_the_classes_but_of_images_without() -> None:
    vae, x = conditional(), images(3)
    assert vae.class_picture is not None
    assert vae.class_shift is not None
    draws = vae.draws(3, generator(0, "test"))
    torch.testing.assert_close(draws["noise"], small().draws(3, generator(0, "test"))["noise"])
    draws |= {"labels": torch.tensor([2, 0, 1]), "shows_class": torch.tensor([True, False, True])}
    # by hand: a picture added to the input and a shift to the first layer; nothing for the second image
    pictures, shifts = (
        layer.weight.T[draws["labels"]].clone() for layer in (vae.class_picture, vae.class_shift)
    )
    pictures[1], shifts[1] = 0, 0
    hidden = vae.encoder(x + pictures.view_as(x))
    posterior = DiagonalGaussianDistribution(vae.mean(hidden), vae.logvar(hidden))
    z = posterior.mean + (0.5 * vae.logvar(hidden)).exp() * draws["noise"]
    shown = vae.decoder.upsample((vae.decoder.project(z) + shifts).relu().view(-1, *vae.decoder.start))
    nll = 0.5 * ((shown - x).square() + math.log(2 * math.pi)).flatten(1).sum(1)
    terms = vae.loss((x,), draws)
    torch.testing.assert_close(terms["nll"], nll.mean())
    torch.testing.assert_close(terms["loss"], (nll + posterior.kl()).mean())
    terms["loss"].backward()
    for layer in (vae.class_picture, vae.class_shift):
        assert layer.weight.grad is not None
        assert layer.weight.grad.abs().sum(0).bool().tolist() == [False, True, True]


def test_the_class_changes_what_is_decoded_and_no_class_is_the_network_without() -> None:
    vae, plain, x = conditional(), small(), images(3)
    plain.load_state_dict({n: v for n, v in vae.state_dict().items() if not n.startswith("class_")})
    none = torch.full((3,), 3)
    for labels in (None, none):
        torch.testing.assert_close(vae.encode(x, labels).mode(), plain.encode(x).mode(), rtol=0, atol=0)
        z = plain.encode(x).mode()
        torch.testing.assert_close(vae.decode(z, labels).mode(), plain.decode(z).mode(), rtol=0, atol=0)
    torch.testing.assert_close(vae.reconstruct(x), plain.reconstruct(x), rtol=0, atol=0)
    labels, noise = torch.tensor([0, 1, 0]), generators(0, "sample", range(3))
    three = vae.sample(3, noise, labels=labels)
    last = vae.sample(1, generators(0, "sample", [2]), labels=labels[2:])
    torch.testing.assert_close(three[2:], last)
    assert not torch.allclose(
        vae.sample(1, generators(0, "sample", [2]), labels=labels[1:2]), last, atol=1e-3
    )
    assert vae.sample(3, generators(0, "sample", range(3))).shape == three.shape


def test_classes_that_it_does_not_have_are_refused() -> None:
    with pytest.raises(ValueError, match="from 0 to 2"):
        conditional().sample(1, labels=torch.tensor([3]))
    with pytest.raises(ValueError, match="trained without classes"):
        small().sample(1, labels=torch.tensor([0]))
