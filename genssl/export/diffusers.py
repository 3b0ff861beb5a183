"""`export --format diffusers`: a run's U-Net as a pipeline folder that diffusers loads, with its code.

`UNet2DModel` has another layout (a skip for every block, where ours has one for every level), so that the
folder brings its own network: the text of `genssl.models.unet`, which needs nothing but torch.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from genssl.errors import UserError
from genssl.models import unet
from genssl.models.method import CanDenoise, HasFlow, Method
from genssl.models.unet import UNet
from genssl.run_info import RunInfo, progress_of
from genssl.settings import Config

OLDEST = "0.35.0"  # of the versions of diffusers that this was tested with
PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction", "x": "sample"}  # their names there
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
PREFIX = "network."  # of every weight: the model there holds our U-Net
NETWORK = '''

# What diffusers needs of a model
from diffusers import ConfigMixin, ModelMixin  # noqa: E402
from diffusers.configuration_utils import register_to_config  # noqa: E402


class GensslUNet(ModelMixin, ConfigMixin):
    """A U-Net of genssl, with the interface of a model of diffusers."""

    @register_to_config
    def __init__(self, sample_size, in_channels, widths, blocks, attention, patch, classes):
        super().__init__()
        layout = Layout(tuple(widths), tuple(blocks), tuple(attention), patch)
        self.network = UNet(layout, in_channels, classes)

    def forward(self, sample, timestep, class_labels=None):
        """The prediction for (B, C, H, W) at a time or times (B,): (B, C, H, W) float32.

        `class_labels`: int64 (B,) of a network with classes; the number of classes stands for none.
        """
        times = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        return self.network(sample, times, class_labels)
'''
PIPELINE = '''\
"""Samples of a network that genssl trained; made by `genssl export --format diffusers`."""

import inspect

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image


class GensslPipelineOutput(BaseOutput):
    images: list


class GensslPipeline(DiffusionPipeline):
    """Images from noise, with any scheduler that fits.

    Args:
        unet: predicts noise, v, the image or a velocity, as the scheduler's settings say.
        scheduler: DDIMScheduler or another one for diffusion, or FlowMatchEulerDiscreteScheduler.
    """

    def __init__(self, unet, scheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        batch_size=1,
        num_inference_steps=50,
        class_labels=None,
        guidance_scale=1.5,
        generator=None,
        latents=None,
        eta=0.0,
        output_type="pil",
        return_dict=True,
    ):
        """Draw `batch_size` images.

        Args:
            batch_size: number of images.
            num_inference_steps: steps of the scheduler, with one call of the network each.
            class_labels: class of each image, for a network with classes; None: drawn uniformly.
            guidance_scale: 1: none; genssl's w is guidance_scale - 1.
            generator: of all noise.
            latents: the noise to begin with, (B, C, H, W); None: drawn.
            eta: noise added by DDIM.
            output_type: "pil", "np" (B, H, W, C) in [0, 1], "pt" (B, C, H, W) in [0, 1], or "latent", in the
                network's range, where x = (u + 0.5) / 128 - 1 of bytes u.
        """
        config, device = self.unet.config, self._execution_device
        shape = (batch_size, config.in_channels, config.sample_size, config.sample_size)
        x = randn_tensor(shape, generator=generator, device=device) if latents is None else latents.to(device)
        labels = self._labels(class_labels, len(x), generator)
        self._set_timesteps(num_inference_steps, device)
        x = x * getattr(self.scheduler, "init_noise_sigma", 1.0)
        known = inspect.signature(self.scheduler.step).parameters
        # The noise in x is taken again of the clipped image, as genssl's samplers do
        options = {"generator": generator, "eta": eta, "use_clipped_model_output": True}
        options = {name: value for name, value in options.items() if name in known}
        scales = hasattr(self.scheduler, "scale_model_input")
        for t in self.progress_bar(self.scheduler.timesteps):
            scaled = self.scheduler.scale_model_input(x, t) if scales else x
            prediction = self._predict(scaled, t, labels, guidance_scale)
            x = self.scheduler.step(prediction, t, x, **options).prev_sample
        images = self._converted(x, output_type)
        return GensslPipelineOutput(images=images) if return_dict else (images,)

    def _labels(self, labels, count, generator):
        classes = self.unet.config.classes
        if not classes:
            if labels is not None:
                raise ValueError("this network has no classes")
            return None
        if labels is None:
            first = generator[0] if isinstance(generator, list) else generator
            device = "cpu" if first is None else first.device
            labels = torch.randint(classes, (count,), generator=first, device=device)
        return torch.as_tensor(labels, device=self._execution_device).expand(count)

    def _set_timesteps(self, steps, device):
        if type(self.scheduler).__name__.startswith("FlowMatch"):
            # Equal steps from noise at 1 to the image at 0
            self.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), device=device)
        else:
            total = self.scheduler.config.num_train_timesteps
            if type(self.scheduler).__name__ == "DDIMScheduler" and total % steps:
                # Its step back is total // steps, which is then not the distance of its times
                raise ValueError(f"num_inference_steps must divide {total} for DDIM, not be {steps}")
            self.scheduler.set_timesteps(steps, device=device)

    def _predict(self, x, t, labels, scale):
        if labels is None or scale == 1:
            return self.unet(x, t, labels)
        none = torch.full_like(labels, self.unet.config.classes)
        shown, hidden = self.unet(torch.cat([x, x]), t, torch.cat([labels, none])).chunk(2)
        return scale * shown + (1 - scale) * hidden

    def _converted(self, x, output_type):
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type must be pil, np, pt or latent, not {output_type}")
        if output_type == "latent":
            return x
        pixels = ((x.float() + 1) * 128).floor().clamp(0, 255)
        if output_type == "pt":
            return pixels / 255
        arrays = pixels.byte().permute(0, 2, 3, 1).cpu().numpy()
        if output_type == "np":
            return arrays / np.float32(255)
        return [Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array) for array in arrays]
'''
README = """\
# {name}

