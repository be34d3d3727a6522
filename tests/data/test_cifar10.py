"""CIFAR-10 from local files: tiny ones made here, and a brief check of the real ones if present."""

from __future__ import annotations

import io
import os
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from bitstill.data import cifar10
from bitstill.data.catalogue import load_task
from bitstill.data.objectives import Classification
from bitstill.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside datasets and pyarrow
pq = pytest.importorskip("pyarrow.parquet")
pa = pytest.importorskip("pyarrow")

REPOSITORY = Path(__file__).parents[2]
REAL = Path(os.environ.get("BITSTILL_DATA", REPOSITORY.parent / "shared" / "data")) / "cifar10"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cifar10, "VALIDATION", 5)
    datasets.disable_progress_bars()


def png(pixels: np.ndarray) -> dict[str, object]:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": "x.png"}


def random_pixels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def write(
    folder: Path, name: str, pixels: np.ndarray, labels: list[object], columns: tuple[str, str] = ("img", "label")
) -> None:
    folder.mkdir(exist_ok=True)
    images = [png(picture) for picture in pixels]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({columns[0]: pa.array(images, kind), columns[1]: labels}), folder / f"{name}.parquet")


@pytest.fixture
def folder(tmp_path):
    """Forty training images in two files and ten test images."""
    path = tmp_path / "data"
    pixels = random_pixels(50)
    write(path, "train-0", pixels[:20], [n % 10 for n in range(20)])
    write(path, "train-1", pixels[20:40], [n % 10 for n in range(20, 40)])
    write(path, "test-0", pixels[40:], list(range(10)))
    return path


def test_pictures_and_labels_are_those_of_the_files(folder):
    task = cifar10.load(folder)
    assert [len(split) for split in (task.train, task.validation, task.test)] == [35, 5, 10]
    assert task.objective == Classification(10) and task.draws == 3
    wanted = random_pixels(50).transpose(0, 3, 1, 2)
    assert np.array_equal(task.test.inputs["image"].numpy(), wanted[40:])
    assert task.test.labels.tolist() == list(range(10))
    pairs = {picture.tobytes(): n % 10 for n, picture in enumerate(wanted[:40])}
    found = {
        image.numpy().tobytes(): int(label)
        for split in (task.train, task.validation)
        for image, label in zip(split.inputs["image"], split.labels, strict=True)
    }
    assert found == pairs, "all forty, each once, each with its label"


def test_the_held_out_pictures_are_the_same_every_time_and_come_from_the_cache_then(folder, monkeypatch):
    first = cifar10.load(folder)
    assert len(list((Path(os.environ["XDG_CACHE_HOME"]) / "bitstill").glob("cifar10-*.npz"))) == 2
    monkeypatch.setattr(cifar10, "_decode", lambda *_: pytest.fail("decoded again"))
    again = cifar10.load(folder)
    for name in ("train", "validation", "test"):
        assert getattr(first, name).digest() == getattr(again, name).digest()


def test_a_changed_file_is_read_anew(folder):
    before = cifar10.load(folder)
    write(folder, "test-0", random_pixels(10, seed=7), list(range(10)))
    after = cifar10.load(folder)
    assert after.test.digest() != before.test.digest() and after.train.digest() == before.train.digest()


def test_a_damaged_cache_is_read_anew(folder):
    before = cifar10.load(folder)
    for path in (Path(os.environ["XDG_CACHE_HOME"]) / "bitstill").glob("*.npz"):
        path.write_bytes(path.read_bytes()[:1000])
    assert cifar10.load(folder).test.digest() == before.test.digest()


def test_a_cache_that_cannot_be_written_is_done_without(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(cifar10.load(folder).test) == 10


def test_the_environment_names_the_folder(folder, monkeypatch):
    folder.rename(folder.parent / "cifar10")
    monkeypatch.setenv("BITSTILL_DATA", str(folder.parent))
    assert len(load_task("cifar10").test) == 10


def test_grey_pictures_become_coloured_ones(folder):
    images = [png(picture[..., 0]) for picture in random_pixels(10)]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({"img": pa.array(images, kind), "label": list(range(10))}), folder / "test-0.parquet")
    found = cifar10.load(folder).test.inputs["image"].numpy()
    assert found.shape == (10, 3, 32, 32) and np.array_equal(found[:, 0], random_pixels(10)[..., 0])
    assert np.array_equal(found[:, 0], found[:, 2])


def no_files(folder):
    for path in folder.glob("test*"):
        path.unlink()


def no_folder(folder):
    folder.rename(folder.with_name("elsewhere"))


def other_columns(folder):
    write(folder, "test-0", random_pixels(4), [0, 1, 2, 3], ("image", "label"))


def labels_too_large(folder):
    write(folder, "test-0", random_pixels(4), [0, 1, 2, 10])


