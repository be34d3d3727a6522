"""Spoken words: spectrograms against another library, clips from every storage format, clear errors."""

from __future__ import annotations

import io
import json
import os
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from bitstill.data.catalogue import load_task
from bitstill.data.mel import LogMel, filters
from bitstill.data.objectives import Classification
from bitstill.data.speech import KEYWORDS, SPEECH, shift_and_noise
from bitstill.errors import DataError, SpecError

RATE = 8_000
REPOSITORY = Path(__file__).parents[2]
REAL = Path(os.environ.get("BITSTILL_DATA", REPOSITORY.parent / "shared" / "data")) / "fsdd"


@pytest.mark.parametrize(("rate", "window", "bands"), [(8_000, 256, 40), (16_000, 512, 40), (16_000, 400, 23)])
def test_filters_are_those_of_another_library(rate, window, bands):
    audio = pytest.importorskip("transformers.audio_utils")
    wanted = audio.mel_filter_bank(window // 2 + 1, bands, 20.0, rate / 2, rate, norm="slaney", mel_scale="htk")
    np.testing.assert_allclose(filters(rate, window, bands).numpy().T, wanted, atol=1e-6)


def test_spectrograms_are_those_of_another_library():
    audio = pytest.importorskip("transformers.audio_utils")
    mel = LogMel(RATE, 4_000, 256, 100)
    clip = (np.random.default_rng(0).standard_normal(4_000) * 3_000).astype(np.int16)
    bank = audio.mel_filter_bank(129, 40, 20.0, RATE / 2, RATE, norm="slaney", mel_scale="htk")
    hann = audio.window_function(256, "hann")
    wanted = audio.spectrogram(
        clip / 32_768.0, hann, 256, 100, power=2.0, center=True, pad_mode="constant", mel_filters=bank, mel_floor=0.0
    )
    wanted = np.log(wanted + 1e-7).T
    wanted = (wanted - wanted.mean()) / wanted.std()
    found = mel(torch.from_numpy(clip[None]))
    assert found.shape == (1, 1, 41, 40)
    np.testing.assert_allclose(found[0, 0].numpy(), wanted, atol=2e-3)


def test_loudness_does_not_matter_and_silence_is_finite():
    mel = LogMel(RATE, 4_000, 256, 100)
    clip = torch.randn(1, 4_000) * 300
    torch.testing.assert_close(mel(clip), mel(clip * 20), atol=0.05, rtol=0.05)
    assert torch.isfinite(mel(torch.zeros(2, 4_000, dtype=torch.int16))).all()


@pytest.mark.parametrize("sizes", [{"window": 1}, {"window": 99_999}, {"hop": 0}, {"bands": 0}])
def test_sizes_that_cannot_be_are_refused(sizes):
    with pytest.raises(SpecError, match="positive sizes"):
        LogMel(**sizes)


def test_shift_and_noise_by_hand():
    audio = torch.arange(1, 9, dtype=torch.int16).repeat(3, 1) * 100
    u = torch.tensor([[1.0, 0.0, 0.5], [0.0, 0.0, 0.5], [0.5, 1.0, 0.25]])
    found = shift_and_noise({"audio": audio, "labels": torch.zeros(3)}, u, 2)["audio"]
    assert found[0].tolist() == [0, 0, 100, 200, 300, 400, 500, 600]
    assert found[1].tolist() == [300, 400, 500, 600, 700, 800, 0, 0]
    noise = found[2] - audio[2]
    loud = float(audio[2].float().square().mean().sqrt())
    assert 0.02 * loud < float(noise.square().mean().sqrt()) < 0.25 * loud
    again = shift_and_noise({"audio": audio}, u, 2)["audio"]
    assert torch.equal(found, again)


def write(folder: Path, clips: list[Any], labels: list[Any], part: str = "train", **columns: Any) -> None:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table({"audio": clips, "label": labels, **columns}), folder / f"{part}.parquet")


def clip(length: int, value: int = 1) -> list[int]:
    return [value] * length


