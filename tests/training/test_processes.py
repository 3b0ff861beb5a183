"""Two processes that talk by gloo equal one: what one of them finds alone is the reference."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from genssl import config as configs
from genssl import distributed
from genssl.data.augment.views import choose_views
from genssl.data.loader import Loader
from genssl.data.split import Split
from genssl.data.subset import train_validation_split
from genssl.errors import UserError
from genssl.features import extract
from genssl.models.build import build
from genssl.models.losses import barlow_twins_loss, nt_xent_loss, simsiam_loss, vicreg_loss
from genssl.models.method import Method
from genssl.settings import Config
from genssl.training.ddp import GlobalBatchNorm, check_batch_divides, convert_batch_norm
from genssl.training.loop import Training
from genssl.training.monitor import Monitor

from .pair import TASKS, in_processes
from .toy import Toy, ToyConfig, ToyViews

CPU = torch.device("cpu")
SELF_SUPERVISED = ("simsiam", "byol", "barlow_twins", "vicreg", "dssl", "simclr", "moco")
IN_FLOAT64 = (*SELF_SUPERVISED, "classifier")
GENERATIVE = ("vae", "ddpm")


class Wide:
    """Views in float64."""

    def __init__(self, views: Any) -> None:
        self.views, self.names, self.draws = views, (), views.draws

    def __call__(self, images: Tensor, draws: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return tuple(view.double() for view in self.views(images, draws))


def split(n: int = 27) -> Split:
    images = torch.randint(
        0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return Split(images, torch.arange(n) % 3, ("a", "b", "c"), "noise", "train", "")


def small(method: str) -> Config:
    changes: dict[str, Any] = {"epochs": 2, "batch_size": 8, "precision": "fp32", "gradient_clip": 0.5}
    if method in SELF_SUPERVISED:
        changes |= {"encoder": "small", "projector_hidden": 16, "projector_dim": 8, "learning_rate": 0.01}
    if method == "classifier":
        changes |= {"encoder": "small", "learning_rate": 0.01, "num_classes": 3}
    if method == "moco":
        changes |= {"queue_size": 20}  # not a multiple of the batch
    if method == "ddpm":
        changes |= {"network": "tiny", "batch_size": 4, "epochs": 1, "limit": 8}
    return configs.make(method, changes)


def toy(*, norm: bool) -> Toy:
    torch.manual_seed(0)
    method = Toy()
    method.config = ToyConfig(gradient_clip=0.3, ema_decay=0.9, precision="fp32")
    if not norm:
        for part in (method.body, method.target):
            part[1] = nn.Identity()
    return method.double()


def train_toy(norm: bool, *, stream: bool = False) -> Training:
    method = toy(norm=norm)
    training = Training(method, Wide(ToyViews()), Loader(split(), CPU, stream), method.config)
    for _ in training.steps():
        pass
    return training


def states(prefix: str, training: Training) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in training.state()[0].items()}


def toys() -> dict[str, Tensor]:
    found = states("plain", train_toy(norm=False)) | states("norm", train_toy(norm=True))
    return found | states("streamed", train_toy(norm=False, stream=True))


def methods() -> dict[str, Tensor]:
    """Weights and losses after a few steps: float64 where the method computes in it."""
    found: dict[str, Tensor] = {}
    for name in (*IN_FLOAT64, *GENERATIVE):
        config = small(name)
        method, views = build(config), choose_views(config)
        if name in IN_FLOAT64:
            method, views = method.double(), Wide(views)
        training = Training(method, views, split().take(config.limit), config)
        losses = [step.losses["loss"] for step in training.steps()]
        found |= states(name, training) | {f"{name}.losses": torch.stack(losses)}
    return found


def features(seed: int, columns: int = 6) -> Tensor:
    return torch.randn(10, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def given_features() -> dict[str, Tensor]:
    """Each loss of given features, and its gradient with regard to this process's rows."""
    found = {}
    losses: dict[str, Callable[..., Tensor]] = {
        "barlow_twins": lambda a, b: barlow_twins_loss(distributed.all_gather(a), distributed.all_gather(b)),
        "vicreg": lambda a, b: vicreg_loss(distributed.all_gather(a), distributed.all_gather(b))["loss"],
        "simclr": lambda a, b: nt_xent_loss(distributed.all_gather(a), distributed.all_gather(b)),
        "simsiam": lambda a, b: simsiam_loss(p1=a, p2=b, z1=b.detach(), z2=a.detach()),
    }
    for name, loss in losses.items():
        mine = [features(seed)[distributed.shard(10)].requires_grad_() for seed in (1, 2)]
        value = loss(*mine)
        value.backward()
        found[f"{name}.loss"] = distributed.all_reduce_mean({"loss": value})["loss"]
        for place, z in enumerate(mine):  # as when the gradients of the weights are averaged
            assert z.grad is not None
            found[f"{name}.gradient {place}"] = distributed.all_gather(z.grad / distributed.world_size(), 10)
    return found