A {method} that genssl trained on {data} for {epochs} epochs, as a pipeline of [diffusers](https://huggingface.co/docs/diffusers).
The folder holds its own code, which needs torch and diffusers alone.

```python
{code}```
"""
STEPS = 50  # network calls per image, in the code that is shown
LOAD = """\
from diffusers import DiffusionPipeline

folder = {folder!r}
pipeline = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
images = pipeline(batch_size=16, num_inference_steps={steps}).images  # a list of PIL images
"""


def diffusers_network(method: Method) -> UNet:
    """The method's U-Net.

    Raises:
        UserError: it has none, or is no diffusion or flow, and diffusers has nothing to sample it with.
    """
    network = getattr(method, "network", None)
    if not isinstance(network, UNet) or not isinstance(method, CanDenoise | HasFlow):
        raise UserError(
            f"diffusers has no scheduler for a {method.config.method}; export it with --format onnx"
        )
    return network


def diffusers_files(method: Method) -> dict[str, str | dict[str, Any]]:
    """Every file of the folder but the weights, by its path in it: text, or what its JSON holds.

    Raises:
        UserError: as for `diffusers_network`.
    """
    network = diffusers_network(method)
    scheduler = diffusers_scheduler(method)
    layout = network.layout
    return {
        "pipeline.py": PIPELINE,
        "unet/unet_model.py": Path(unet.__file__).read_text(encoding="utf-8") + NETWORK,
        "unet/config.json": {
            "_class_name": "GensslUNet", "_diffusers_version": OLDEST,
            "sample_size": method.config.image_size, "in_channels": method.config.channels,
            "widths": layout.widths, "blocks": layout.blocks, "attention": layout.attention,
            "patch": layout.patch, "classes": network.classes,
        },
        "scheduler/scheduler_config.json": scheduler,
        "model_index.json": {
            "_class_name": ["pipeline", "GensslPipeline"], "_diffusers_version": OLDEST,
            "unet": ["unet_model", "GensslUNet"], "scheduler": ["diffusers", scheduler["_class_name"]],
        },
    }  # fmt: skip


def loading_code(config: Config, folder: str) -> str:
    """The lines of Python that load the folder and draw a few images, in at most STEPS steps.

    DDIM there goes back by whole multiples: the steps divide those of the process.
    """
    total = getattr(config, "timesteps", STEPS)
    steps = max(n for n in range(1, STEPS + 1) if total % n == 0)
    return LOAD.format(folder=folder, steps=steps)


def diffusers_readme(info: RunInfo, name: str) -> str:
    """The README.md of the folder, whose name this is."""
    config = info.config
    return README.format(
        name=name, method=config.method, data=config.data, code=loading_code(config, name),
        epochs=progress_of(info.epochs_trained, config.epochs),
    )  # fmt: skip


def diffusers_scheduler(method: Method) -> dict[str, Any]:
    """The settings of the scheduler there that undoes the method's own process.

    For a flow that is Euler's method on x_t = (1 - t) x_0 + t epsilon, with t times 1,000 for the network.
    """
    if not isinstance(method, CanDenoise):
        name = "FlowMatchEulerDiscreteScheduler"
        return {
            "_class_name": name, "_diffusers_version": OLDEST, "num_train_timesteps": 1000, "shift": 1.0,
        }  # fmt: skip
    return {
        "_class_name": "DDIMScheduler", "_diffusers_version": OLDEST,
        "num_train_timesteps": method.schedule.timesteps, "trained_betas": method.schedule.betas.tolist(),
        "prediction_type": PREDICTIONS[method.prediction], "clip_sample": True, "clip_sample_range": 1.0,
        "set_alpha_to_one": True, "steps_offset": 0,
        # From the last time, which is nothing but noise, to the first
        "timestep_spacing": "linspace",
    }  # fmt: skip


def diffusers_state(method: Method) -> dict[str, Tensor]:
    """The weights of the network under their names there."""
    state = diffusers_network(method).state_dict()
    return {f"{PREFIX}{name}": tensor for name, tensor in state.items()}
