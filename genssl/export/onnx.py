"""`export --format onnx`: a run's network as a file for ONNX runtimes, checked against the run itself.

Images go in as bytes and come out as bytes: the conversion to the range that the networks see is part of
the graph.
"""

import contextlib
import importlib
import json
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from genssl.errors import FAILED_RUN, UserError
from genssl.export.torchvision import RANGE
from genssl.models.flow import TIME_SCALE, Flow
from genssl.models.method import CanDenoise, CanInterpolate, HasLatents, Method
from genssl.pixels import to_bytes, to_model
from genssl.runtime import generator

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TRACED = 2  # rows of the batch that is traced: 1 would be taken for a constant
CHECKED = 3  # rows of the batch that the exported graph is checked with
TOLERANCE = 1e-4  # of the largest output


class Features(nn.Module):
    """Images, uint8 (B, C, H, W) -> features (B, D)."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, images: Tensor) -> Tensor:
        """As above."""
        return self.method.features(to_model(images))


class Posterior(nn.Module):
    """Images, uint8 (B, C, H, W) -> mean and log variance of q(z|x), both (B, z_dim)."""

    def __init__(self, method: HasLatents) -> None:
        super().__init__()
        self.method = method

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """As above."""
        posterior = self.method.encode(to_model(images))
        assert posterior.logvar is not None
        return posterior.mean, posterior.logvar


class Decoder(nn.Module):
    """Latents (B, z_dim) -> the mode of p(x|z) as uint8 and in the model's range, both (B, C, H, W)."""

    def __init__(self, method: CanInterpolate) -> None:
        super().__init__()
        self.method = method

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """As above."""
        mean = self.method.decode_path(z[None])[0]
        return to_bytes(mean), mean


class Velocity(nn.Module):
    """Noisy images x (B, C, H, W), times t (B,) in [0, 1] and labels (B,), if any -> velocity, shape of x."""

    def __init__(self, method: Flow) -> None:
        super().__init__()
        self.network = method.network

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """As above."""
        velocity: Tensor = self.network(x, TIME_SCALE * t, labels)
        return velocity


@dataclass(frozen=True)
class Graph:
    """A graph to export.

    Attributes:
        module: takes the inputs in this order.
        inputs: by name, `CHECKED` random rows of each.
        outputs: their names.
        metadata: joins the metadata of the file, for the users of the graph.
    """

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    metadata: dict[str, str]


def choose(method: Method, part: str | None) -> tuple[str, Graph]:
    """The name and the graph of a network of the method; default: the first one.

    Raises:
        UserError: the method has no such network.
    """
    known = graphs(method)
    name = part or next(iter(known))
    if name not in known:
        raise UserError(f"a {method.config.method} has no {name} to export; use --part {' or '.join(known)}")
    return name, known[name]


def graphs(method: Method) -> dict[str, Graph]:
    """The networks of a method that can be exported, by name."""
    size, source = method.config.image_size, generator(0, "eval")
    shape = (CHECKED, method.config.channels, size, size)
    images = {"images": torch.randint(256, shape, generator=source, dtype=torch.uint8)}
    if isinstance(method, HasLatents) and isinstance(method, CanInterpolate):
        z = {"z": method.sample_prior(CHECKED, source)}
        return {
            "decoder": Graph(Decoder(method), z, ("images", "mean"), {"mean": RANGE}),
            "encoder": Graph(Posterior(method), images, ("mean", "logvar"), {}),
        }
    if isinstance(method, CanDenoise):
        t = torch.randint(method.schedule.timesteps, (CHECKED,), generator=source)
        x = {"x": torch.randn(shape, generator=source), "t": t, **_labels(method)}
        alphas_cumprod = {"alphas_cumprod": json.dumps(method.schedule.alphas_cumprod.tolist())}
        metadata = _of_noisy(method) | alphas_cumprod
        return {"network": Graph(method.network, x, (method.prediction,), metadata)}
    encoder = Graph(Features(method), images, ("features",), {})
    if isinstance(method, Flow):
        x = {"x": torch.randn(shape, generator=source), "t": torch.rand(CHECKED, generator=source)}
        network = Graph(Velocity(method), x | _labels(method), ("velocity",), _of_noisy(method))
        return {"network": network, "encoder": encoder}
    return {"encoder": encoder}