def halves(images: Tensor) -> Tensor:
    return images.flatten(1)[:, ::512]


def together() -> dict[str, Tensor]:
    """Everything small that is said or shared."""
    rank = distributed.shard(distributed.world_size()).start
    mine = torch.arange(14.0).view(7, 2)[distributed.shard(7)]
    numbers = {"a": torch.tensor(float(rank)), "b": torch.tensor(3.0, dtype=torch.float64)}
    return {
        "rows": distributed.all_gather(mine, 7),
        **{f"features of {n}": extract(halves, split(n).images, 2, sharded=True) for n in (1, 2, 7)},
        "half precision": distributed.all_gather(mine.bfloat16(), 7),
        "agreed": torch.tensor(distributed.all_reduce_max(7 * rank)),
        "told": torch.tensor(list(distributed.broadcast("grüße" if rank == 0 else "no").encode())),
        "nothing told": torch.tensor(len(distributed.broadcast(""))),
        **distributed.all_reduce_mean(numbers),
    }


def spoilt() -> dict[str, Tensor]:
    """A row whose loss is not a number, among those of the last process."""
    method = toy(norm=True)

    class Spoiling(Wide):
        def draws_of(self, n: int, generator: Any) -> dict[str, Tensor]:
            found = ToyViews().draws(n, generator)
            found["gain"][-1] = float("nan")
            return found

    views = Spoiling(ToyViews())
    views.draws = views.draws_of
    training = Training(method, views, split(), method.config)
    next(training.steps())
    return {"bad": training.guard.bad, "first": training.guard.first, **states("after", training)}


def watched() -> dict[str, Tensor]:
    config = small("vicreg").updated({"knn_every": 1, "sample_every": 1})
    method = build(config)
    watch = Monitor(choose_views(config), split(301), split(53), config)
    found = watch.observe(method, 1, steps=1, last=False)
    return {name: torch.tensor(float(value)) for name, value in found.items()}


def held_out() -> dict[str, Tensor]:
    """Weights after training without the images that are held out, and what is measured on these."""
    train, validation = train_validation_split(split(60), 0.2, 0)
    method = toy(norm=True)
    training = Training(method, Wide(ToyViews()), train, method.config)
    for _ in training.steps():
        pass
    config = small("vicreg").updated({"holdout": 0.2, "knn_every": 1, "sample_every": 1})
    watch = Monitor(choose_views(config), train, validation, config)
    measured = watch.observe(build(config), 1, steps=1, last=False)
    values = {f"measured.{name}": torch.tensor(float(value)) for name, value in measured.items()}
    return states("weights", training) | values | {"images": validation.images}


def everything() -> dict[str, Tensor]:
    works = (toys, methods, given_features, together, spoilt, watched, held_out)
    return {f"{work.__name__}.{name}": value for work in works for name, value in work().items()}


@pytest.fixture(scope="module")
def one() -> dict[str, Tensor]:
    return everything()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    return in_processes(everything, tmp_path_factory.mktemp("pair"))


@pytest.mark.skipif(not TASKS.exists(), reason="finds threads in /proc")
def test_no_thread_of_gloo_is_left_after_leaving(two: Any) -> None:
    assert [int(each["gloo_threads"]) for each in two] == [0, 0]


def furthest(one: dict[str, Tensor], two: dict[str, Tensor], prefix: str) -> float:
    names = [name for name in one if name.startswith(prefix)]
    assert names
    return max(float((one[name].double() - two[name].double()).abs().max()) for name in names)


@pytest.mark.parametrize("kind", ["plain", "norm", "streamed"])
def test_two_processes_end_with_the_weights_of_one(kind: str, one: Any, two: Any) -> None:
    assert all(furthest(one, each, f"toys.{kind}.") < 1e-10 for each in two)
    assert furthest(two[0], two[1], f"toys.{kind}.") == 0


@pytest.mark.parametrize("method", IN_FLOAT64)
def test_every_method_with_an_encoder_does(method: str, one: Any, two: Any) -> None:
    assert all(furthest(one, each, f"methods.{method}.") < 1e-9 for each in two)


def test_the_queue_is_the_same_in_all_processes(one: Any, two: Any) -> None:
    name = "methods.moco.method.queue"
    assert torch.equal(two[0][name], two[1][name])
    assert furthest(one, two[0], name) < 1e-9
    start = build(small("moco")).state_dict()["queue"].double()
    assert not bool((one[name][:, None] == start).all(2).any())  # all of it has been replaced


