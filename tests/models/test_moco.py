"""MoCo: its queue and its key network against what the paper says of them, and what no gradient may reach."""

import copy
from collections import deque
from typing import Any

import pytest
import torch
from torch import Tensor

from genssl.config import MoCoConfig
from genssl.data.split import Split
from genssl.errors import UserError
from genssl.models.build import build
from genssl.models.losses import info_nce_loss
from genssl.models.moco import MoCo
from genssl.runtime import generator
from genssl.training.loop import Training
from tests.training.toy import ToyViews

from .siamese_data import gradient_names, tiny, views

PAIRS = (("encoder", "key_encoder"), ("projector", "key_projector"))


def settings(**changes: Any) -> MoCoConfig:
    small = {"encoder": "small", "projector_dim": 8, "projector_hidden": 12, "queue_size": 10}
    return MoCoConfig(**{**small, "epochs": 2, "batch_size": 4, "precision": "fp32", **changes})


def training(config: MoCoConfig, method: Any = None) -> Training:
    images = torch.randint(0, 256, (12, 3, 8, 8), generator=generator(0, "test"), dtype=torch.uint8)
    split = Split(images, None, (), "noise", "train", "")
    return Training(method or build(config), ToyViews(), split, config)


def weights(method: Any, names: tuple[str, ...]) -> list[Tensor]:
    """Copies in float64."""
    return [p.detach().double().clone() for name in names for p in getattr(method, name).parameters()]


def test_the_loss_is_that_of_queries_keys_and_queue() -> None:
    method = tiny(MoCo, queue_size=7, temperature=0.3).eval()
    with torch.no_grad():
        method.key_encoder.conv1.weight.mul_(-0.5)  # so that it differs from the query network
    x1, x2 = views()
    keys = method.key_projector(method.key_encoder(x2))
    expected = info_nce_loss(method.outputs(x1), keys, method.queue, 0.3)
    torch.testing.assert_close(method.loss((x1, x2), {})["loss"], expected)
    assert not torch.allclose(method.loss((x2, x1), {})["loss"], expected, atol=1e-4)  # one-sided


def test_the_order_of_the_images_does_not_matter() -> None:
    method = tiny(MoCo, queue_size=7, key_groups=1)
    (x1, x2), rows = views(), torch.tensor([3, 0, 5, 1, 4, 2])
    other = copy.deepcopy(method)
    expected, found = method.loss((x1, x2), {}), other.loss((x1[rows], x2[rows]), {})
    torch.testing.assert_close(found, expected)


def test_the_queue_holds_the_newest_keys_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = training(settings())
    method: Any = loop.method
    queue = deque(method.queue.clone(), maxlen=10)
    real, made = MoCo.keys, []

    def watched(self: MoCo, images: Tensor) -> Tensor:
        made.append(real(self, images))
        return made[-1]

    monkeypatch.setattr(MoCo, "keys", watched)
    for _ in loop.steps():
        queue.extend(made[-1])
        assert torch.equal(method.queue, torch.stack(list(queue)))
    assert len(made) == 6
    torch.testing.assert_close(torch.cat(made).norm(dim=1), torch.ones(24))


def test_a_batch_larger_than_the_queue_leaves_its_last_keys() -> None:
    method = tiny(MoCo, queue_size=4)
    x1, x2 = views()
    keys = method.keys(x2)
    method.loss((x1, x2), {})
    assert torch.equal(method.queue, keys[-4:])


def test_a_look_at_the_loss_leaves_the_queue_alone() -> None:
    method = tiny(MoCo, queue_size=7).eval()
    before = method.queue.clone()
    method.loss(views(), {})
    assert torch.equal(method.queue, before)