def wav(samples: np.ndarray[Any, Any], rate: int = 16_000) -> dict[str, Any]:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return {"bytes": buffer.getvalue(), "path": "clip.wav"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside datasets
def test_clips_are_centred_and_cut_to_one_length(tmp_path):
    lengths = [10, 6_000, 6_010, 7] * 5
    write(tmp_path / "d", [clip(n) if n < 6_010 else list(range(n)) for n in lengths], [n % 2 for n in range(20)])
    write(tmp_path / "d", [clip(3)], [1], "test")
    task = load_task("fsdd", tmp_path / "d")
    assert task.objective.width == 2 and len(task.train) == 18 and len(task.validation) == 2
    whole = torch.cat([task.train.inputs["audio"], task.validation.inputs["audio"]])
    assert whole.dtype == torch.int16 and whole.shape == (20, 6_000)
    sums = sorted(int((row != 0).sum()) for row in whole)
    assert sums == [7] * 5 + [10] * 5 + [6_000] * 10
    test = task.test.inputs["audio"][0]
    assert test.nonzero().flatten().tolist() == [2998, 2999, 3000]
    cut = whole[whole.max(1).values > 1][0]
    assert cut[0] == 5 and cut[-1] == 6_004


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside datasets
def test_speech_commands_has_ten_words_others_and_silence(tmp_path):
    datasets = pytest.importorskip("datasets")
    names = [*KEYWORDS, "bed", "cat", "_silence_"]
    rng = np.random.default_rng(0)
    rows = [n % 13 for n in range(130)]
    stored = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = datasets.Features({"audio": stored, "label": datasets.ClassLabel(names=names)})
    (tmp_path / "d").mkdir()
    for part in ("train", "test"):
        clips = [wav(rng.integers(-999, 999, 16_000)) for _ in rows]
        table = datasets.Dataset.from_dict({"audio": clips, "label": rows}, features)
        table.to_parquet(str(tmp_path / "d" / f"{part}.parquet"))
    task = load_task("speech-commands", tmp_path / "d")
    assert task.objective == Classification(12, (*KEYWORDS, "unknown", "silence"))
    counts = torch.bincount(task.test.labels, minlength=12).tolist()
    assert counts[:10] == [10] * 10 and counts[11] == 10 and 0 < counts[10] <= 4, "one in ten of the other words"


def test_the_preprocessor_is_kept_beside_the_model(tmp_path):
    SPEECH["fsdd"].mel.save(tmp_path)
    kept = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert LogMel(**{key: value for key, value in kept.items() if key != "feature_extractor_type"}) == SPEECH["fsdd"].mel


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside datasets
@pytest.mark.parametrize(
    ("clips", "labels", "message"),
    [
        ([[1, 2]] * 11 + [[]], [0] * 12, r"fsdd train, row 11: wanted audio, got an empty clip"),
        ([[1.5, 2.5]] * 12, [0] * 12, r"row 0: wanted audio, got ValueError: an array of float64"),
        ([[99_999]] * 12, [0] * 12, r"row 0: wanted audio, got ValueError: an array of int64"),
        ([{"bytes": b"RIFFnonsense", "path": "a"}] * 12, [0] * 12, r"row 0: wanted audio, got \w+"),
        ([wav(np.ones(9), 16_000)] * 12, [0] * 12, r"got ValueError: 1 channels of 16 bits at 16000 Hz"),
        ([[1, 2]] * 12, [-1] * 12, r"wanted labels 0, 1, 2 and so on, got -1"),
        ([[1, 2]] * 12, ["a"] * 12, r"wanted labels 0, 1, 2 and so on, got 'a'"),
        ([[1, 2]] * 3, [0] * 3, r"wanted at least 10 clips to train on, got 3"),
    ],
)
def test_bad_files_are_refused(tmp_path, clips, labels, message):
    for part in ("train", "test"):
        write(tmp_path / "d", clips, labels, part)
    with pytest.raises(DataError, match=message):
        load_task("fsdd", tmp_path / "d")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside datasets
def test_the_digits_are_read_from_their_recordings_as_published(tmp_path):
    for digit in (0, 1):
        for take in range(12):
            samples = np.full(100, 1 + digit * 100 + take)
            (tmp_path / f"{digit}_theo_{take}.wav").write_bytes(wav(samples, RATE)["bytes"])
    (tmp_path / "notes.txt").write_text("not a clip")
    task = load_task("fsdd", tmp_path)
    assert (len(task.train) + len(task.validation), len(task.test)) == (14, 10)
    loudest = task.test.inputs["audio"].max(1).values
    assert sorted(loudest.tolist()) == [*range(1, 6), *range(101, 106)]
    assert torch.equal(task.test.labels, (loudest > 100).long())


def test_digits_without_a_folder_say_where_to_find_them(monkeypatch):
    monkeypatch.delenv("BITSTILL_DATA", raising=False)
    with pytest.raises(DataError, match=r"a folder with the clips, got none.*recordings"):
        load_task("fsdd")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside datasets
def test_missing_files_columns_and_rows_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"train.parquet, or its pieces, got no such files"):
        load_task("fsdd", tmp_path / "nowhere")
    (tmp_path / "d").mkdir()
    pq.write_table(pa.table({"sound": [[1]], "label": [1]}), tmp_path / "d" / "train.parquet")
    with pytest.raises(DataError, match=r"columns audio and label, got \['sound', 'label'\]"):
        load_task("fsdd", tmp_path / "d")
    (tmp_path / "d" / "train.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="intact parquet files with rows"):
        load_task("fsdd", tmp_path / "d")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside datasets
@pytest.mark.skipif(not REAL.is_dir(), reason=f"needs the spoken digits in {REAL} (set BITSTILL_DATA)")
def test_the_spoken_digits_are_all_there():
    task = load_task("fsdd", REAL)
    assert (len(task.train), len(task.validation), len(task.test)) == (2_430, 270, 300)
    assert task.objective.width == 10 and task.test.labels.bincount().tolist() == [30] * 10
    x = SPEECH["fsdd"].mel(task.test.inputs["audio"])
    assert x.shape == (300, 1, 61, 40) and torch.isfinite(x).all()
