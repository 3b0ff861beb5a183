"""A CUDA device without a GPU: tensors on it have shapes and no values, tensors on the CPU are real.

Operators between devices fail as they would on a GPU, and every place where the host waits for a value is
noted. What a host reads there is made up, so that whatever follows can be carried out.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)
SOURCES = Path(__file__).parent.parent / "genssl"
READS_A_NUMBER = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class Generator(torch.Generator):
    """A generator of any device; that of a GPU needs one."""

    def __new__(cls, device: Any = "cpu") -> "Generator":
        made = super().__new__(cls, "cpu")
        made.place = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:
        return CUDA if self.place.type == "cuda" else self.place


class HostReads(TorchDispatchMode):
    """Notes where the host reads from the device: "models/vae.py: sample_prior"."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.places: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        fakes = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, FakeTensor)]
        if func in READS_A_NUMBER and fakes:
            self.places.append(place())
            return number(fakes[0])
        if func in COPIES and fakes and leaves_the_device(func, args, kwargs):
            self.places.append(place())
            source = fakes[0]
            with unset_fake_temporarily():
                values = made_up(source, kwargs.get("dtype"))
                return args[0].copy_(values) if func is COPIES[1] else values
        if fakes or goes_to_the_device(kwargs):
            return func(*args, **kwargs)
        with unset_fake_temporarily():
            return func(*args, **kwargs)


def leaves_the_device(func: Any, args: Any, kwargs: Any) -> bool:
    if func is COPIES[1]:
        return not isinstance(args[0], FakeTensor)
    return kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cpu"


def goes_to_the_device(kwargs: Any) -> bool:
    return kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda"


def made_up(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Real values in the place of those of a device: noise, zeros, or true."""
    dtype = dtype or tensor.dtype
    if dtype.is_floating_point:
        return REAL_RAND(tuple(tensor.shape), dtype=dtype)
    return torch.full(tuple(tensor.shape), dtype == torch.bool, dtype=dtype)


def number(tensor: Tensor) -> bool | int | float:
    if tensor.dtype == torch.bool:
        return True
    return 1.0 if tensor.dtype.is_floating_point else 1


def place() -> str:
    """The innermost function of the package that is being carried out."""
    frame = sys._getframe()
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(SOURCES):
            return f"{file.relative_to(SOURCES).as_posix()}: {frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "outside"


REAL_RAND, REAL_RANDN, REAL_INFERENCE_MODE = torch.rand, torch.randn, torch.inference_mode


def _inference_mode(mode: bool = True) -> Any:
    return torch.no_grad() if mode else REAL_INFERENCE_MODE(False)


def _drawing(draw: Any) -> Any:
    """Draws for a generator of the device without one."""

    def drawn(*shape: Any, generator: Any = None, **options: Any) -> Tensor:
        if generator is not None and generator.device == CUDA:
            # A generator and a device that differ are refused by torch
            assert torch.device(options.get("device") or "cpu").type == "cuda"
            generator = None
        result: Tensor = draw(*shape, generator=generator, **options)
        return result

    return drawn


def _backward(loss: Tensor) -> None:
    """Gradients of every parameter that the loss depends on: torch's engine asks for a driver."""
    nodes, seen = [loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            node.variable.grad = torch.zeros_like(node.variable)
        nodes += [following for following, _ in node.next_functions]


def _gradients(_outputs: Any, inputs: Any, *_args: Any, **_options: Any) -> tuple[Tensor, ...]:
    inputs = (inputs,) if isinstance(inputs, Tensor) else inputs
    return tuple(torch.zeros_like(tensor) for tensor in inputs)


@contextmanager
def fake_cuda() -> Iterator[HostReads]:
    """The device `CUDA`, as far as the tests of this module's users need it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "Generator", Generator)
        patch.setattr(torch, "rand", _drawing(REAL_RAND))
        patch.setattr(torch, "randn", _drawing(REAL_RANDN))
        # In inference mode, modes see composite operators and not the copies in them
        patch.setattr(torch, "inference_mode", _inference_mode)
        patch.setattr(Tensor, "backward", _backward)
        patch.setattr(torch.autograd, "grad", _gradients)
        with FakeTensorMode(allow_non_fake_inputs=True), HostReads() as reads:
            yield reads
