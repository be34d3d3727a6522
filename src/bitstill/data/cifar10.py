"""CIFAR-10 (Krizhevsky 2009): 60,000 images of 32 x 32 pixels in ten classes, through Hugging Face `datasets`."""

from __future__ import annotations

import contextlib
import hashlib
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from bitstill.artifact.files import write_file
from bitstill.data.images import DRAWS, normalising_forward, shift_and_flip
from bitstill.data.objectives import Classification
from bitstill.data.shuffle import permutation
from bitstill.data.sources import from_hub, from_parquet, parquet_files
from bitstill.data.task import Split, Task
from bitstill.errors import DataError, need_package

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
HUB_NAME = "uoft-cs/cifar10"
VALIDATION = 5_000
"""Images held out of the 50,000 training images."""


def load(data: Path | None = None) -> Task:
    """Load the CIFAR-10 task.

    Args:
        data: folder with train.parquet and test.parquet, or their pieces, columns `img` and `label`; None looks in
            `$BITSTILL_DATA/cifar10`, then on the hub under `HUB_NAME`.

    Raises:
        DataError: files are missing, or columns or labels are invalid.
        MissingPackageError: without `datasets` or Pillow.
    """
    folder = data or (Path(os.environ["BITSTILL_DATA"]) / "cifar10" if "BITSTILL_DATA" in os.environ else None)
    images, labels = _split("train", folder)
    order = permutation(len(labels), "cifar10", "validation")
    held_out, training = order[:VALIDATION], order[VALIDATION:]
    test_images, test_labels = _split("test", folder)
    return Task(
        "cifar10",
        Split({"image": images[training]}, labels[training]),
        Split({"image": images[held_out]}, labels[held_out]),
        Split({"image": test_images}, test_labels),
        Classification(10),
        normalising_forward(MEAN, STD),
        shift_and_flip,
        DRAWS,
    )


def _split(name: str, folder: Path | None) -> tuple[torch.Tensor, torch.Tensor]:
    if folder is None:
        return _decode(from_hub(HUB_NAME, None, name, where=f"CIFAR-10 {name}", purpose="CIFAR-10"), name)
    files = parquet_files(folder, name)
    cache = _cache_path(files)
    unusable = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile)
    with contextlib.suppress(*unusable), open(cache, "rb") as file, np.load(file) as arrays:
        return torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])
    rows = from_parquet(files, folder, purpose="CIFAR-10")
    images, labels = _decode(rows, name)
    _store(cache, images, labels)
    return images, labels


def _decode(rows: Any, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    datasets = need_package("datasets", extra="all", purpose="CIFAR-10")
    if not {"img", "label"} <= set(rows.column_names):
        raise DataError(
            "columns img and label",
            given=str(rows.column_names),
            where=f"CIFAR-10 {name}",
            fix="Rename the columns of the file.",
        )
    classes = rows["label"][:]
    wrong = [label for label in classes if not isinstance(label, int) or not 0 <= label <= 9]
    if wrong or not classes:
        given = f"{len(wrong)} others, such as {wrong[0]!r}" if wrong else "no rows"
        raise DataError("labels 0 to 9", given=given, where=f"CIFAR-10 {name}", fix="Check the file.")
    try:
        rows = rows.cast_column("img", datasets.Image())
        progress = tqdm(rows, desc=f"decoding {name} images", unit="image", leave=False, mininterval=1.0)
        stack = np.stack([np.asarray(row["img"].convert("RGB")) for row in progress])
    except (OSError, ValueError, AttributeError, TypeError, NotImplementedError) as error:
        raise DataError(
            "images of equal size that Pillow can read", given=str(error), where=f"CIFAR-10 {name}: img", fix="Check the file."
        ) from error
    return torch.from_numpy(stack).permute(0, 3, 1, 2).contiguous(), torch.tensor(classes, dtype=torch.int64)


def _cache_path(files: list[str]) -> Path:
    """Path of the cache of decoded images, keyed by the files' names, sizes and times, so that a changed file is read again."""
    stamp = repr([(file, os.stat(file).st_size, os.stat(file).st_mtime_ns) for file in files])
    root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "bitstill"
    return root / f"cifar10-{hashlib.sha256(stamp.encode()).hexdigest()[:16]}.npz"


def _store(cache: Path, images: torch.Tensor, labels: torch.Tensor) -> None:
    import io

    buffer = io.BytesIO()
    np.savez(buffer, images=images.numpy(), labels=labels.numpy())
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_file(cache, buffer.getvalue())
    except OSError:
        pass  # Without a cache, images are decoded again next time.
