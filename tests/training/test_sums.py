"""The means of an epoch's losses, and its speed."""

import time

import torch

from genssl.training.loop import LossMeter
from genssl.training.signals import Clock

YES, NO = torch.tensor(True), torch.tensor(False)


def test_means_are_over_the_images_of_all_steps() -> None:
    sums = LossMeter()
    sums.add({"loss": torch.tensor(2.0), "kl": torch.tensor(1.0)}, 8, YES)
    sums.add({"loss": torch.tensor(5.0), "kl": torch.tensor(4.0)}, 4, YES)
    assert sums.means() == {"loss": 3.0, "kl": 2.0}  # (2 * 8 + 5 * 4) / 12
    sums.reset()
    sums.add({"loss": torch.tensor(7.0)}, 8, YES)
    assert sums.means() == {"loss": 7.0}


def test_a_step_that_was_kept_out_adds_no_loss() -> None:
    sums = LossMeter()
    sums.add({"loss": torch.tensor(2.0)}, 8, YES)
    sums.add({"loss": torch.tensor(float("nan"))}, 8, NO)
    assert sums.images == 16  # the run takes those off that came after the first bad step
    sums.images -= 8
    assert sums.means() == {"loss": 2.0}


def test_an_epoch_continues_from_its_middle() -> None:
    whole, begun, continued = LossMeter(), LossMeter(), LossMeter()
    for value in (2.0, 5.0):
        whole.add({"loss": torch.tensor(value)}, 8, YES)
    begun.add({"loss": torch.tensor(2.0)}, 8, YES)
    tensors, texts = begun.state()
    continued.restore({**tensors, "method.weight": torch.ones(3)}, texts, torch.device("cpu"))
    continued.add({"loss": torch.tensor(5.0)}, 8, YES)
    assert continued.means() == whole.means() == {"loss": 3.5}
    assert continued.totals.keys() == {"loss"}


def test_the_speed_of_an_epoch_that_ends_with_the_warm_steps_is_measured() -> None:
    clock = Clock()
    time.sleep(0.01)
    clock.add_step(10)
    clock.restart_window()
    assert 0 < clock.images_per_second() <= 1_000
