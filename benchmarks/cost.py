"""What an image costs in each method, counted on the CPU, and the bounds that published peaks put on a step.

`python -m benchmarks.cost` prints the tables of docs/scaling.md and writes docs/results/cost.json. Nothing
here is a measurement of time. Counts are taken at two batch sizes: their slope is the cost of an image, what
is left at no image the cost of a step.
"""

import json
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from benchmarks import bounds
from benchmarks.bounds import Cost
from benchmarks.table import versions
from genssl.config import SelfSupervisedConfig, make
from genssl.data.augment.views import choose_views
from genssl.data.split import Split
from genssl.models.build import build
from genssl.models.method import count_parameters
from genssl.runtime import autocast, generator
from genssl.settings import Config
from genssl.training.loop import Training

RESULTS = Path(__file__).parent.parent / "docs" / "results" / "cost.json"
FAMILY = ("simsiam", "byol", "barlow_twins", "vicreg", "dssl")
CASES: dict[str, tuple[str, dict[str, str]]] = {
    "vae": ("vae", {}),
    **{f"ddpm {size}": ("ddpm", {"network": size}) for size in ("tiny", "small", "base")},
    **{f"{name} resnet18": (name, {}) for name in FAMILY},
    **{f"{name} small": (name, {"encoder": "small"}) for name in FAMILY},
}
BATCHES = (4, 8)
WHAT = ("forward", "step", "kept", "random")  # of a pair of passes
FLOAT = 4  # bytes
UNDIVIDED = {"barlow_twins": 3, "vicreg": 6}  # products of D x D x batch in a step: forward and two backward
TRAIN_IMAGES = {"svhn": 73_257, "cifar10": 50_000}
NO_KERNEL = ("empty", "new_empty", "detach", "_unsafe_view", "lift_fresh")


def attention(query: torch.Size, key: torch.Size, *_args: Any, **_kwargs: Any) -> int:
    """Operations of attention with (B, heads, Q, D) queries and (B, heads, K, D) keys and values."""
    # two products: queries by keys, weights by values
    return 2 * 2 * math.prod(query) * key[2]


def attention_backward(
    _grad: torch.Size, query: torch.Size, key: torch.Size, *_args: Any, **_kwargs: Any
) -> int:
    """Operations of its backward pass."""
    # five products: the weights again, and the gradients of weights, values, queries and keys
    return 5 * 2 * math.prod(query) * key[2]


# torch before 2.15 has no formula for the CPU's attention and counts it as nothing.
FORMULAS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
}


def flop_counter() -> FlopCounterMode:
    """Torch's counter of operations, which counts attention alike in every version."""
    return FlopCounterMode(display=False, custom_mapping=FORMULAS)


class Operators(TorchDispatchMode):
    """Counts operators that compute, and the bytes of what they read and write."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # of torch
        self.count, self.products, self.bytes = 0, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and not func.overloadpacket.__name__.startswith(NO_KERNEL):
            self.count += 1
            self.products += func.overloadpacket in flop_registry or func.overloadpacket in FORMULAS
            self.bytes += sum(map(size, tensors((args, kwargs, out))))
        return out


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def size(tensor: Tensor) -> int:
    """Bytes; an expanded tensor's are those of what it was expanded from."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def training_of(method: str, settings: dict[str, str], batch: int, precision: str = "bf16") -> Training:
    """A run's training on as many random images as a batch has."""
    config = make(method, {**settings, "batch_size": batch, "precision": precision})
    images = torch.randint(256, (batch, 3, 32, 32), dtype=torch.uint8, generator=generator(0, "cost"))
    split = Split(images, torch.zeros(batch, dtype=torch.int64), ("none",), "noise", "train", "none")
    return Training(build(config), choose_views(config), split, config)


def forward(training: Training) -> tuple[Tensor, int]:
    """The loss of a batch, and the bytes of everything random in it."""
    n, source = len(training.split), generator(0, "cost")
    draws = training.views.draws(n, source), training.method.draws(n, source)
    with autocast(training.device, training.precision):
        loss: Tensor = training.objective(training.split.images, *draws)["loss"]
    return loss, sum(t.numel() * t.element_size() for t in tensors(draws))


