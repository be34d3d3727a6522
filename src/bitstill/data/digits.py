"""Handwritten digits from scikit-learn: 1,797 images of 8 x 8 pixels, without download (Alpaydin and Kaynak 1998)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from bitstill.data.images import DRAWS, normalising_forward, shift_and_flip
from bitstill.data.objectives import Classification
from bitstill.data.shuffle import permutation
from bitstill.data.task import Batch, Split, Task
from bitstill.errors import SpecError, need_package

TRAIN, VALIDATION = 1100, 200
"""Sizes of the first two parts of a fixed permutation; the remaining 497 images are the test split."""


def load(data: Path | None = None) -> Task:
    """Load the digits task; its images are part of scikit-learn.

    Args:
        data: must be None.

    Raises:
        SpecError: `data` is given.
        MissingPackageError: without scikit-learn.
    """
    if data is not None:
        raise SpecError("no --data", given=str(data), where="digits", fix="The images come with scikit-learn; leave it out.")
    datasets = need_package("sklearn.datasets", extra="all", purpose="the digits task")
    pixels, labels = datasets.load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).reshape(-1, 1, 8, 8)
    images = (images * (255.0 / 16.0)).round().to(torch.uint8)
    classes = torch.from_numpy(labels).long()
    order = permutation(len(classes), "digits")
    parts = order.split([TRAIN, VALIDATION, len(order) - TRAIN - VALIDATION])
    train, validation, test = (Split({"image": images[part]}, classes[part]) for part in parts)
    return Task("digits", train, validation, test, Classification(10), normalising_forward([0.3], [0.37]), _augment, DRAWS)


def _augment(batch: Batch, u: Tensor) -> Batch:
    return shift_and_flip(batch, u, pad=1, flip=False)
