"""SimCLR as a method: its loss of its outputs, a gradient through both views, and its settings."""

import torch

from genssl.config import SimCLRConfig
from genssl.models.build import build
from genssl.models.losses import nt_xent_loss
from genssl.models.simclr import SimCLR

from .siamese_data import gradient_names, linear, tiny, views


def test_the_loss_is_that_of_the_outputs() -> None:
    method = tiny(SimCLR, temperature=0.3).eval()
    x1, x2 = views()
    expected = nt_xent_loss(method.outputs(x1), method.outputs(x2), 0.3)
    torch.testing.assert_close(method.loss((x1, x2), {}), {"loss": expected})


def test_the_order_of_the_images_does_not_matter() -> None:
    method = tiny(SimCLR)
    x1, x2 = views()
    rows = torch.tensor([3, 0, 5, 1, 4, 2])
    expected, found = method.loss((x1, x2), {}), method.loss((x1[rows], x2[rows]), {})
    torch.testing.assert_close(found, expected)


def test_gradients_go_through_both_views_and_reach_every_parameter() -> None:
    method = linear(SimCLR)
    x1, x2 = (x.requires_grad_() for x in views())
    method.loss((x1, x2), {})["loss"].backward()
    assert x1.grad is not None
    assert x2.grad is not None
    assert x1.grad.any()
    assert x2.grad.any()
    method = tiny(SimCLR)
    method.loss(views(), {})["loss"].backward()
    assert gradient_names(method) == {name for name, _ in method.named_parameters()}


def test_a_run_that_is_mostly_warm_up_says_so() -> None:
    with torch.device("meta"):
        assert build(SimCLRConfig(epochs=20)).remarks() == ()
        (remark,) = build(SimCLRConfig(epochs=8)).remarks()
    assert remark.startswith("the learning rate rises during 8 of 8 epochs; --set warmup_epochs=N")


def test_every_setting_reaches_the_method() -> None:
    with torch.device("meta"):
        method = build(SimCLRConfig(temperature=0.2))
    assert isinstance(method, SimCLR)
    assert method.temperature == 0.2
    sizes = [tuple(p.shape) for p in method.projector.parameters() if p.ndim == 2]
    assert sizes == [(2048, 512), (128, 2048)]