@pytest.mark.parametrize("method", GENERATIVE)
def test_those_that_compute_in_float32_have_the_same_losses(method: str, one: Any, two: Any) -> None:
    losses, others = one[f"methods.{method}.losses"], [each[f"methods.{method}.losses"] for each in two]
    assert all(torch.allclose(losses, other, rtol=1e-5) for other in others)
    assert torch.equal(*others)


@pytest.mark.parametrize("loss", ["barlow_twins", "vicreg", "simclr", "simsiam"])
def test_losses_of_given_features_and_their_gradients(loss: str, one: Any, two: Any) -> None:
    assert all(furthest(one, each, f"given_features.{loss}.") < 1e-10 for each in two)


def test_rows_are_gathered_to_the_bit_however_they_are_shared(two: Any) -> None:
    for each in two:
        assert torch.equal(each["together.rows"], torch.arange(14.0).view(7, 2))
        assert torch.equal(each["together.half precision"], torch.arange(14.0).view(7, 2).bfloat16())


@pytest.mark.parametrize("n", [1, 2, 7])
def test_features_are_extracted_together_to_the_bit(n: int, one: Any, two: Any) -> None:
    whole = extract(halves, split(n).images, 3)
    assert all(torch.equal(each[f"together.features of {n}"], whole) for each in (one, *two))


def test_what_is_told_agreed_and_averaged(two: Any) -> None:
    for each in two:
        assert each["together.agreed"] == 7
        assert bytes(each["together.told"].tolist()).decode() == "grüße"
        assert each["together.nothing told"] == 0
        assert (each["together.a"], each["together.b"]) == (0.5, 3.0)


def test_a_loss_that_is_not_finite_anywhere_changes_nothing_anywhere(one: Any, two: Any) -> None:
    before = {f"spoilt.after.method.{name}": value for name, value in toy(norm=True).state_dict().items()}
    for each in (one, *two):
        assert (each["spoilt.bad"], each["spoilt.first"]) == (1, 0)
        assert all(torch.equal(each[name], value) for name, value in before.items())


def test_the_first_process_looks_and_all_find_neighbors(one: Any, two: Any) -> None:
    names = {name.removeprefix("watched.") for name in one if name.startswith("watched.")}
    assert {"knn_accuracy", "test_loss", "output_std"} <= names
    assert furthest(one, two[0], "watched.") < 1e-4
    assert [name for name in two[1] if name.startswith("watched.")] == ["watched.knn_accuracy"]
    assert two[1]["watched.knn_accuracy"] == two[0]["watched.knn_accuracy"]


def test_all_hold_the_same_images_out(one: Any, two: Any) -> None:
    assert len(one["held_out.images"]) == 12
    for each in two:
        assert torch.equal(each["held_out.images"], one["held_out.images"])
        assert furthest(one, each, "held_out.weights.") < 1e-10
    assert furthest(one, two[0], "held_out.measured.") < 1e-4
    names = {name.removeprefix("held_out.measured.") for name in one if name.startswith("held_out.measured.")}
    assert {"knn_accuracy", "validation_loss", "output_std"} <= names
    assert not any(name.startswith("test_") for name in names)


def test_the_global_batch_norm_of_one_process_is_torch_s() -> None:
    torch.manual_seed(0)
    ours, theirs = GlobalBatchNorm(5).double(), nn.BatchNorm2d(5).double()
    x = torch.randn(4, 5, 3, 2, dtype=torch.float64)
    weight = torch.randn(5, dtype=torch.float64)
    for norm in (ours, theirs):
        norm.weight.data.copy_(weight)
        for _ in range(2):
            norm(x)
    assert torch.allclose(ours(x), theirs(x), atol=1e-12)
    assert all(torch.allclose(a, b) for a, b in zip(ours.buffers(), theirs.buffers(), strict=True))
    assert torch.allclose(ours.eval()(x), theirs.eval()(x))


def test_one_process_changes_nothing_of_a_method() -> None:
    method: Method = toy(norm=True)
    modules = list(method.modules())
    assert list(convert_batch_norm(method, CPU).modules()) == modules


@pytest.mark.parametrize(("batch", "count", "said"), [(64, 3, "63 or 66"), (2, 4, "4"), (5, 2, "4 or 6")])
def test_a_batch_without_equal_shares(
    batch: int, count: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: count)
    with pytest.raises(UserError, match=f"use --batch-size {said}$"):
        check_batch_divides(batch)
    check_batch_divides(count * 4)


def test_shares_cover_everything_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    rows = []
    for rank in range(3):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        rows += list(range(11)[distributed.shard(11)])
    assert rows == list(range(11))
