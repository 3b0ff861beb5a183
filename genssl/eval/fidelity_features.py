"""The feature spaces of sample quality: the default, and the field's own, Inception and DINOv2.

The default is pinned, and was chosen by what it notices. Features that were trained to ignore color or blur
cannot measure it. So these are of two networks that come with genssl: an encoder trained by SimSiam, which
sees shapes, and the middle of a DDPM's U-Net at two low noise levels, which sees color, blur and noise. That
DDPM is no generator of the shipped weights, which would be judged by their own features: only its way down is
kept, beside the projection. docs/metrics.md has the table that they were chosen by.

The weights of the field's own are downloaded on first use. Nothing is unpickled: Inception's are read from
the TensorFlow graph that FID was defined with, DINOv2's from a safetensors file.
"""

import functools
import hashlib
import http.client
import math
import re
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genssl import checkpoint, paths, run_info
from genssl import config as configs
from genssl.data.cache import cache_folder
from genssl.data.torchvision_sets import TIMEOUT_SECONDS, reason_of, require_answer
from genssl.errors import FAILED_RUN, UserError
from genssl.eval.feature_cache import FeatureSpace
from genssl.files import read_tensors, tensor_digest, write_bytes
from genssl.models.build import build
from genssl.models.method import Method
from genssl.pixels import to_channels
from genssl.runtime import Tick, to_float64

NAME = "genssl-1"  # another number where the same images get other features
SIZE = 32  # pixels per side of the images that the networks were trained on
TIMES = (10, 50)  # zero-based noise levels of the DDPM, of 1,000
DIMENSIONS = 48  # more of them cost more bias for the same number of images
LEAST_SCALE = 1e-4  # of a feature that hardly varies
ENCODER = "simsiam"  # a folder of shipped weights
FILE = "fidelity-features.safetensors"  # in the folder of shipped weights: the projection and the denoiser
DENOISER = "denoiser."  # before the names of its weights there
WAY_DOWN = ("start", "time_embedding", "down_stages", "downs", "middle_stage", "middle_block")  # of a U-Net


class FidelityFeatures(nn.Module):
    """Features of both networks, standardized and projected on their leading principal components.

    Args:
        encoder: the shipped SimSiam.
        denoiser: a DDPM, of which the way down is used.
        mean: (D,), of the networks' features for the rendered digits.
        projection: (D, 48), the principal components of the standardized features, the scale in them.
    """

    mean: Tensor
    projection: Tensor

    def __init__(self, encoder: Method, denoiser: Method, mean: Tensor, projection: Tensor) -> None:
        super().__init__()
        self.encoder, self.denoiser = encoder, denoiser
        self.register_buffer("mean", mean)
        self.register_buffer("projection", projection)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) of any size, gray or color, in the model's range -> (B, 48)."""
        images = to_channels(images, 3)
        return (raw_features(self.encoder, self.denoiser, images) - self.mean) @ self.projection


def raw_features(encoder: Method, denoiser: Any, images: Tensor) -> Tensor:
    """The features of both networks side by side, (B, D); images of another size are resized to 32 pixels."""
    if images.shape[-2:] != (SIZE, SIZE):
        images = F.interpolate(images, (SIZE, SIZE), mode="bicubic", antialias=True).clamp(-1, 1)
    levels = [denoiser.features_at(images, t) for t in TIMES]
    return torch.cat([encoder.features(images), *levels], 1)


def fit_projection(features: Tensor, dimensions: int = DIMENSIONS) -> tuple[Tensor, Tensor]:
    """The mean (D,), and the projection (D, dimensions) of standardized (N, D) on components."""
    features = to_float64(features)
    mean, scale = features.mean(0), features.std(0).clamp(min=LEAST_SCALE)
    _, _, components = torch.linalg.svd((features - mean) / scale, full_matrices=False)
    return mean.float(), (components[:dimensions].T / scale[:, None]).float()


def way_down(denoiser: Method) -> dict[str, Tensor]:
    """The weights of a DDPM from the image to the middle of its U-Net, by their names in the file."""
    parts = tuple(f"network.{part}." for part in WAY_DOWN)
    weights = denoiser.state_dict()
    return {DENOISER + name: value for name, value in weights.items() if name.startswith(parts)}