@contextmanager
def keeping(known: Sequence[Tensor]) -> Iterator[dict[int, Tensor]]:
    """The storages that are kept for the backward pass, by address, without those of `known`."""
    kept: dict[int, Tensor] = {}
    old = {tensor.untyped_storage().data_ptr() for tensor in known}

    def pack(tensor: Tensor) -> Tensor:
        if (address := tensor.untyped_storage().data_ptr()) not in old:
            kept[address] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def passes(training: Training) -> dict[str, int]:
    """Multiply-adds of the forward pass and of both passes, kept and random bytes: of a whole batch."""
    training.method.train()
    with flop_counter() as flops:
        with keeping([*training.method.parameters(), *training.method.buffers()]) as kept:
            loss, random = forward(training)
        ahead = flops.get_total_flops()
        loss.backward()
    stored = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    return {"forward": ahead // 2, "step": flops.get_total_flops() // 2, "kept": stored, "random": random}


def step(training: Training) -> Operators:
    """The operators of a step that is not the first."""
    steps = training.steps()
    next(steps)
    operators = Operators()
    with operators:
        next(steps)
    return operators


def norms(training: Training) -> tuple[tuple[int, int], int]:
    """Calls of batch norms in a step, and what SyncBatchNorm would send for them.

    Forward a mean and a deviation a channel and a count, backward two sums a channel, all float32.
    """
    calls: list[tuple[int, bool]] = []
    for module in training.method.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.register_forward_hook(lambda m, _, out: calls.append((m.num_features, out.requires_grad)))
    forward(training)
    floats = sum(2 * width + 1 + 2 * width * back for width, back in calls)
    return (len(calls), sum(back for _, back in calls)), FLOAT * floats


def slope(low: int, high: int) -> tuple[int, int]:
    """(of an image, of a step) of what grows linearly with the batch, from its values at BATCHES."""
    each = round((high - low) / (BATCHES[1] - BATCHES[0]))
    return each, max(0, low - each * BATCHES[0])


def count(name: str) -> Cost:
    """Everything of a case."""
    method, settings = CASES[name]
    config = make(method, settings)
    keys = [(precision, batch) for precision in ("bf16", "fp32") for batch in BATCHES]
    found = {(p, b): passes(training_of(method, settings, b, p)) for p, b in keys}
    runs = {(p, b): training_of(method, settings, b, p) for p, b in keys}
    steps = {key: step(training) for key, training in runs.items()}
    of_image = {(p, what): slope(*(found[p, b][what] for b in BATCHES))[0] for p, _ in keys for what in WHAT}
    moved = {p: slope(*(steps[p, b].bytes for b in BATCHES)) for p, _ in keys}
    smallest, width = runs["bf16", BATCHES[0]], gathered_width(config)
    calls, norm_bytes = norms(smallest)
    return Cost(
        name=name,
        batch=config.batch_size,
        run_images=config.epochs * TRAIN_IMAGES[config.data],
        parameters=count_parameters(smallest.method)[0],
        forward=of_image["bf16", "forward"],
        step=of_image["bf16", "step"],
        undivided=UNDIVIDED.get(method, 0) * width**2,
        state_bytes=sum(map(size, state(smallest))),
        gradient_bytes=sum(size(p) for p in smallest.method.parameters() if p.requires_grad),
        kept_bytes={p: of_image[p, "kept"] for p in moved},
        traffic_bytes={p: image for p, (image, _) in moved.items()},
        step_traffic_bytes={p: besides for p, (_, besides) in moved.items()},
        operators=steps["bf16", BATCHES[0]].count,
        products=steps["bf16", BATCHES[0]].products,
        norm_calls=calls,
        norm_bytes=norm_bytes,
        feature_bytes=2 * width * FLOAT,
        random_bytes=of_image["bf16", "random"],
    )


def gathered_width(config: Config) -> int:
    """Of the features that every process needs from all others; 0 where a loss looks at one image."""
    if isinstance(config, SelfSupervisedConfig) and config.method in UNDIVIDED:
        return config.projector_dim
    return 0


def state(training: Training) -> list[Tensor]:
    """Weights, gradients, the optimizer's moments, the average, and the guard's copies."""
    weights = list(training.method.parameters())
    averages = [] if training.ema is None else list(training.ema.parameters())
    moments = tensors(training.optimizer.state_dict()["state"])
    return [*weights, *(p for p in weights if p.requires_grad), *moments, *averages, *training.guard.copies]


def main() -> None:
    warnings.simplefilter("ignore")
    costs = [count(name) for name in CASES]
    for title, text in bounds.tables(costs).items():
        print(f"{title}\n\n{text}")
    found = {
        "command": "python -m benchmarks.cost",
        "versions": versions("torch"),
        "what": "counts on the CPU, nothing is timed; batches 4 and 8",
        "cases": [asdict(cost) for cost in costs],
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