def negative_labels(folder):
    write(folder, "test-0", random_pixels(4), [0, 1, 2, -1])


def missing_labels(folder):
    write(folder, "test-0", random_pixels(4), [0, 1, 2, None])


def named_labels(folder):
    write(folder, "test-0", random_pixels(2), ["cat", "dog"])


def no_rows(folder):
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({"img": pa.array([], kind), "label": pa.array([], pa.int64())}), folder / "test-0.parquet")


def truncated_file(folder):
    path = folder / "test-0.parquet"
    path.write_bytes(path.read_bytes()[:2000])


def no_parquet_at_all(folder):
    (folder / "test-0.parquet").write_text("hello")


def damaged_picture(folder):
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    images = pa.array([{"bytes": b"not a picture", "path": "x.png"}], kind)
    pq.write_table(pa.table({"img": images, "label": [1]}), folder / "test-0.parquet")


def missing_picture(folder):
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({"img": pa.array([None], kind), "label": [1]}), folder / "test-0.parquet")


def pictures_of_two_sizes(folder):
    images = [png(picture) for picture in (random_pixels(1)[0], random_pixels(1)[0][:16])]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({"img": pa.array(images, kind), "label": [1, 2]}), folder / "test-0.parquet")


def no_pictures(folder):
    pq.write_table(pa.table({"img": [1.5], "label": [1]}), folder / "test-0.parquet")


def too_few_to_hold_any_out(folder):
    for path in folder.glob("train*"):
        path.unlink()
    write(folder, "train-0", random_pixels(3), [0, 1, 2])


BAD = {
    no_files: r"test\.parquet.*Point --data",
    no_folder: r"train\.parquet.*Point --data",
    other_columns: r"columns img and label.*image",
    labels_too_large: "labels 0 to 9.*such as 10",
    negative_labels: "labels 0 to 9.*such as -1",
    missing_labels: "labels 0 to 9.*such as None",
    named_labels: "labels 0 to 9.*such as 'cat'",
    no_rows: "intact parquet files with rows",
    truncated_file: "intact parquet files",
    no_parquet_at_all: "intact parquet files",
    damaged_picture: "Pillow can read",
    missing_picture: "Pillow can read",
    pictures_of_two_sizes: "images of equal size",
    no_pictures: "Pillow can read",
    too_few_to_hold_any_out: "at least one sample",
}


@pytest.mark.parametrize("break_", BAD, ids=lambda function: function.__name__)
def test_data_that_cannot_be_used_are_a_data_error(folder, break_):
    break_(folder)
    with pytest.raises(DataError, match=BAD[break_]):
        cifar10.load(folder)


@pytest.mark.parametrize("error", [ConnectionError("offline"), datasets.exceptions.DatasetNotFoundError("no such set")])
def test_a_hub_that_does_not_answer_is_a_data_error_that_names_the_way_out(monkeypatch, error):
    def refuse(*_, **__):
        raise error

    monkeypatch.delenv("BITSTILL_DATA", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match=r"uoft-cs/cifar10.*--data or BITSTILL_DATA"):
        load_task("cifar10")


@pytest.fixture
def real():
    files = sorted(REAL.glob("*.parquet"))
    if len(files) < 2:
        pytest.skip(f"no CIFAR-10 parquet files in {REAL}; set BITSTILL_DATA to the folder that holds cifar10/")
    return files


def test_the_real_files_hold_all_sixty_thousand(real):
    rows = {name: sum(pq.read_metadata(f).num_rows for f in real if f.name.startswith(name)) for name in ("train", "test")}
    assert rows == {"train": 50_000, "test": 10_000}
    labels = pq.read_table(next(f for f in real if f.name.startswith("test")), columns=["label"])["label"].to_pylist()
    assert [labels.count(n) for n in range(10)] == [1000] * 10


def test_a_few_real_pictures_are_what_pillow_decodes(real, tmp_path):
    for name in ("train", "test"):
        file = next(f for f in real if f.name.startswith(name))
        batch = next(pq.ParquetFile(file).iter_batches(batch_size=30))
        pq.write_table(pa.Table.from_batches([batch]), tmp_path / f"{name}.parquet")
    task = cifar10.load(tmp_path)
    rows = batch.to_pylist()
    for row, image, label in zip(rows, task.test.inputs["image"], task.test.labels, strict=True):
        wanted = np.asarray(Image.open(io.BytesIO(row["img"]["bytes"])).convert("RGB")).transpose(2, 0, 1)
        assert np.array_equal(image.numpy(), wanted) and int(label) == row["label"]
    seen = task.forward(lambda x: x, task.sample())
    assert seen.shape == (2, 3, 32, 32) and torch.isfinite(seen).all()