def denoiser_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Method:
    """The DDPM of `way_down`, with initial weights on its way up."""
    method = build(configs.read(metadata["config"], FILE))
    names = (name for name in tensors if name.startswith(DENOISER))
    method.load_state_dict({name.removeprefix(DENOISER): tensors[name] for name in names}, strict=False)
    return method.eval().requires_grad_(False)


@functools.cache
def default_features(device: torch.device) -> FeatureSpace:
    """The pinned feature space.

    Raises:
        UserError: the shipped weights are missing, or others than the projection was fitted to.
    """
    root = paths.shipped_root()
    missing = [path for path in (root / ENCODER, root / FILE) if not path.exists()]
    if missing:
        raise UserError(f"{missing[0]} is missing; sample quality needs it, install genssl again")
    tensors, metadata = read_tensors(root / FILE)
    digest = run_info.inspect(root / ENCODER).digest
    if metadata.get(ENCODER) != digest:
        raise UserError(
            f"{root / FILE} was fitted to other weights than those beside it; install genssl again"
        )
    encoder, denoiser = checkpoint.load(root / ENCODER, device), denoiser_of(tensors, metadata)
    features = FidelityFeatures(encoder, denoiser, tensors["mean"], tensors["projection"]).to(device).eval()
    # By what the features are made of: the digest of the DDPM is that of the whole run, as it was trained
    fitted = tensor_digest({name: tensors[name] for name in ("mean", "projection")})
    digest = hashlib.sha256("|".join([NAME, digest, metadata["ddpm"], fitted]).encode()).hexdigest()
    return FeatureSpace(NAME, features, digest)


@dataclass(frozen=True)
class WeightsFile:
    """Published weights.

    Attributes:
        name: of the file in downloads/ of the cache folder.
        url: where it is published.
        sha256: of the file.
        size: in bytes.
    """

    name: str
    url: str
    sha256: str
    size: int


# The graph that FID was defined with (Heusel et al. 2017), as in inception-2015-12-05.tgz of
# download.tensorflow.org/models/image/imagenet; this is the copy of OpenAI's guided-diffusion evaluator
INCEPTION = WeightsFile(
    "classify_image_graph_def.pb",
    "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/classify_image_graph_def.pb",
    "009d6814d1bc560d4e7b236e170e9b2d5ca6f4b57bd8037f6db05776204415c6",
    95_673_916,
)
DINOV2 = WeightsFile(
    "vit_small_patch14_dinov2.lvd142m.safetensors",
    "https://huggingface.co/timm/vit_small_patch14_dinov2.lvd142m/resolve/main/model.safetensors",
    "04d27f3400d059fc0cfd7d17dd1909a75bf3ea8fb3eeb48b97cb99e57ee20081",
    88_240_510,
)
PIECE = 2**20  # bytes of a download that are read at a time
CHUNK = 64  # images of a batch that are enlarged at a time


def pretrained_features(name: str, device: torch.device, tick: Tick) -> FeatureSpace:
    """The feature space "inception" (2,048 features) or "dinov2" (384); its digest is the file's SHA-256.

    Raises:
        UserError: the weights cannot be downloaded or are others than the official ones, or timm is missing.
    """
    if name == "inception":
        network, file, prepare = inception(fetch(INCEPTION, tick)), INCEPTION, inception_input
    else:
        network, file, prepare = dinov2(lambda: fetch(DINOV2, tick)), DINOV2, dinov2_input
    network = network.to(device).eval().requires_grad_(False)

    def encode(images: Tensor) -> Tensor:
        return torch.cat([network(prepare(to_channels(chunk, 3))) for chunk in images.split(CHUNK)])

    return FeatureSpace(name, encode, file.sha256)


