"""Classes of generated images: how a network is conditioned on them, and classifier-free guidance."""

from collections.abc import Callable

import torch
from torch import Tensor

from genssl.models.diffusion import Predictor
from genssl.models.unet import Dropout, UNet
from genssl.runtime import Randomness, uniform

GUIDANCE = 0.5  # w, where none is asked for
LABEL_DROPOUT = 0.1  # share of images that are shown without their class (Ho & Salimans 2022, section 4)

# A `Predictor` that also takes the class of each image, (B,) int64, or None, and in training the dropout of
# the step
ConditionalModel = Callable[..., Tensor]


def shows_class(n: int, generator: Randomness) -> Tensor:
    """Which of `n` images are shown with their class, (n,) bool: all but LABEL_DROPOUT of them.

    Examples:
        >>> share = shows_class(1000, torch.Generator().manual_seed(0)).float().mean()
        >>> round(float(share), 1)
        0.9
    """
    return uniform((n,), generator) >= LABEL_DROPOUT


def shown_labels(classes: int, draws: dict[str, Tensor]) -> Tensor:
    """The labels of a training step, (B,) int64; `classes`, no class, for images that do not show theirs.

    Examples:
        >>> shown_labels(10, {"labels": torch.tensor([3, 4]), "shows_class": torch.tensor([True, False])})
        tensor([ 3, 10])
    """
    return torch.where(draws["shows_class"], draws["labels"], classes)


def training_model(
    model: ConditionalModel, classes: int, draws: dict[str, Tensor], dropout: Dropout | None = None
) -> Predictor:
    """The model of a training step: given the class of each image that shows it, and none for the others.

    Args:
        model: (x (B, ...), t (B,), labels (B,) or None) -> prediction (B, ...); with dropout as a fourth
            argument, if there is one.
        classes: their number, or 0; the label `classes` stands for no class.
        draws: "labels" (B,) int64 and "shows_class" (B,) bool, where there are classes.
        dropout: of this step.

    Examples:
        >>> draws = {"labels": torch.tensor([3, 4]), "shows_class": torch.tensor([True, False])}
        >>> model = training_model(lambda x, t, labels: labels, 10, draws)
        >>> model(torch.zeros(2, 8), torch.zeros(2))
        tensor([ 3, 10])
    """
    if not classes and dropout is None:
        return model
    labels = shown_labels(classes, draws) if classes else None
    if dropout is None:
        return lambda x, t: model(x, t, labels)
    return lambda x, t: model(x, t, labels, dropout)


def dropout_draws(network: UNet, p: float, n: int, side: int, generator: Randomness) -> dict[str, Tensor]:
    """The mask of `Dropout` for `n` images of `side` pixels, (n, size) bool; nothing where p is 0.

    Examples:
        >>> from genssl.models.unet import Layout
        >>> network = UNet(Layout((16, 32), (1, 1), (False, False)))
        >>> dropout_draws(network, 0.1, n=2, side=8, generator=torch.Generator())["dropout_mask"].shape
        torch.Size([2, 4096])
    """
    return {"dropout_mask": uniform((n, network.dropout_size(side)), generator) >= p} if p > 0 else {}


def random_labels(n: int, classes: int, generator: Randomness, device: torch.device) -> Tensor:
    """Classes drawn uniformly, (n,) int64.

    Examples:
        >>> labels = random_labels(100, 10, torch.Generator().manual_seed(0), torch.device("cpu"))
        >>> labels.shape, bool(((labels >= 0) & (labels < 10)).all())
        (torch.Size([100]), True)
    """
    return (uniform((n,), generator, device) * classes).long().clamp(max=classes - 1)


def check_labels(labels: Tensor, classes: int) -> None:
    """Check the classes to generate, (B,) int64; a ValueError where there are none, or not these.

    Examples:
        >>> check_labels(torch.tensor([3, 10]), classes=10)
        Traceback (most recent call last):
            ...
        ValueError: a class must be from 0 to 9
    """
    if not classes:
        raise ValueError("it was trained without classes; --set conditional=true trains with them")
    if bool(((labels < 0) | (labels >= classes)).any()):
        raise ValueError(f"a class must be from 0 to {classes - 1}")


def conditional_model(
    model: ConditionalModel,
    classes: int,
    labels: Tensor | None = None,
    w: float | None = None,
    device: torch.device | None = None,
) -> Predictor:
    """A network as a model of images of these classes, guided towards them.

    Args:
        model: as for `training_model`.
        classes: their number.
        labels: the class of each image, (B,) int64, best on the host, which checks them; None: no class.
        w: guidance, see `guided`; 0 when None.
        device: of the network; that of the labels when None.

    Raises:
        ValueError: the network has no classes, or not this one, or guidance is without a class.

    Examples:
        >>> model = conditional_model(lambda x, t, labels: labels, 10, torch.tensor([3, 4]))
        >>> model(torch.zeros(2, 8), torch.zeros(2))
        tensor([3, 4])
    """
    if labels is None:
        if w is not None:
            raise ValueError("guidance needs a class, and there is none")
        return model
    check_labels(labels, classes)
    return guided(model, labels.to(device), classes, w or 0.0)


def guided(model: ConditionalModel, labels: Tensor, null: int, w: float) -> Predictor:
    """A conditional network as a model of its classes, by classifier-free guidance (Ho & Salimans 2022).

    (1 + w) f(x, class) - w f(x, none), equation 6: w = 0 is the conditional model, w = -1 the unconditional
    one. It is linear in f, so that f may be epsilon, v, x_0 or a velocity. Both are one batch of 2 B.

    Args:
        model: (x (B, ...), t (B,), labels (B,)) -> prediction (B, ...).
        labels: the class of each image, (B,) int64.
        null: the label that stands for no class.
        w: guidance.

    Examples:
        >>> network = lambda x, t, labels: torch.where(labels == 10, 1.0, 3.0)  # 10: no class
        >>> x, t, labels = torch.zeros(1), torch.zeros(1), torch.tensor([4])
        >>> [guided(network, labels, null=10, w=w)(x, t).item() for w in (-1, 0, 1)]
        [1.0, 3.0, 5.0]
    """
    if w == 0:
        return lambda x, t: model(x, t, labels)
    nulls = torch.full_like(labels, null)
    if w == -1:
        return lambda x, t: model(x, t, nulls)
    both = torch.cat([labels, nulls])

    def predict(x: Tensor, t: Tensor) -> Tensor:
        conditional, unconditional = model(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        return (1 + w) * conditional - w * unconditional

    return predict
