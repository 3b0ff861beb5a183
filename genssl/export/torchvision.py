"""`export --format torchvision`: a self-supervised run's encoder as the weights of torchvision's ResNet."""

from torch import Tensor

from genssl.errors import UserError
from genssl.models.method import Method
from genssl.models.resnet import WIDTHS, Encoder

RANGE = "x = (u + 0.5) / 128 - 1 of bytes u"  # what the networks see of an image
LOAD_RESNET = """\
from safetensors.torch import load_file
from torch import nn
from torchvision.models import {name}

model = {name}()
"""
# torchvision fixes the widths of a ResNet of basic blocks; it makes all stages in this one method
LOAD_SMALL = """\
from safetensors.torch import load_file
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

class SmallResNet(ResNet):
    def _make_layer(self, block, planes, *rest, **named):
        self.inplanes = 16 if planes == 64 else self.inplanes
        return super()._make_layer(block, planes // 4, *rest, **named)

model = SmallResNet(BasicBlock, [2, 2, 2, 2])
model.bn1 = nn.BatchNorm2d(16)
"""
LOAD_STEM = """\
model.conv1 = nn.Conv2d({channels}, {width}, 3, padding=1, bias=False)
model.maxpool = nn.Identity()
model.fc = nn.Identity()
model.load_state_dict(load_file({file!r}), strict=True)
model.eval()
"""


def torchvision_state(method: Method) -> dict[str, Tensor]:
    """Every tensor of torchvision's ResNet-18, 34 or 50 under its name there, except `fc.*`.

    `conv1.weight` is (width, C, 3, 3): the stem is one for small images (`genssl.models.resnet`).

    Raises:
        UserError: the method has no ResNet encoder.
    """
    encoder = getattr(method, "encoder", None)
    if not isinstance(encoder, Encoder):
        raise UserError(
            f"torchvision has no network of a {method.config.method}'s kind; export it with --format onnx"
        )
    state: dict[str, Tensor] = encoder.state_dict()
    if encoder.stages != 4:
        raise UserError(
            f"torchvision's ResNets have four stages, and this encoder {encoder.stages}; "
            "export it with --format onnx"
        )
    return state


def torchvision_code(state: dict[str, Tensor], file: str) -> str:
    """The lines of Python that load a written state into torchvision's ResNet, strictly, as `model`."""
    width, channels = state["conv1.weight"].shape[:2]
    start = LOAD_SMALL
    if width == WIDTHS["resnet18"]:
        depth = (
            "50" if "layer1.0.conv3.weight" in state else "34" if "layer1.2.conv1.weight" in state else "18"
        )
        start = LOAD_RESNET.format(name=f"resnet{depth}")
    return start + LOAD_STEM.format(channels=channels, width=width, file=file)


def torchvision_interface(state: dict[str, Tensor]) -> dict[str, dict[str, str]]:
    """The inputs and outputs of the loaded `model`, as text."""
    features = len(state["layer4.0.downsample.1.weight"])
    return {
        "inputs": {"images": f"float32 (N, {state['conv1.weight'].shape[1]}, H, W), {RANGE}"},
        "outputs": {"features": f"float32 (N, {features})"},
    }
