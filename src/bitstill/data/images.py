"""Shared parts of image tasks: normalisation, and augmentation from given random numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitstill.data.task import Batch, Forward

DRAWS = 3
"""Uniform numbers per image for `shift_and_flip`: row, column, flip."""


def normalising_forward(mean: Sequence[float], std: Sequence[float]) -> Forward:
    """Forward function that scales uint8 images (N, C, H, W) to [0, 1] and normalises each channel."""
    shift = torch.tensor(mean).view(1, -1, 1, 1)
    scale = 1.0 / torch.tensor(std).view(1, -1, 1, 1)

    def forward(model: nn.Module, batch: Batch) -> Tensor:
        x = batch["image"]
        x = (x.float() / 255.0 - shift.to(x.device)) * scale.to(x.device)
        # Convolutions on CPUs and tensor cores read channels-last memory without a copy.
        logits: Tensor = model(x.contiguous(memory_format=torch.channels_last))
        return logits

    return forward


def shift_and_flip(batch: Batch, u: Tensor, *, pad: int = 4, flip: bool = True) -> Batch:
    """Zero-pad each image, crop it at a random position, and flip half of the images.

    Args:
        batch: "image" (N, C, H, W).
        u: uniform numbers (N, 3): row, column, flip.
        pad: largest shift in pixels.
        flip: whether to flip horizontally.
    """
    x = batch["image"]
    count, _, height, width = x.shape
    padded = F.pad(x, (pad, pad, pad, pad))
    rows = (u[:, 0] * (2 * pad + 1)).long().view(-1, 1) + torch.arange(height)
    columns = (u[:, 1] * (2 * pad + 1)).long().view(-1, 1) + torch.arange(width)
    if flip:
        columns = torch.where(u[:, 2:3] < 0.5, columns.flip(1), columns)
    picked = padded[torch.arange(count).view(-1, 1, 1), :, rows.unsqueeze(2), columns.unsqueeze(1)]
    return {**batch, "image": picked.permute(0, 3, 1, 2)}