def test_the_key_network_is_the_moving_average_of_the_query_network() -> None:
    """xi_K = sum_k theta_k (1 - m) m^(K - k), and theta_0 m^K."""
    loop = training(settings(key_momentum=0.8))
    query, key = (tuple(pair[i] for pair in PAIRS) for i in (0, 1))
    seen = [weights(loop.method, query)]
    assert all(torch.equal(a, b) for a, b in zip(seen[0], weights(loop.method, key), strict=True))
    for _ in loop.steps():
        seen.append(weights(loop.method, query))
    steps = len(seen) - 1
    shares = [0.8**steps] + [0.2 * 0.8 ** (steps - k) for k in range(1, steps + 1)]
    for position, value in enumerate(weights(loop.method, key)):
        expected = sum(share * theta[position] for share, theta in zip(shares, seen, strict=True))
        assert isinstance(expected, Tensor)
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def key_of(method: MoCo, images: Tensor) -> Tensor:
    """The outputs of the key network, by the statistics of all these images."""
    outputs: Tensor = method.key_projector(method.key_encoder(images)).detach()
    lengths: Tensor = outputs.norm(dim=1, keepdim=True)
    return outputs / lengths


def test_keys_are_normalized_by_the_images_of_their_group() -> None:
    method = tiny(MoCo, queue_size=7, key_groups=3).train()
    x, _ = views()  # six images: 0 and 3, 1 and 4, 2 and 5
    keys = method.keys(x)
    for first in range(3):
        pair = [first, first + 3]
        torch.testing.assert_close(keys[pair], key_of(method, x[pair]))
    other = x.clone()
    other[[1, 4]] = -x[[1, 4]]
    changed = (method.keys(other) - keys).abs().amax(1) > 1e-3
    assert changed.tolist() == [False, True, False, False, True, False]


@pytest.mark.parametrize(("asked", "used"), [(1, 1), (2, 2), (3, 3), (8, 3)])
def test_a_group_has_two_images_or_more(asked: int, used: int) -> None:
    method = tiny(MoCo, queue_size=7, key_groups=asked).train()
    x, _ = views()
    torch.testing.assert_close(method.keys(x)[::used], key_of(method, x[::used]))


def test_a_look_at_keys_uses_the_averaged_statistics() -> None:
    method = tiny(MoCo, queue_size=7)
    x, _ = views()
    method.train().keys(x)
    method.eval()
    torch.testing.assert_close(method.keys(x)[:2], method.keys(x[:2]))


def test_unequal_groups_in_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    method = tiny(MoCo, queue_size=7, key_groups=4).train()
    monkeypatch.setattr("genssl.distributed.world_size", lambda: 2)
    with pytest.raises(UserError, match=r"6 images of each process make no 4 equal groups .* 8 divides"):
        method.keys(views()[0])


def test_no_gradient_reaches_the_key_network() -> None:
    method = tiny(MoCo, queue_size=7)
    method.loss(views(), {})["loss"].backward()
    assert gradient_names(method) == {n for n, _ in method.named_parameters() if not n.startswith("key_")}
    given = {id(p) for group in method.parameter_groups() for p in group["params"]}
    assert given == {id(p) for p in method.parameters() if p.requires_grad}


class Poisoned(MoCo):
    """Gives a loss that is not finite at one step."""

    calls = 0

    def loss(self, views: tuple[Tensor, ...], draws: dict[str, Tensor]) -> dict[str, Tensor]:
        self.calls += 1
        found = super().loss(views, draws)
        return found if self.calls != 4 else {"loss": found["loss"] * torch.nan}


def test_a_step_that_is_not_finite_leaves_queue_and_key_network_alone() -> None:
    config = settings(key_momentum=0.5)
    method = build(config)
    method.__class__ = Poisoned
    loop = training(config, method)
    steps = loop.steps()
    for _ in range(3):
        next(steps)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    next(steps), next(steps)
    assert loop.guard.first_bad_step() == 3
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def test_every_setting_reaches_the_method() -> None:
    method = build(settings(key_momentum=0.7, temperature=0.4, queue_size=5))
    assert isinstance(method, MoCo)
    assert (method.momentum, method.temperature, tuple(method.queue.shape)) == (0.7, 0.4, (5, 8))
    again, other = (build(settings(queue_size=5, seed=seed)).state_dict() for seed in (0, 1))
    assert torch.equal(method.queue, again["queue"])
    assert not torch.equal(method.queue, other["queue"])