def fetch(file: WeightsFile, tick: Tick) -> bytes:
    """The content of a weights file, from downloads/ in the cache folder, or downloaded and put there.

    Args:
        file: what to read.
        tick: called with the (downloaded, total) MiB.

    Raises:
        UserError: it cannot be downloaded, or its SHA-256 is another one.
    """
    path = cache_folder() / "downloads" / file.name
    is_new = not path.exists()
    content = _download(file, path, tick) if is_new else path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != file.sha256:
        raise UserError(
            f"{file.url if is_new else path} is not the official file, or it is damaged: its SHA-256 is "
            f"{sha256} instead of {file.sha256}; "
            + (f"put the official one at {path}" if is_new else "delete it, and it is downloaded again")
        )
    if is_new:
        write_bytes(path, content)
    return content


def _download(file: WeightsFile, path: Path, tick: Tick) -> bytes:
    content = bytearray()
    try:
        require_answer(file.url)
        with urllib.request.urlopen(file.url, timeout=TIMEOUT_SECONDS) as answer:
            while len(content) <= file.size and (piece := answer.read(PIECE)):
                content += piece
                tick(len(content) >> 20, file.size >> 20)
    except (OSError, http.client.HTTPException) as error:
        raise UserError(
            f"cannot download {file.name} ({reason_of(error)}); get {file.url} and put it at {path}",
            FAILED_RUN,
        ) from error
    return bytes(content)


class FIDBlock(nn.Module):
    """A block of torchvision's Inception-v3 with other pooling before its last branch.

    Args:
        block: torchvision's, which loses that branch.
        pool: the pooling.
    """

    def __init__(self, block: Any, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.block, self.branch_pool, self.pool = block, block.branch_pool, pool
        block.branch_pool = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, H, W)."""
        *branches, _ = self.block._forward(x)
        return torch.cat([*branches, self.branch_pool(self.pool(x))], 1)


def inception(graph: bytes) -> nn.Module:
    """The network of FID: (B, 3, 299, 299) in [-1, 1] -> (B, 2048), its last average pooling.

    Beside the weights it differs from torchvision's Inception-v3 in its pooling: averages leave the padding
    out, and the last block takes the maximum.

    Args:
        graph: a TensorFlow GraphDef with the weights.
    """
    from torchvision.models import Inception3

    average = functools.partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
    maximum = functools.partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)
    # Without memory or values, which the weights bring
    with torch.device("meta"):
        network: nn.Module = Inception3(aux_logits=False, init_weights=False)
    network.fc = nn.Identity()
    for name, block in list(network.named_children()):
        if hasattr(block, "branch_pool"):
            setattr(network, name, FIDBlock(block, maximum if name == "Mixed_7c" else average))
    constants, weights = read_constants(graph), {}
    for name, node in tensorflow_names(network).items():
        # TensorFlow's kernels are (H, W, inputs, outputs)
        weights[f"{name}.conv.weight"] = constants[f"{node}/conv2d_params"].permute(3, 2, 0, 1).contiguous()
        for ours, theirs in BATCH_NORM.items():
            weights[f"{name}.bn.{ours}"] = constants[f"{node}/batchnorm/{theirs}"]
    network.load_state_dict(weights, assign=True)
    return network


BATCH_NORM = {
    "weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance",
}  # fmt: skip
BRANCH = re.compile(r"(?:block\.)?branch(_pool|[\dx]+(?:dbl)?)(?:_(\d)([ab]?))?")


def tensorflow_names(network: nn.Module) -> dict[str, str]:
    """TensorFlow's name of each convolution, with its batch norm, by torchvision's.

    Both count in the same order: the first five, then block by block; in a block a first branch of one
    convolution, then the "towers". A last pair that forks is named "mixed" in its tower.
    """
    names: dict[str, str] = {}
    blocks: dict[str, list[str]] = {}  # the towers of each
    for path in [path for path, module in network.named_modules() if hasattr(module, "bn")]:
        block, _, branch = path.partition(".")
        match = BRANCH.fullmatch(branch)
        if match is None:
            names[path] = _numbered("conv", len(names))
            continue
        towers = blocks.setdefault(block, [])
        parts = [_numbered("mixed", list(blocks).index(block))]
        tower, number, fork = match.groups()
        if number or tower == "_pool":
            towers += [] if tower in towers else [tower]
            parts.append(_numbered("tower", towers.index(tower)))
        parts += ["mixed"] if fork else []
        parts.append(_numbered("conv", "ab".index(fork) if fork else int(number or 1) - 1))
        names[path] = "/".join(parts)
    return names


def _numbered(name: str, i: int) -> str:
    return f"{name}_{i}" if i else name


NOTHING = memoryview(b"")


def read_constants(graph: bytes) -> dict[str, Tensor]:
    """The float32 constants of a TensorFlow GraphDef by name.

    Field numbers are those of TensorFlow's graph.proto, node_def.proto, attr_value.proto and tensor.proto.

    Raises:
        ValueError: it is none.
    """
    constants = {}
    for node in _repeated(memoryview(graph), 1):
        attributes = {bytes(_get(entry, 1)): _get(entry, 2) for entry in _repeated(node, 5)}
        tensor = _get(attributes.get(b"value", NOTHING), 8)
        if bytes(_get(node, 2)) != b"Const" or _get(tensor, 1) != 1:
            continue
        shape = [_get(size, 1) or 0 for size in _repeated(_get(tensor, 2), 2)]
        content = bytes(_get(tensor, 4)) or b"".join(_repeated(tensor, 5))
        values = np.frombuffer(content, "<f4").astype(np.float32)
        if math.prod(shape) > len(graph):
            raise ValueError(f"a constant of the shape {shape}")
        # A single value fills the tensor
        filled = np.full(shape, values[0]) if len(values) == 1 else values.reshape(shape)
        constants[bytes(_get(node, 1)).decode()] = torch.from_numpy(filled)
    return constants


def _repeated(message: memoryview, number: int) -> list[Any]:
    """All values of a field of a protobuf message."""
    return [value for field, value in _fields(message) if field == number]


def _get(message: memoryview, number: int) -> Any:
    """The last value of a field of a protobuf message; nothing where there is none."""
    return (_repeated(message, number) or [NOTHING])[-1]


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """The fields of a protobuf message in the wire format: integers as such, all else as bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        if key & 7 == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        length, at = _varint(message, at) if key & 7 == 2 else ({1: 8, 5: 4}.get(key & 7, len(message)), at)
        if at + length > len(message):
            raise ValueError("no protobuf message, or a truncated one")
        yield key >> 3, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """An integer of at most ten bytes, seven bits each, and where it ends."""
    value = 0
    for i, byte in enumerate(message[at : at + 10]):
        value |= (byte & 127) << 7 * i
        if byte < 128:
            return value, at + i + 1
    raise ValueError("an integer without an end")


