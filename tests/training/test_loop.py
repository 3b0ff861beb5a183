"""The loop, the guard and the average, with the toy method."""

import copy
import math
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from genssl.data.split import Split
from genssl.runtime import generator
from genssl.training.loop import Training
from genssl.training.optim import Guard, lr_factor

from ..narrow import given
from .toy import Toy, ToyConfig, ToyViews, build_toy


def split(n: int = 40) -> Split:
    images = torch.randint(0, 256, (n, 3, 32, 32), generator=generator(0, "test"), dtype=torch.uint8)
    return Split(images, None, (), "noise", "train", "")


def training(config: ToyConfig, method: Toy | None = None, n: int = 40) -> Training:
    return Training(method or build_toy(config), ToyViews(), split(n), config)


def weights(loop: Training) -> dict[str, Tensor]:
    return copy.deepcopy({**loop.state()[0]})


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert set(first) == set(second)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "lars"])
@pytest.mark.parametrize("stop", [1, 5, 7])
def test_a_resumed_run_is_the_same_run(optimizer: str, stop: int) -> None:
    config = ToyConfig(optimizer=optimizer, ema_decay=0.9, weight_decay=0.01, gradient_clip=0.5)
    whole = training(config)
    list(whole.steps())
    begun = training(config)
    steps = begun.steps()
    for _ in range(stop):
        next(steps)
    tensors, texts = begun.state()
    continued = training(config)
    continued.restore(copy.deepcopy(tensors), texts)
    list(continued.steps())
    assert continued.step == whole.step == 10
    assert_same(weights(whole), weights(continued))


def test_a_state_of_an_earlier_version_resumes() -> None:
    config = ToyConfig()
    whole = training(config)
    steps = whole.steps()
    next(steps)
    tensors, texts = copy.deepcopy(whole.state())
    assert '"fix_lr": true' in texts["groups"]
    texts["groups"] = texts["groups"].replace('"fix_lr"', '"constant_rate"')
    list(steps)
    continued = training(config)
    continued.restore(tensors, texts)
    list(continued.steps())
    assert continued.optimizer.param_groups[1]["lr"] == 0.5
    assert_same(weights(whole), weights(continued))


def test_every_step_has_its_own_draws_and_is_followed_by_after_step() -> None:
    seen: list[Tensor] = []
    shares: list[float] = []

    class Watching(Toy):
        def loss(self, views: tuple[Tensor, ...], draws: dict[str, Tensor]) -> dict[str, Tensor]:
            seen.append(draws["noise"])
            return super().loss(views, draws)

        def after_step(self, progress: float) -> None:
            shares.append(progress)
            super().after_step(progress)

    method = Watching()
    method.config = ToyConfig()
    loop = training(ToyConfig(), method)
    target = cast(nn.Conv2d, method.target[0])
    start = target.weight.clone()
    list(loop.steps())
    assert len({float(noise.sum()) for noise in seen}) == 10
    assert shares == pytest.approx([k / 10 for k in range(1, 11)])
    assert not torch.equal(start, target.weight)


def test_another_seed_is_another_run() -> None:
    first, second = training(ToyConfig()), training(ToyConfig(seed=1))
    list(first.steps()), list(second.steps())
    assert not torch.equal(weights(first)["method.head.weight"], weights(second)["method.head.weight"])


def test_an_epoch_sees_every_image_once() -> None:
    seen: list[Tensor] = []

    class Watching(ToyViews):
        def __call__(self, images: Tensor, draws: dict[str, Tensor]) -> tuple[Tensor, ...]:
            seen.append(images)
            return super().__call__(images, draws)

    config = ToyConfig(epochs=1)
    loop = Training(build_toy(config), Watching(), split(), config)
    list(loop.steps())
    found = torch.cat(seen).flatten(1).float().sum(1).sort().values
    assert torch.equal(found, split().images.flatten(1).float().sum(1).sort().values)


def test_every_step_has_its_own_views_and_every_epoch_its_order() -> None:
    gains: list[Tensor] = []
    images_seen: list[Tensor] = []

    class Watching(ToyViews):
        def __call__(self, images: Tensor, draws: dict[str, Tensor]) -> tuple[Tensor, ...]:
            gains.append(draws["gain"].flatten())
            images_seen.append(images[:, 0, 0, 0])
            return super().__call__(images, draws)

    config = ToyConfig()
    list(Training(build_toy(config), Watching(), split(), config).steps())
    assert len({float(gain.sum()) for gain in gains}) == 10
    first, second = torch.cat(images_seen[:5]), torch.cat(images_seen[5:])
    assert torch.equal(first.sort().values, second.sort().values)
    assert not torch.equal(first, second)


def test_a_split_smaller_than_a_batch_is_one_batch() -> None:
    loop = training(ToyConfig(batch_size=64), n=5)
    assert [step.images for step in loop.steps()] == [5, 5]


class Poisoned(Toy):
    """Gives a loss, or a gradient, that is not finite at one step."""

    def __init__(self, at: int, where: str) -> None:
        super().__init__()
        self.at, self.where, self.calls = at, where, 0

    def loss(self, views: tuple[Tensor, ...], draws: dict[str, Tensor]) -> dict[str, Tensor]:
        losses = super().loss(views, draws)
        self.calls += 1
        if self.calls - 1 != self.at:
            return losses
        if self.where == "loss":
            return {"loss": losses["loss"] * math.nan}
        zero = (self.head.weight * 0).sum()
        return {"loss": losses["loss"] + torch.sqrt(zero)}  # finite, with an infinite slope


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd", "lars"])
def test_a_step_that_is_not_finite_changes_nothing(where: str, optimizer: str) -> None:
    config = ToyConfig(optimizer=optimizer, ema_decay=0.9, gradient_clip=1.0)
    torch.manual_seed(0)
    method = Poisoned(6, where)
    method.config = config
    loop = training(config, method)
    steps = loop.steps()
    for _ in range(6):
        next(steps)
    before = weights(loop)
    assert loop.guard.first_bad_step() is None
    next(steps), next(steps)  # the bad one, and one more before anyone looks
    assert loop.guard.first_bad_step() == 6
    after = weights(loop)
    ignored = {"average.n_averaged"}
    assert_same(
        {k: v for k, v in before.items() if k not in ignored},
        {k: v for k, v in after.items() if k not in ignored},
    )


