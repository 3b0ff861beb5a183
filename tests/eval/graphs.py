"""TensorFlow's graph of the FID network with random weights, written byte by byte."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

Shape = tuple[int, int, int, int]  # height, width, inputs, outputs


def shapes() -> dict[str, Shape]:
    """The kernels of the graph by name."""
    kernels = {
        "conv": (3, 3, 3, 32), "conv_1": (3, 3, 32, 32), "conv_2": (3, 3, 32, 64), "conv_3": (1, 1, 64, 80),
        "conv_4": (3, 3, 80, 192),
    }  # fmt: skip
    for block, inputs, pool in (("mixed", 192, 32), ("mixed_1", 256, 64), ("mixed_2", 288, 64)):
        kernels |= within(block, fives(inputs, pool))
    kernels |= within("mixed_3", {
        "conv": (3, 3, 288, 384), "tower/conv": (1, 1, 288, 64), "tower/conv_1": (3, 3, 64, 96),
        "tower/conv_2": (3, 3, 96, 96),
    })  # fmt: skip
    for block, width in (("mixed_4", 128), ("mixed_5", 160), ("mixed_6", 160), ("mixed_7", 192)):
        kernels |= within(block, sevens(width))
    kernels |= within("mixed_8", {
        "tower/conv": (1, 1, 768, 192), "tower/conv_1": (3, 3, 192, 320), "tower_1/conv": (1, 1, 768, 192),
        "tower_1/conv_1": (1, 7, 192, 192), "tower_1/conv_2": (7, 1, 192, 192),
        "tower_1/conv_3": (3, 3, 192, 192),
    })  # fmt: skip
    for block, inputs in (("mixed_9", 1280), ("mixed_10", 2048)):
        kernels |= within(block, forks(inputs))
    return kernels


def within(block: str, kernels: dict[str, Shape]) -> dict[str, Shape]:
    return {f"{block}/{name}": shape for name, shape in kernels.items()}


def fives(inputs: int, pool: int) -> dict[str, Shape]:
    return {
        "conv": (1, 1, inputs, 64), "tower/conv": (1, 1, inputs, 48), "tower/conv_1": (5, 5, 48, 64),
        "tower_1/conv": (1, 1, inputs, 64), "tower_1/conv_1": (3, 3, 64, 96),
        "tower_1/conv_2": (3, 3, 96, 96), "tower_2/conv": (1, 1, inputs, pool),
    }  # fmt: skip


def sevens(width: int) -> dict[str, Shape]:
    return {
        "conv": (1, 1, 768, 192), "tower/conv": (1, 1, 768, width), "tower/conv_1": (1, 7, width, width),
        "tower/conv_2": (7, 1, width, 192), "tower_1/conv": (1, 1, 768, width),
        "tower_1/conv_1": (7, 1, width, width), "tower_1/conv_2": (1, 7, width, width),
        "tower_1/conv_3": (7, 1, width, width), "tower_1/conv_4": (1, 7, width, 192),
        "tower_2/conv": (1, 1, 768, 192),
    }  # fmt: skip


def forks(inputs: int) -> dict[str, Shape]:
    return {
        "conv": (1, 1, inputs, 320), "tower/conv": (1, 1, inputs, 384), "tower/mixed/conv": (1, 3, 384, 384),
        "tower/mixed/conv_1": (3, 1, 384, 384), "tower_1/conv": (1, 1, inputs, 448),
        "tower_1/conv_1": (3, 3, 448, 384), "tower_1/mixed/conv": (1, 3, 384, 384),
        "tower_1/mixed/conv_1": (3, 1, 384, 384), "tower_2/conv": (1, 1, inputs, 192),
    }  # fmt: skip


def random_constants() -> dict[str, Tensor]:
    """Weights that neither fade nor blow up on their way through the network."""
    draw = torch.Generator().manual_seed(0)
    constants = {}
    for name, (height, width, inputs, outputs) in shapes().items():
        kernel = torch.randn(height, width, inputs, outputs, generator=draw)
        constants[f"{name}/conv2d_params"] = kernel * math.sqrt(2 / (height * width * inputs))
        positive = torch.rand(2, outputs, generator=draw) + 0.5
        other = torch.randn(2, outputs, generator=draw) / 10
        for part, values in zip(
            ("gamma", "moving_variance", "beta", "moving_mean"), (*positive, *other), strict=True
        ):
            constants[f"{name}/batchnorm/{part}"] = values
    return constants


def varint(value: int) -> bytes:
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


def field(number: int, content: bytes | int) -> bytes:
    """A field of a protobuf message: an integer, or bytes with their length."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def tensor_proto(shape: tuple[int, ...], values: bytes, kind: int = 1) -> bytes:
    """`values`: fields 4 or 5 as they are encoded; kind 1 is float32."""
    sizes = b"".join(field(2, field(1, size)) for size in shape)
    return field(1, kind) + field(2, sizes) + values


def node(name: str, op: str, *attributes: tuple[str, bytes]) -> bytes:
    """A field of a GraphDef."""
    pairs = (field(5, field(1, key.encode()) + field(2, value)) for key, value in attributes)
    return field(1, field(1, name.encode()) + field(2, op.encode()) + b"".join(pairs))


def constant(name: str, shape: tuple[int, ...], values: bytes, kind: int = 1) -> bytes:
    dtype = ("dtype", field(6, kind))
    return node(name, "Const", dtype, ("value", field(8, tensor_proto(shape, values, kind))))


def floats(*values: float) -> bytes:
    return torch.tensor(values).numpy().astype("<f4").tobytes()


def encode(constants: dict[str, Tensor]) -> bytes:
    """A GraphDef of these constants, among nodes of other kinds."""

    def pieces() -> Iterator[bytes]:
        yield node("DecodeJpeg/contents", "Placeholder", ("dtype", field(6, 7)))
        for name, values in constants.items():
            yield constant(name, tuple(values.shape), field(4, values.numpy().astype("<f4").tobytes()))
            yield node(f"{name}/read", "Identity")
        yield constant("pool_3/_reshape/shape", (2,), field(4, bytes(8)), kind=3)
        yield field(4, field(1, 8))  # versions

    return b"".join(pieces())
