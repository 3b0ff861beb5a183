"""Class-conditional diffusion, and guidance towards classes."""

import pytest
import torch
from torch import Tensor

from genssl.config import DDPMConfig
from genssl.data.augment.views import Plain
from genssl.data.synthetic import render
from genssl.errors import UserError
from genssl.models import unet
from genssl.models.build import build
from genssl.models.ddpm import DDPM
from genssl.models.guidance import GUIDANCE, guided, random_labels
from genssl.models.unet import Layout
from genssl.runtime import generator, generators
from genssl.training.loop import Training

X = torch.randn(6, 3, 8, 8, generator=generator(0, "test"))
T = torch.arange(6)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
NONE = 3


def network(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    return x * (1 + labels).view(-1, 1, 1, 1) + t.view(-1, 1, 1, 1)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> DDPMConfig:
    monkeypatch.setitem(unet.LAYOUTS, "tiny", Layout((16, 16), (1, 1), (False, False)))
    return DDPMConfig(
        data="synthetic", network="tiny", timesteps=20, features_t=3, image_size=16, conditional=True,
        num_classes=10, batch_size=8, epochs=2, precision="fp32",
    )  # fmt: skip


def test_guidance_goes_from_no_class_through_the_class_and_beyond() -> None:
    of_class, of_none = network(X, T, LABELS), network(X, T, torch.full_like(LABELS, NONE))
    torch.testing.assert_close(guided(network, LABELS, NONE, 0.0)(X, T), of_class, rtol=0, atol=0)
    torch.testing.assert_close(guided(network, LABELS, NONE, -1.0)(X, T), of_none, rtol=0, atol=0)
    expected = of_class + 2.5 * (of_class - of_none)
    torch.testing.assert_close(guided(network, LABELS, NONE, 2.5)(X, T), expected)


@pytest.mark.parametrize(("w", "images"), [(0.0, 6), (-1.0, 6), (1.5, 12)])
def test_guidance_costs_one_batch_of_twice_the_images(w: float, images: int) -> None:
    batches: list[int] = []

    def counting(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        batches.append(len(x))
        return network(x, t, labels)

    guided(counting, LABELS, NONE, w)(X, T)
    assert batches == [images]


def test_a_network_without_classes_has_the_weights_that_it_always_had() -> None:
    plain = build(DDPMConfig(network="tiny"))
    conditional = build(DDPMConfig(network="tiny", conditional=True, num_classes=10))
    shared = conditional.state_dict()
    assert set(shared) - set(plain.state_dict()) == {"network.class_embedding.weight"}
    assert all(torch.equal(value, shared[name]) for name, value in plain.state_dict().items())


def test_an_unconditional_ddpm_begins_and_draws_as_before_there_were_classes() -> None:
    """The numbers of the first edition: another order of draws, or one more, changes them."""
    ddpm = build(DDPMConfig(network="tiny", timesteps=20, features_t=3, image_size=16))
    first = next(ddpm.parameters()).detach().flatten()[:3]
    torch.testing.assert_close(first, torch.tensor([-0.0771, -0.14478, 0.01232]), rtol=0, atol=1e-5)
    draws = ddpm.draws(4, generator(0, "test"))
    assert draws["t"].tolist() == [18, 1, 6, 2]
    noise = torch.tensor([-1.60099, 0.11634, 1.15498, -0.70834])
    torch.testing.assert_close(draws["noise"][:, 0, 0, 0], noise, rtol=0, atol=1e-4)
    assert set(draws) == {"t", "noise"}


def test_one_class_in_ten_is_hidden_and_the_others_reach_the_network(tiny: DDPMConfig) -> None:
    ddpm = build(tiny)
    assert isinstance(ddpm, DDPM)
    draws = ddpm.draws(4000, generator(0, "test"))
    # four standard deviations of a binomial share
    assert abs(float((~draws["shows_class"]).float().mean()) - 0.1) < 4 * (0.1 * 0.9 / 4000) ** 0.5
    seen: list[Tensor] = []
    ddpm.network.register_forward_hook(lambda _, arguments, __: seen.append(arguments[2]))
    rows = {name: value[:8] for name, value in draws.items()} | {"labels": torch.arange(8)}
    ddpm.loss((torch.zeros(8, 3, 16, 16),), rows)
    assert torch.equal(seen[0], torch.where(rows["shows_class"], torch.arange(8), 10))


def test_a_step_sees_the_labels_of_its_own_images(tiny: DDPMConfig) -> None:
    split = render.make("train", count=24, image_size=16)
    training = Training(build(tiny), Plain(), split, tiny)
    assert split.labels is not None
    known = {
        image.numpy().tobytes(): int(label) for image, label in zip(split.images, split.labels, strict=True)
    }
    for images, labels in training._batches(1, 0):
        assert labels is not None
        assert labels.tolist() == [known[image.numpy().tobytes()] for image in images]
    assert torch.isfinite(next(training.steps()).losses["loss"])


def test_an_image_depends_on_its_own_generator_and_class(tiny: DDPMConfig) -> None:
    ddpm = build(tiny).eval()
    assert isinstance(ddpm, DDPM)
    for parameter in ddpm.network.parameters():  # untrained, its blocks are the identity and its output 0
        torch.nn.init.normal_(parameter, std=0.1, generator=generator(1, "test"))
    labels = torch.tensor([3, 7, 3])
    with torch.no_grad():
        three = ddpm.sample(3, generators(0, "sample", range(3)), labels=labels, guidance=2.0)
        last = ddpm.sample(1, generators(0, "sample", [2]), labels=labels[2:], guidance=2.0)
        other = ddpm.sample(1, generators(0, "sample", [2]), labels=labels[1:2], guidance=2.0)
    torch.testing.assert_close(three[2:], last, rtol=0, atol=1e-5)
    assert not torch.allclose(last, other, atol=1e-3)


def test_without_a_word_guidance_is_the_default(tiny: DDPMConfig) -> None:
    ddpm = build(tiny).eval()
    assert isinstance(ddpm, DDPM)
    for parameter in ddpm.network.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=generator(1, "test"))

    def sampled(guidance: float | None = None) -> Tensor:
        labels = torch.tensor([3, 7])
        return ddpm.sample(2, generators(0, "sample", range(2)), labels=labels, guidance=guidance)

    with torch.no_grad():
        torch.testing.assert_close(sampled(), sampled(guidance=GUIDANCE), rtol=0, atol=0)
        assert not torch.allclose(sampled(), sampled(guidance=0.0), atol=1e-3)


def test_random_classes_are_all_alike_in_number() -> None:
    n = 10_000
    counts = random_labels(n, 10, generator(0, "test"), torch.device("cpu")).bincount(minlength=10)
    # 4.5 standard deviations of a binomial count
    assert ((counts - n / 10).abs() < 4.5 * (n * 0.1 * 0.9) ** 0.5).all()


def test_wrong_classes_are_refused(tiny: DDPMConfig) -> None:
    ddpm, plain = build(tiny), build(DDPMConfig(network="tiny"))
    assert isinstance(ddpm, DDPM)
    assert isinstance(plain, DDPM)
    with pytest.raises(ValueError, match="from 0 to 9"):
        ddpm.sample(1, labels=torch.tensor([10]))
    with pytest.raises(ValueError, match="trained without classes"):
        plain.sample(1, labels=torch.tensor([1]))
    with pytest.raises(ValueError, match="needs a class"):
        plain.sample(1, guidance=1.0)
    with pytest.raises(UserError, match="has 10 classes, and the network 3"):
        Training(
            build(tiny.updated({"num_classes": 3})),
            Plain(),
            render.make("train", count=24, image_size=16),
            tiny,
        )