def _labels(method: Method) -> dict[str, Tensor]:
    """The third input of a network with classes."""
    return {"labels": torch.arange(CHECKED) % (method.classes + 1)} if method.classes else {}


def _of_noisy(method: Method) -> dict[str, str]:
    """What the inputs of a network of noisy images mean."""
    labels = {"labels": f"a class, or {method.classes} for none"} if method.classes else {}
    return {"x": f"noisy; clean is {RANGE}", **labels}


def require_packages() -> None:
    """Check for the packages of the export.

    Raises:
        UserError: one of them is missing.
    """
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError:
            raise UserError(
                f"--format onnx needs {name}; install it with: pip install 'genssl[onnx]'"
            ) from None


def to_onnx(graph: Graph, metadata: Mapping[str, str]) -> bytes:
    """The graph as an ONNX file of its own, weights inside; its batch axes are all "batch", of any length.

    Args:
        graph: in eval mode and on the CPU.
        metadata: joins the graph's own in the file.
    """
    batch = torch.export.Dim("batch")
    # Some exporters report their rewrites on stdout, which is the command's own
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")  # the exporter's own, on axes that share a name
        program = torch.onnx.export(
            graph.module.eval(),
            tuple(rows[:TRACED] for rows in graph.inputs.values()),
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=tuple({0: batch} for _ in graph.inputs),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for name, value in {**metadata, **graph.metadata}.items():
        model.metadata_props.add(key=name, value=value)
    content: bytes = model.SerializeToString()
    return content


def check(content: bytes, graph: Graph) -> dict[str, Any]:
    """Run an exported graph on a batch of another size than it was traced with, beside the module itself.

    Returns:
        inputs and outputs in words, and the largest difference between the two float outputs, of the
        largest output where that is above 1.

    Raises:
        UserError: they differ by more than rounding.
    """
    runtime = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    try:
        arrays = session.run(list(graph.outputs), {name: rows.numpy() for name, rows in graph.inputs.items()})
    except Exception as error:  # of onnxruntime, whose types are its own
        line = str(error).splitlines()[0]
        raise UserError(
            f"the exported graph does not run ({line}); try another version of torch", FAILED_RUN
        ) from error
    outputs = dict(zip(graph.outputs, map(torch.from_numpy, arrays), strict=True))
    with torch.inference_mode():
        expected = graph.module(*graph.inputs.values())
    expected = expected if isinstance(expected, tuple) else (expected,)
    difference = max(_difference(a, b) for a, b in zip(outputs.values(), expected, strict=True))
    if not difference <= TOLERANCE:
        raise UserError(
            f"the exported graph differs from the run by {difference:.2g}; try another version of torch",
            FAILED_RUN,
        )
    return {
        "inputs": {name: _words(rows) for name, rows in graph.inputs.items()},
        "outputs": {name: _words(rows) for name, rows in outputs.items()},
        "largest_difference": difference,
    }


def _difference(output: Tensor, expected: Tensor) -> float:
    if not expected.is_floating_point():  # made of a float output, and rounding may carry it over an edge
        return 0.0
    return float((output - expected).abs().max() / expected.abs().max().clamp(min=1))


def _words(rows: Tensor) -> str:
    """Type and shape, e.g. "uint8 (N, 3, 32, 32)"."""
    sizes = ", ".join(["N", *map(str, rows.shape[1:])])
    return f"{str(rows.dtype).removeprefix('torch.')} ({sizes}{',' if rows.ndim == 1 else ''})"
