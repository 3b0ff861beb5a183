"""A CUDA device without a GPU: tensors on it have shapes and no values, tensors on the CPU are real.

Operators between devices fail as they would on a GPU, and every place where the host waits for a value is
noted, also for how many entries there are (`nonzero`, `unique`, a mask as an index). What a host reads there
is made up, so that whatever follows can be carried out.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
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
INDEX = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)
# Their sizes depend on values, for which the host waits: as many as can be, or one
SIZED_BY_VALUES: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.nonzero.default: lambda x: x.new_zeros(1, x.ndim, dtype=torch.int64),
    torch.ops.aten.bincount.default: lambda x, _=None, n=0: x.new_zeros(max(n, 2), dtype=torch.int64),
    torch.ops.aten._unique2.default: lambda x, *_, **__: tuple(x.new_zeros(x.shape) for _ in range(3)),
}


class Generator(torch.Generator):
    """A generator of any device; that of a GPU needs one."""

    place: torch.device

    def __new__(cls, device: Any = "cpu") -> "Generator":
        make: Any = super().__new__  # which takes a device, and is object's to mypy
        made: Generator = make(cls, "cpu")
        made.place = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]  # an attribute in torch's stubs alone
        return CUDA if self.place.type == "cuda" else self.place


class HostReads(TorchDispatchMode):
    """Notes where the host reads from the device, and how many bytes of images it sends there.

    Attributes:
        places: of the reads, e.g. "models/vae.py: VAE.sample_prior".
        sent: bytes of images in each copy to the device.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # of torch
        self.places: list[str] = []
        self.sent: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        fakes = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, FakeTensor)]
        if func in READS_A_NUMBER and fakes:
            self.places.append(place())
            return number(fakes[0])
        if func in SIZED_BY_VALUES and fakes:
            self.places.append(place())
            return SIZED_BY_VALUES[func](*args, **kwargs)
        if func in INDEX and any(is_mask(index) for index in args[1]):
            self.places.append(place())
            args = (args[0], list(without_masks(args[1])), *args[2:])
        if func in COPIES and not fakes and goes_to_the_device(kwargs) and args[0].dtype == torch.uint8:
            self.sent.append(args[0].numel())
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


def is_mask(index: Tensor | None) -> bool:
    return isinstance(index, FakeTensor) and index.dtype == torch.bool


def without_masks(indices: Any) -> Iterator[Tensor | None]:
    """The indices with the rows and columns of one entry in the place of each mask."""
    for index in indices:
        if is_mask(index):
            yield from index.new_zeros(index.ndim, 1, dtype=torch.int64).unbind()
        else:
            yield index


def made_up(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Real values in the place of those of a device: noise, zeros and ones in turn, or true."""
    dtype, shape = dtype or tensor.dtype, tuple(tensor.shape)
    if dtype.is_floating_point:
        return REAL_RAND(shape, dtype=dtype)
    if dtype == torch.bool:
        return torch.ones(shape, dtype=dtype)
    return (torch.arange(tensor.numel()) % 2).to(dtype).view(shape)


def number(tensor: Tensor) -> bool | int | float:
    if tensor.dtype == torch.bool:
        return True
    return 1.0 if tensor.dtype.is_floating_point else 1


def place() -> str:
    """The innermost function of the package that is being carried out, with what is defined in it."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(SOURCES):
            name = frame.f_code.co_qualname.split(".<locals>")[0]
            return f"{file.relative_to(SOURCES).as_posix()}: {name}"
        frame = frame.f_back
    return "outside"


REAL_RAND, REAL_RANDN, REAL_INFERENCE_MODE = torch.rand, torch.randn, torch.inference_mode
REAL_APPLY: Any = torch.nn.Module._apply


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


def _tolist(tensor: Tensor) -> Any:
    return tensor.cpu().tolist()


def _apply(module: torch.nn.Module, change: Any, recurse: bool = True) -> torch.nn.Module:
    """A module that is on the device already stays as it is: torch cannot replace such parameters."""
    parameters = list(module.parameters())
    if parameters and all(isinstance(parameter, FakeTensor) for parameter in parameters):
        return module
    applied: torch.nn.Module = REAL_APPLY(module, change, recurse)
    return applied


@contextmanager
def fake_cuda() -> Iterator[HostReads]:
    """The device `CUDA`, as far as the tests of this module's users need it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "Generator", Generator)
        patch.setattr(torch, "rand", _drawing(REAL_RAND))
        patch.setattr(torch, "randn", _drawing(REAL_RANDN))
        # In inference mode, modes see composite operators and not the copies in them
        patch.setattr(torch, "inference_mode", _inference_mode)
        patch.setattr(FakeTensor, "tolist", _tolist)
        patch.setattr(torch.nn.Module, "_apply", _apply)
        patch.setattr(Tensor, "backward", _backward)
        patch.setattr(torch.autograd, "grad", _gradients)
        with FakeTensorMode(allow_non_fake_inputs=True), HostReads() as reads:
            yield reads