def inception_input(images: Tensor) -> Tensor:
    """Images in the model's range, of any size -> (B, 3, 299, 299), as clean-fid does (Parmar et al. 2022).

    Bytes are resized bicubically, with antialiasing, and neither rounded nor clipped; then (u - 128) / 128.
    """
    # (u + 0.5) / 128 - 1 is shifted by half a byte; resizing keeps constants
    return F.interpolate(images, (299, 299), mode="bicubic", antialias=True) - 1 / 256


def dinov2(read: Callable[[], bytes]) -> nn.Module:
    """DINOv2's ViT-S/14 (Oquab et al. 2024): normalized (B, 3, 224, 224) -> (B, 384), its class token.

    Args:
        read: gives the safetensors file, which has timm's names.

    Raises:
        UserError: timm is missing.
    """
    try:
        from timm import create_model
    except ImportError as error:
        raise UserError("--features dinov2 needs timm; pip install 'genssl[features]'") from error
    from safetensors.torch import load

    # Trained at 518 pixels; the position embedding is resized to that of the images
    network: nn.Module = create_model(
        "vit_small_patch14_dinov2", num_classes=0, img_size=518, dynamic_img_size=True
    )
    network.load_state_dict(load(read()))
    return network


def dinov2_input(images: Tensor) -> Tensor:
    """Images in the model's range, of any size -> (B, 3, 224, 224): ImageNet's mean 0 and deviation 1."""
    u = (images + 1) * 128 - 0.5
    resized = F.interpolate(u, (224, 224), mode="bicubic", antialias=True).clamp(0, 255) / 255
    mean, std = (images.new_tensor(row)[:, None, None] for row in IMAGENET)
    return (resized - mean) / std


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and standard deviation
