"""Built-in networks by name; here those for images: teacher and students of Polino et al. (2018), and a residual network.

Every architecture is built from plain numbers, which an artifact's `config.json` holds; loading looks up its name in
`ARCHITECTURES` and executes nothing else.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import torch.nn.functional as F
from torch import Tensor, nn

from bitstill.constraints import Count, FractionBelowOne, Range, check_fields
from bitstill.data.res8 import Res8, Res8Config
from bitstill.decode import decode
from bitstill.errors import ArtifactError, SpecError, suggest
from bitstill.rng import derive

LARGEST_DEPTH = 2_000
"""Weighted layers of a network; deeper ones than the 1,202 of He et al. are damaged configurations."""


@dataclass(frozen=True)
class ConvNetConfig:
    """A plain convolutional network.

    Args:
        blocks: channels of the convolutions, one tuple per block; each block ends in 2 x 2 max-pooling.
        kernel: kernel size of every convolution.
        hidden: widths of the fully connected layers before the classifier.
        dropout: dropout after each block and each hidden layer.
        channels, size: channels and side length of the input image.
        classes: outputs.
    """

    blocks: tuple[tuple[Count, ...], ...]
    kernel: Count
    hidden: tuple[Count, ...]
    dropout: FractionBelowOne = 0.0
    channels: Count = 3
    size: Count = 32
    classes: Count = 10

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class ResNetConfig:
    """A residual network for small images (He et al. 2016, section 4.2, with projection shortcuts).

    Args:
        depth: 6 n + 2 weighted layers.
        width: channels of the first stage; the other two have twice and four times as many.
        channels: channels of the input image.
        classes: outputs.
    """

    depth: Annotated[int, Range(least=8, most=LARGEST_DEPTH)] = 20
    width: Count = 16
    channels: Count = 3
    classes: Count = 10

    def __post_init__(self) -> None:
        check_fields(self)
        if (self.depth - 2) % 6:
            raise SpecError("a depth of 6 n + 2", given=str(self.depth), where="ResNetConfig", fix="Common: 20, 32, 44, 56.")


class ConvNet(nn.Module):
    """Convolution, ReLU, batch norm; 2 x 2 max-pooling after each block; fully connected layers; logits.

    Images (N, channels, size, size) -> logits (N, classes). Batch norm follows the ReLU, as in the code of Polino et al.
    """

    def __init__(self, config: ConvNetConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        channels, size = config.channels, config.size
        for block in config.blocks:
            for width in block:
                convolution = nn.Conv2d(channels, width, config.kernel, padding=config.kernel // 2)
                layers += [convolution, nn.ReLU(), nn.BatchNorm2d(width)]
                channels = width
            layers += [nn.MaxPool2d(2), *_dropout(config.dropout)]
            size //= 2
        self.features = nn.Sequential(*layers)
        hidden: list[nn.Module] = []
        features = channels * size * size
        for width in config.hidden:
            hidden += [nn.Linear(features, width), nn.ReLU(), nn.BatchNorm1d(width), *_dropout(config.dropout)]
            features = width
        self.hidden = nn.Sequential(*hidden)
        self.classifier = nn.Linear(features, config.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        logits: Tensor = self.classifier(self.hidden(self.features(x).flatten(1)))
        return logits


class ResNet(nn.Module):
    """Three stages of n basic blocks: images (N, channels, H, W) -> logits (N, classes)."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = nn.Conv2d(config.channels, config.width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(config.width)
        blocks: list[nn.Module] = []
        width = config.width
        for stage in range(3):
            for index in range((config.depth - 2) // 6):
                wider = config.width * 2**stage
                blocks.append(_Block(width, wider, stride=2 if stage and not index else 1))
                width = wider
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(width, config.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        x = self.blocks(F.relu(self.norm(self.stem(x))))
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


class _Block(nn.Module):
    def __init__(self, width: int, wider: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, wider, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(wider)
        self.conv2 = nn.Conv2d(wider, wider, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(wider)
        same = width == wider and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(width, wider, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


_Config = ConvNetConfig | ResNetConfig | Res8Config
ARCHITECTURES: dict[str, tuple[type[nn.Module], type[_Config]]] = {
    "conv-net": (ConvNet, ConvNetConfig),
    "resnet": (ResNet, ResNetConfig),
    "res8": (Res8, Res8Config),
}

MODELS: dict[str, _Config] = {
    "polino-teacher": ConvNetConfig(((76, 76), (126, 126), (148, 148, 148, 148)), 3, (1200, 1200), dropout=0.2),
    "polino-student-1": ConvNetConfig(((75, 50), (50, 25)), 5, (500,)),
    "polino-student-2": ConvNetConfig(((50, 25), (25, 10)), 5, (400,)),
    "polino-student-3": ConvNetConfig(((25, 10), (10, 5)), 5, (300,)),
    "resnet-20": ResNetConfig(20),
    "resnet-32": ResNetConfig(32),
    "resnet-20-wide": ResNetConfig(20, width=64),
    "res8": Res8Config(45),
    "res8-narrow": Res8Config(19),
    "digits-teacher": ConvNetConfig(((32, 32), (64,)), 3, (128,), dropout=0.1, channels=1, size=8),
    "digits-student": ConvNetConfig(((12, 16),), 3, (48,), channels=1, size=8),
}
"""Networks by name; widths of Polino et al.'s (2018) appendix, without dropout in the students."""


def build(name: str, seed: int = 0, role: str = "", classes: int | None = None) -> nn.Module:
    """Build and initialise a network by name.

    Args:
        name: a key of `MODELS`.
        seed: seed of the run.
        role: role of the network ("teacher"), so that two of the same name start differently.
        classes: number of outputs; None is that of the named network.

    Raises:
        SpecError: unknown name.
    """
    import torch

    if name not in MODELS:
        raise SpecError("a known model", given=repr(name), where="model", fix=suggest(name, MODELS))
    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, "init", role, name))
        config = MODELS[name]
        return _construct(config if classes is None else replace(config, classes=classes))


def architecture_of(model: nn.Module) -> dict[str, Any]:
    """Description of the architecture in `config.json`, from which `from_architecture` rebuilds it, or a note if it cannot."""
    # The exact class: a subclass may override forward, which its name alone would not restore.
    name = next((name for name, (cls, _) in ARCHITECTURES.items() if type(model) is cls), None)
    if name is not None and isinstance(model, (ConvNet, ResNet, Res8)):
        return {"architecture": name, "arguments": asdict(model.config)}
    return {"architecture": None, "class": f"{type(model).__module__}.{type(model).__qualname__}"}


def from_architecture(config: dict[str, Any]) -> nn.Module:
    """Rebuild a network from the description by `architecture_of`.

    Raises:
        ArtifactError: the architecture is not built in, or its numbers are invalid.
    """
    name = config.get("architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise ArtifactError(
            f"one of bitstill's own architectures ({', '.join(sorted(ARCHITECTURES))})",
            given=f"a {config.get('class', name)}",
            where="config.json",
            fix="Build your network and pass it: bitstill.load(folder, model=network).",
        )
    try:
        return _construct(decode(ARCHITECTURES[name][1], config.get("arguments"), "config.json: arguments"))
    except (SpecError, RuntimeError, ValueError) as error:
        raise ArtifactError(
            f"arguments of {name}", given=str(error), where="config.json", fix="The file was edited; deliver the model again."
        ) from None


def _construct(config: _Config) -> nn.Module:
    kinds: dict[type[_Config], type[nn.Module]] = {its_config: cls for cls, its_config in ARCHITECTURES.values()}
    return kinds[type(config)](config)


def _dropout(p: float) -> list[nn.Module]:
    return [nn.Dropout(p)] if p else []
