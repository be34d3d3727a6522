"""Res8: small residual networks for keyword spotting (Tang and Lin 2018), as in their code (honk)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor, nn

from bitstill.constraints import Count, Range, check_fields


@dataclass(frozen=True)
class Res8Config:
    """A residual network over log-mel spectrograms.

    Args:
        width: feature maps: 45 (Res8, 110,307 parameters with 12 classes) or 19 (Res8-narrow, 19,905).
        blocks: residual blocks of two convolutions.
        pool: window of the average pooling after the first convolution, frames by mel bands.
        classes: outputs.
    """

    width: Count = 45
    blocks: Annotated[int, Range(least=1, most=1_000)] = 3
    pool: tuple[Count, Count] = (4, 3)
    classes: Count = 12

    def __post_init__(self) -> None:
        check_fields(self)


class Res8(nn.Module):
    """Spectrograms (N, 1, frames, mel bands) -> logits (N, classes).

    Convolution, ReLU, average pooling; blocks of two convolutions, each followed by ReLU and batch norm without parameters;
    mean over all positions; classifier. A block's shortcut is the previous block's sum before its norm.
    """

    def __init__(self, config: Res8Config) -> None:
        super().__init__()
        self.config = config
        self.stem = nn.Conv2d(1, config.width, 3, padding=1, bias=False)
        self.pool = nn.AvgPool2d(config.pool)
        self.blocks = nn.ModuleList(_Block(config.width) for _ in range(config.blocks))
        self.classifier = nn.Linear(config.width, config.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Spectrograms to logits."""
        x = residual = self.pool(F.relu(self.stem(x)))
        for block in self.blocks:
            x, residual = block(x, residual)
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width, affine=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width, affine=False)

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        y = self.norm1(F.relu(self.conv1(x)))
        total = residual + F.relu(self.conv2(y))
        return self.norm2(total), total
