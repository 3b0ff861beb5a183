"""The losses of the encoders, written out. Features are (B, D); all is computed in float32 or wider."""

import torch
import torch.nn.functional as F
from torch import Tensor

NORM_EPSILON = 1e-5  # in Barlow Twins' standardization, as in a batch norm
UNIT_EPSILON = 1e-8  # least length a cosine divides by, as torch's: the slope at a row of zeros is bounded
STD_EPSILON = 1e-4  # in VICReg's standard deviation (Bardes et al. 2022, equation 1 and appendix)


def cosine_similarity(a: Tensor, b: Tensor) -> Tensor:
    """The cosine of the angle between the rows of a and b, both (B, D): (B,), in [-1, 1].

    Examples:
        >>> cosine_similarity(torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]]))
        tensor([0.9600])
    """
    with _float32(a):
        return (unit(a) * unit(b)).sum(1)


def simsiam_loss(*, p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
    """L = D(p1, z2) / 2 + D(p2, z1) / 2 with D the negative cosine (Chen and He 2021, equations 1 to 4).

    Whether gradients reach z1 and z2 is the caller's choice. BYOL's loss (Grill et al. 2020, equation 2,
    symmetrized) is 4 + 4 L.

    Returns:
        A scalar in [-1, 1].

    Examples:
        >>> z = torch.eye(2)
        >>> simsiam_loss(p1=z, p2=z, z1=z, z2=z), simsiam_loss(p1=z, p2=z, z1=-z, z2=-z)
        (tensor(-1.), tensor(1.))
    """
    return -(cosine_similarity(p1, z2).mean() + cosine_similarity(p2, z1).mean()) / 2


def directional_loss(
    *,
    p1: Tensor,
    p2: Tensor,
    z1: Tensor,
    z2: Tensor,
    heavy_p1: Tensor,
    heavy_p2: Tensor,
    heavy_z1: Tensor,
    heavy_z2: Tensor,
    beta: float = 0.1,
) -> dict[str, Tensor]:
    """DSSL's loss on top of SimSiam (Bai et al. 2021): a heavy view follows the standard view it was made of.

    L = D(p1, z2) / 2 + D(p2, z1) / 2
      + (1 - beta) / 2 [D(heavy_p1, z1) + D(heavy_p2, z2)] + beta / 2 [D(p1, heavy_z1) + D(p2, heavy_z2)]

    Two heavy views are never compared: what they share may be too little.

    Returns:
        "loss" and its "symmetric" and "directional" parts, scalars.

    Examples:
        >>> names = [f"{views}{output}{i}" for views in ("", "heavy_") for output in "pz" for i in (1, 2)]
        >>> directional_loss(**dict.fromkeys(names, torch.eye(2)))["loss"]
        tensor(-2.)
    """

    def distance(p: Tensor, z: Tensor) -> Tensor:
        return -cosine_similarity(p, z).mean()

    symmetric = simsiam_loss(p1=p1, p2=p2, z1=z1, z2=z2)
    heavy_follow = (distance(heavy_p1, z1) + distance(heavy_p2, z2)) / 2
    standard_follow = (distance(p1, heavy_z1) + distance(p2, heavy_z2)) / 2
    directional = (1 - beta) * heavy_follow + beta * standard_follow
    return {"loss": symmetric + directional, "symmetric": symmetric, "directional": directional}


def barlow_twins_loss(z1: Tensor, z2: Tensor, lambd: float = 5e-3) -> Tensor:
    """Redundancy reduction (Zbontar et al. 2021, equations 1 and 2).

    C = the correlations (D, D) between the outputs for the two views over the batch; the diagonal is to be
    1, everything else 0: sum_i (1 - C_ii)^2 + lambd sum_i sum_{j != i} C_ij^2.

    Args:
        z1: (B, D), the first views' outputs.
        z2: (B, D), the second views'.
        lambd: weight of the second sum.

    Examples:
        >>> one, other = torch.tensor([1.0, 1.0, -1.0, -1.0]), torch.tensor([1.0, -1.0, 1.0, -1.0])
        >>> independent, redundant = torch.stack([one, other], 1), torch.stack([one, one], 1)
        >>> [round(float(barlow_twins_loss(z, z)), 3) for z in (independent, redundant)]
        [0.0, 0.01]
    """
    with _float32(z1):
        # Equation 2: the cross-correlation of the two views, (D, D), over the batch
        correlation = _standardized(z1).T @ _standardized(z2) / len(z1)
        diagonal = correlation.diagonal()
        invariance = (1 - diagonal).square().sum()
        redundancy = correlation.square().sum() - diagonal.square().sum()
        return invariance + lambd * redundancy


def vicreg_loss(
    z1: Tensor, z2: Tensor, sim: float = 25.0, var: float = 25.0, cov: float = 1.0
) -> dict[str, Tensor]:
    """Variance, invariance, covariance (Bardes et al. 2022, equations 1 to 6).

    The two branches' variance terms are averaged, as in the authors' code; their covariance terms are
    summed, as in the paper and that code.

    Args:
        z1: (B, D), the first views' outputs.
        z2: (B, D), the second views'.
        sim: weight of the mean squared distance between the views.
        var: weight of the hinge that keeps each output's standard deviation above 1.
        cov: weight of the squared covariances between different outputs.

    Returns:
        "loss" and the terms "invariance", "variance" and "covariance" before weighting, scalars.

    Examples:
        >>> collapsed = vicreg_loss(torch.zeros(8, 4), torch.zeros(8, 4))
        >>> {name: round(float(value), 2) for name, value in collapsed.items()}
        {'loss': 24.75, 'invariance': 0.0, 'variance': 0.99, 'covariance': 0.0}
    """
    with _float32(z1):
        z1, z2 = _wide(z1), _wide(z2)
        # Equation 5 as in the authors' code: the mean over outputs too, where the paper has their sum
        invariance = (z1 - z2).square().mean()
        variance = (_variance_hinge(z1) + _variance_hinge(z2)) / 2
        covariance = _squared_covariance(z1) + _squared_covariance(z2)
        loss = sim * invariance + var * variance + cov * covariance
    return {"loss": loss, "invariance": invariance, "variance": variance, "covariance": covariance}


def nt_xent_loss(z1: Tensor, z2: Tensor, temperature: float = 0.5) -> Tensor:
    """Normalized temperature-scaled cross entropy (Chen et al. 2020, equation 1).

    Of the 2 N outputs, each is to find the other view of its image among the 2 N - 1 others, by cosine:
    l_i = -log(exp(s_ij / t) / sum_{k != i} exp(s_ik / t)), with j the other view; the mean over all i.

    Args:
        z1: (N, D), the first views' outputs.
        z2: (N, D), the second views'.
        temperature: t.

    Returns:
        A scalar, in nats.

    Examples:
        >>> z = torch.eye(2)  # the views of an image agree, and images differ
        >>> round(float(nt_xent_loss(z, z)), 3), round(float(nt_xent_loss(z, z.flip(0))), 3)
        (0.24, 2.24)
    """
    with _float32(z1):
        z = unit(torch.cat([z1, z2]))
        logits = z @ z.T / temperature  # (2 N, 2 N)
        # The cosine of an output with itself, which is always 1, is no candidate
        logits.fill_diagonal_(-torch.inf)
        positives = (z * z.roll(len(z1), 0)).sum(1) / temperature
        return (logits.logsumexp(1) - positives).mean()


def info_nce_loss(queries: Tensor, keys: Tensor, negatives: Tensor, temperature: float = 0.1) -> Tensor:
    """InfoNCE with negatives that are given (He et al. 2020, equation 1).

    Each query is to find its key among K others, by cosine: the mean over the rows of
    -log(exp(q k+ / t) / (exp(q k+ / t) + sum_K exp(q k- / t))).

    Args:
        queries: (B, D).
        keys: (B, D), each row the positive of the query in this row.
        negatives: (K, D), the same for all queries.
        temperature: t.

    Returns:
        A scalar, in nats.

    Examples:
        >>> queries, negatives = torch.eye(4)[:2], torch.eye(4)[2:]
        >>> round(float(info_nce_loss(queries, queries, negatives, temperature=1.0)), 3)  # log(1 + 2 / e)
        0.551
    """
    with _float32(queries):
        q = unit(queries)
        positives = (q * unit(keys)).sum(1, keepdim=True)  # (B, 1)
        logits = torch.cat([positives, q @ unit(negatives).T], 1) / temperature  # (B, 1 + K)
        return (logits.logsumexp(1) - logits[:, 0]).mean()


def _variance_hinge(z: Tensor) -> Tensor:
    # Of the standard deviation, not the variance: its gradient does not vanish at collapse (section 4.1)
    return F.relu(1 - (z.var(0) + STD_EPSILON).sqrt()).mean()


def _squared_covariance(z: Tensor) -> Tensor:
    """The sum of the squared covariances of different columns, over the number of columns."""
    centered = z - z.mean(0)
    covariance = centered.T @ centered / (len(z) - 1)  # (D, D)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / z.shape[1]


def _standardized(z: Tensor) -> Tensor:
    """Zero mean and unit (population) variance of each column over the batch."""
    centered = _wide(z) - _wide(z).mean(0)
    return centered * (centered.square().mean(0) + NORM_EPSILON).rsqrt()


def unit(z: Tensor) -> Tensor:
    """The rows of z (B, D) with length 1, in float32 or wider.

    Examples:
        >>> unit(torch.tensor([[3.0, 4.0]]))
        tensor([[0.6000, 0.8000]])
    """
    return F.normalize(_wide(z), dim=1, eps=UNIT_EPSILON)


def _wide(z: Tensor) -> Tensor:
    return z.to(torch.promote_types(z.dtype, torch.float32))


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """-sum_k q_k log p_k, with p the softmax of the logits: (B,) nats.

    The target q is the label, of which the share `smoothing` is spread evenly over all classes (Szegedy et
    al. 2016, section 7): q_k = (1 - smoothing) [k = label] + smoothing / K.

    Args:
        logits: (B, K).
        labels: (B,) int64, in [0, K).
        smoothing: in [0, 1).

    Examples:
        >>> cross_entropy(torch.zeros(1, 4), torch.tensor([2]))  # log 4
        tensor([1.3863])
    """
    with _float32(logits):
        logits = _wide(logits)
        # log p_k = logit_k - log sum_j exp(logit_j). The largest logit is taken out of the sum, so that no
        # exponential overflows; what is taken out counts as a constant, and the gradient stays the same
        largest = logits.detach().amax(1, keepdim=True)
        log_p = logits - largest - (logits - largest).exp().sum(1, keepdim=True).log()
        right = log_p.gather(1, labels[:, None])[:, 0]
        return -(1 - smoothing) * right - smoothing * log_p.mean(1)


def _float32(z: Tensor) -> torch.autocast:
    """Full precision, whatever autocast surrounds the loss: sums over thousands of outputs need it."""
    return torch.autocast(z.device.type, enabled=False)
