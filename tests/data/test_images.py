"""Augmentation against a loop over single images."""

from __future__ import annotations

import pytest
import torch

from bitstill.data.images import normalising_forward, shift_and_flip


def one_picture(picture, u, pad, flip):
    """Zero-pad, crop at a row and a column, mirror: pixel by pixel."""
    channels, height, width = picture.shape
    top, left = int(u[0] * (2 * pad + 1)) - pad, int(u[1] * (2 * pad + 1)) - pad
    result = torch.zeros_like(picture)
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                column = width - 1 - j if flip and u[2] < 0.5 else j
                y, x = i + top, column + left
                if 0 <= y < height and 0 <= x < width:
                    result[c, i, j] = picture[c, y, x]
    return result


@pytest.mark.parametrize(("pad", "flip"), [(4, True), (4, False), (1, True), (0, True), (0, False)])
@pytest.mark.parametrize("shape", [(3, 7, 5), (1, 6, 6)])
def test_shift_and_flip_is_the_slow_loop(shape, pad, flip):
    images = torch.randint(0, 256, (12, *shape), dtype=torch.uint8)
    u = torch.rand(12, 3)
    u[0], u[1] = torch.tensor([0.0, 0.0, 0.0]), torch.tensor([1 - 2**-24, 1 - 2**-24, 0.5])
    batch = {"image": images, "labels": torch.arange(12)}
    found = shift_and_flip(batch, u, pad=pad, flip=flip)
    wanted = torch.stack([one_picture(image, row.tolist(), pad, flip) for image, row in zip(images, u, strict=True)])
    assert torch.equal(found["image"], wanted)
    assert found["labels"] is batch["labels"] and found["image"].dtype == torch.uint8


def test_every_shift_and_both_sides_occur_equally_often():
    picture = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3).expand(9000, 1, 3, 3)
    found = shift_and_flip({"image": picture}, torch.rand(9000, 3), pad=1)["image"]
    kinds, counts = torch.unique(found.flatten(1), dim=0, return_counts=True)
    assert len(kinds) == 18 and counts.min() > 350 and counts.max() < 650


def test_normalising_scales_bytes_to_one_and_each_channel_by_its_own_mean_and_deviation():
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    seen = normalising_forward((0.1, 0.2, 0.3), (0.5, 0.25, 2.0))(lambda x: x, {"image": images})
    for channel, (mean, std) in enumerate([(0.1, 0.5), (0.2, 0.25), (0.3, 2.0)]):
        assert torch.allclose(seen[:, channel], (images[:, channel] / 255 - mean) / std, atol=1e-6)
