"""scikit-learn's digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from bitstill.data import digits
from bitstill.data.catalogue import TASKS, load_task
from bitstill.data.objectives import Classification
from bitstill.data.shuffle import uniform
from bitstill.errors import SpecError


@pytest.fixture(scope="module")
def task():
    return load_task("digits")


def splits(task):
    return task.train, task.validation, task.test


def test_sizes_types_and_classes(task):
    assert [len(split) for split in splits(task)] == [1100, 200, 497]
    assert task.objective == Classification(10)
    for split in splits(task):
        assert split.inputs["image"].dtype == torch.uint8 and split.inputs["image"].shape[1:] == (1, 8, 8)
        assert set(split.labels.tolist()) == set(range(10))


def test_every_picture_of_the_set_is_in_exactly_one_split(task):
    """1,797 images, some of them equal: compared as multisets of (image, label)."""
    pixels, labels = load_digits(return_X_y=True)
    wanted = sorted((np.rint(p * 255 / 16).astype(np.uint8).tobytes(), int(y)) for p, y in zip(pixels, labels, strict=True))
    found = sorted(
        (image.numpy().tobytes(), int(label))
        for split in splits(task)
        for image, label in zip(split.inputs["image"], split.labels, strict=True)
    )
    assert found == wanted


def test_the_split_is_the_same_every_time_whatever_the_random_state(task):
    torch.manual_seed(99)
    again = load_task("digits")
    assert [split.digest() for split in splits(again)] == [split.digest() for split in splits(task)]


def test_the_forward_hands_normalised_pictures_to_the_model(task):
    batch = task.sample(4)
    seen = task.forward(lambda x: x, batch)
    assert torch.allclose(seen, (batch["image"].float() / 255 - 0.3) / 0.37, atol=1e-6)
    every = task.forward(lambda x: x, task.train.take(torch.arange(1100)))
    assert abs(float(every.mean())) < 0.1 and abs(float(every.std()) - 1) < 0.1


def test_augmentation_shifts_by_at_most_a_pixel_and_never_mirrors(task):
    batch = task.train.take(torch.arange(64))
    assert task.augment is not None
    changed = task.augment(batch, uniform(1, batch["index"], task.draws))["image"]
    for before, after in zip(batch["image"][:, 0], changed[:, 0], strict=True):
        padded = torch.nn.functional.pad(before, (1, 1, 1, 1))
        assert any(torch.equal(padded[r : r + 8, c : c + 8], after) for r in range(3) for c in range(3))


def test_a_data_folder_makes_no_sense():
    with pytest.raises(SpecError, match=r"digits: wanted no --data, got .*leave it out"):
        digits.load(Path("somewhere"))


def test_an_unknown_task_is_named_with_the_nearest():
    with pytest.raises(SpecError, match=r"got 'digit'. Did you mean 'digits'\?"):
        load_task("digit")
    assert {"cifar10", "digits", "sst2", "mnli-mm"} <= set(TASKS)