class Written(nn.Module):
    """Buffers and frozen weights of several types and layouts, as a step may write them."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last).requires_grad_(False)
        self.norm = nn.BatchNorm2d(4)
        self.register_buffer("empty", torch.empty(0))

    def values(self) -> list[Tensor]:
        return [value.clone() for value in self.state_dict().values()]


@pytest.mark.parametrize("bad", [False, True])
def test_the_guard_restores_every_layout_and_type(bad: bool) -> None:
    method = Written()
    guard = Guard(method, torch.device("cpu"))
    before = method.values()
    guard.remember()
    with torch.no_grad():
        for i, value in enumerate(method.state_dict().values()):
            value.copy_(torch.arange(value.numel()).view(value.shape) + i)
        method.frozen.weight[0] = math.nan if bad else -0.0
        given(method.norm.num_batches_tracked).add_(3)
    written = method.values()
    guard.check(torch.tensor(math.nan if bad else 1.0), torch.tensor(1.0), 0)
    guard.restore()
    # weights of a batch norm are the optimizer's, and stay
    expected = [b if bad and "norm.weight" != name != "norm.bias" else w
                for name, b, w in zip(method.state_dict(), before, written, strict=True)]  # fmt: skip
    for found, value in zip(method.values(), expected, strict=True):
        assert torch.equal(found, value)
        assert torch.equal(found.signbit(), value.signbit())
    assert method.frozen.weight.is_contiguous(memory_format=torch.channels_last)


def test_rates_follow_their_schedule() -> None:
    config = ToyConfig(learning_rate=0.1, epochs=4)
    loop = training(config)
    body, head = loop.optimizer.param_groups
    rates = []
    for _ in loop.steps():
        rates.append(body["lr"])
        assert head["lr"] == 0.5
    expected = [0.05 * (1 + math.cos(math.pi * k / 20)) for k in range(20)]
    assert rates == pytest.approx(expected)


def test_a_scaled_rate_is_that_of_the_batches_there_are() -> None:
    loop = training(ToyConfig(batch_size=64, learning_rate=0.1, base_batch_size=32), n=16)
    assert loop.optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


def test_warm_up_rises_to_the_schedule() -> None:
    config = ToyConfig(warmup_epochs=2, schedule="constant")
    factors = [lr_factor(config, step, 5) for step in range(12)]
    assert factors[:10] == pytest.approx([(k + 1) / 11 for k in range(10)])
    assert factors[10:] == [1, 1]


def test_after_the_warm_up_the_cosine_falls_to_zero() -> None:
    config = ToyConfig(epochs=4, warmup_epochs=2, schedule="cosine")
    factors = [lr_factor(config, step, 5) for step in range(20)]
    assert factors[:10] == pytest.approx([(k + 1) / 11 for k in range(10)])
    assert factors[10:] == pytest.approx([0.5 * (1 + math.cos(math.pi * k / 10)) for k in range(10)])


def test_the_average_has_the_average_of_running_statistics() -> None:
    loop = training(ToyConfig(ema_decay=0.5))
    expected = None
    for count, _ in enumerate(loop.steps()):
        now = cast(nn.BatchNorm2d, cast(Toy, loop.method).body[1]).running_mean.clone()  # type: ignore[union-attr]
        decay = min(0.5, (1 + count) / (10 + count))
        expected = now if expected is None else decay * expected + (1 - decay) * now
    found = cast(nn.BatchNorm2d, cast(Toy, loop.inference).body[1]).running_mean
    torch.testing.assert_close(found, expected)


def test_the_average_follows_its_formula() -> None:
    config = ToyConfig(ema_decay=0.5, optimizer="sgd")
    loop = training(config)
    expected = None
    for count, _ in enumerate(loop.steps()):
        now = cast(Toy, loop.method).head.weight.detach().clone()
        decay = min(0.5, (1 + count) / (10 + count))
        expected = now if expected is None else decay * expected + (1 - decay) * now
    torch.testing.assert_close(cast(Toy, loop.inference).head.weight, expected)


def test_clipping_bounds_the_step() -> None:
    config = ToyConfig(optimizer="sgd", momentum=0, gradient_clip=1e-3, epochs=1, schedule="constant")
    loop = training(config)
    before = {k: v.clone() for k, v in loop.method.named_parameters()}
    next(loop.steps())
    # The gradients of all parameters together have the norm of the bound; the head has a rate of its own
    moved = [
        (v - before[k]).detach().square().sum() / (0.5 if k.startswith("head") else config.learning_rate) ** 2
        for k, v in loop.method.named_parameters()
        if v.requires_grad
    ]
    assert float(torch.stack(moved).sum().sqrt()) == pytest.approx(1e-3, rel=0.01)


def test_a_gradient_below_the_bound_is_left_as_it_is() -> None:
    free, bounded = (training(ToyConfig(gradient_clip=bound)) for bound in (None, 1e9))
    next(free.steps()), next(bounded.steps())
    assert_same(weights(free), weights(bounded))
