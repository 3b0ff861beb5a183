"""Nothing asks a device for float64 that has none, as Apple's mps: tried on a stand-in for one."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from genssl import runtime
from genssl.config import make
from genssl.data.split import Split
from genssl.eval.knn_eval import knn_eval
from genssl.figures import draw_confusion
from genssl.metrics import collapse, fidelity, knn, linalg, reconstruction, sharpness
from genssl.models import vlb
from genssl.models.build import build

SOURCE = Path(runtime.__file__).parent


class OnMPS(Tensor):
    """A tensor that says it is on mps, and refuses float64 as tensors there do; it computes on the CPU."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == Tensor.device.__get__:
            return torch.device("mps")
        if func == Tensor.cpu or (func == Tensor.to and "cpu" in map(str, args[1:])):
            with torch._C.DisableTorchFunctionSubclass():
                return args[0].as_subclass(Tensor)
        function: Any = super().__torch_function__  # untyped in torch
        result = function(func, types, args, kwargs or {})
        if isinstance(result, OnMPS) and result.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return result


class WithMPS(TorchFunctionMode):
    """Inside, tensors that are made on mps, or moved there, are stand-ins."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        devices = [
            str(value) for value in (*args[1:], kwargs.get("device")) if isinstance(value, torch.device | str)
        ]
        if not any(device.startswith("mps") for device in devices):
            return func(*args, **kwargs)
        if func == Tensor.to:
            return on_mps(args[0])
        return on_mps(func(*args, **{**kwargs, "device": "cpu"}))


def on_mps(x: Tensor) -> Tensor:
    return x.as_subclass(OnMPS)


@pytest.fixture(autouse=True)
def _with_mps() -> Iterator[None]:
    with WithMPS():
        yield


def test_the_stand_in() -> None:
    x = on_mps(torch.ones(3))
    assert x.device.type == "mps"
    assert type(x + 1) is OnMPS
    assert type(x.cpu()) is Tensor
    for wrong in (x.double, lambda: x.to(torch.float64), lambda: x.mean(0, dtype=torch.float64)):
        with pytest.raises(TypeError, match="float64"):
            wrong()
    assert torch.equal(runtime.to_float64(x), torch.ones(3, dtype=torch.float64))


X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
Y = X[:30] + 0.1
BYTES = (40 * X.reshape(20, 3, 2, 2).abs()).to(torch.uint8).repeat(1, 1, 3, 3)
METRICS: dict[str, Callable[[Callable[[Tensor], Tensor]], Any]] = {
    "frechet": lambda on: fidelity.frechet_distance(on(X), on(Y)),
    "frechet of few": lambda on: fidelity.frechet_distance(on(X[:4]), on(Y[:5])),
    "kernel": lambda on: fidelity.kernel_distance(on(X), on(Y), 3, 10)[0],
    "prdc": lambda on: fidelity.prdc(on(X), on(Y), 3),
    "authenticity": lambda on: fidelity.authenticity(on(X), on(Y)),
    "rankme": lambda on: collapse.rankme(on(X)),
    "sharpness": lambda on: sharpness.mean_sharpness(on(BYTES)),
    "diversity": lambda on: sharpness.diversity(on(X)),
    "components": lambda on: linalg.principal_components(on(X))[1].tolist(),
    "mse": lambda on: reconstruction.mean_squared_error(on(X), on(X + 1)).tolist(),
    "by class": lambda on: knn.class_accuracy(on(torch.eye(3).long())).tolist(),
    "decoder": lambda on: vlb.byte_log_probability(on(BYTES), on(BYTES / 128 - 1), 0.1).sum().item(),
}


@pytest.mark.parametrize("name", METRICS)
def test_metrics_are_those_of_the_cpu(name: str) -> None:
    here, there = METRICS[name](lambda x: x), METRICS[name](on_mps)
    assert there == pytest.approx(here, rel=1e-5)


def test_a_confusion_matrix_is_drawn() -> None:
    draw_confusion(on_mps(torch.eye(3).long()), "abc", "title")


def test_an_evaluation() -> None:
    method = build(make("simsiam", {"encoder": "small", "projector_dim": 8, "projector_hidden": 8})).eval()
    images = (torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 255).to(torch.uint8)
    labels = torch.arange(12) % 2
    split = Split(images, labels, ("a", "b"), "noise", "test", "")
    there = Split(on_mps(images), on_mps(labels), ("a", "b"), "noise", "test", "")
    options: dict[str, Any] = {"k": 3, "tick": lambda done, total: None, "baselines": False}
    assert (
        knn_eval(method, there, there, **options).values == knn_eval(method, split, split, **options).values
    )


def test_float64_is_made_in_one_place_or_on_the_cpu() -> None:
    elsewhere = [
        f"{path.name}: {line.strip()}"
        for path in SOURCE.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"\.double\(\)|\.to\(torch\.float64", line) and "cpu().double()" not in line
    ]
    allowed = (
        "runtime.py",
        "rng.py: point",
        "reconstruction.py: resampled",
        "reconstruction.py: return Crossing",
    )
    left = [line for line in elsewhere if not line.startswith(allowed)]
    assert left == []
