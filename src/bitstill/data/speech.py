"""Spoken words: the Free Spoken Digit Dataset and Google's Speech Commands (Warden 2018), through Hugging Face `datasets`."""

from __future__ import annotations

import io
import os
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from bitstill.data.mel import LogMel
from bitstill.data.objectives import Classification
from bitstill.data.shuffle import permutation
from bitstill.data.sources import from_hub, from_parquet, parquet_files
from bitstill.data.task import Batch, Split, Task
from bitstill.errors import DataError, need_package

DRAWS = 3
"""Uniform numbers per clip for augmentation: shift, loudness of the noise, position in the noise."""
SHIFT = 0.1
"""Largest shift in seconds."""
NOISE = 0.1
"""Largest loudness of the noise, as a fraction of the clip's."""
KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")


@dataclass(frozen=True)
class Speech:
    """A data set of spoken words.

    Args:
        folder: its folder in `$BITSTILL_DATA`, with train.parquet and test.parquet or pieces, columns `audio` and `label`.
        hub: its name and configuration on the hub, and the revision with parquet files; None if it is not on the hub.
        mel: the spectrogram.
        keywords: words with a class of their own; all others share a class, and silence is another. None gives every word a
            class.
    """

    folder: str
    hub: tuple[str, str, str] | None
    mel: LogMel
    keywords: tuple[str, ...] | None = None


SPEECH = {
    "fsdd": Speech("fsdd", None, LogMel(8_000, 6_000, 256, 100)),
    "speech-commands": Speech(
        "speech_commands", ("google/speech_commands", "v0.02", "refs/convert/parquet"), LogMel(), KEYWORDS
    ),
}


def load(name: str, data: Path | None = None) -> Task:
    """Load a task of spoken words. A tenth of train, at most 2,000 clips, is held out for validation.

    Args:
        name: a key of `SPEECH`.
        data: folder with parquet files, or for "fsdd" its published `recordings`; None looks in `$BITSTILL_DATA`, then on
            the hub.

    Raises:
        DataError: files are missing, or a clip or a label cannot be read.
        MissingPackageError: without `datasets`.
    """
    speech = SPEECH[name]
    folder = data or (Path(os.environ["BITSTILL_DATA"]) / speech.folder if "BITSTILL_DATA" in os.environ else None)
    audio, labels, classes = _split(name, speech, "train", folder)
    test_audio, test_labels, _ = _split(name, speech, "test", folder)
    order = permutation(len(labels), name, "validation")
    count = min(2_000, len(labels) // 10)
    if count < 1:
        raise DataError("at least 10 clips to train on", given=str(len(labels)), where=name, fix="Check the files.")
    held_out, training = order[:count], order[count:]
    mel = speech.mel

    def forward(model: nn.Module, batch: Batch) -> Tensor:
        logits: Tensor = model(mel(batch["audio"]))
        return logits

    def augment(batch: Batch, u: Tensor) -> Batch:
        return shift_and_noise(batch, u, round(SHIFT * mel.rate))

    return Task(
        name,
        Split({"audio": audio[training]}, labels[training]),
        Split({"audio": audio[held_out]}, labels[held_out]),
        Split({"audio": test_audio}, test_labels),
        Classification(len(classes), classes),
        forward,
        augment,
        DRAWS,
        preprocessor=mel,
    )


def shift_and_noise(batch: Batch, u: Tensor, largest: int) -> Batch:
    """Shift each clip by up to `largest` samples, filling with silence, and add white noise.

    Args:
        batch: "audio" (N, samples), 16-bit samples.
        u: uniform numbers (N, 3): shift, loudness of the noise up to a tenth of the clip's, position in the noise.
        largest: largest shift in samples.
    """
    audio = batch["audio"].float()
    samples = audio.shape[1]
    shift = ((2 * u[:, :1] - 1) * largest).round().long()
    source = torch.arange(samples, device=audio.device) - shift.to(audio.device)
    shifted = audio.gather(1, source.clamp(0, samples - 1)) * ((source >= 0) & (source < samples))
    white = torch.from_numpy(np.random.default_rng(0).standard_normal(4 * samples).astype(np.float32)).to(audio.device)
    place = (u[:, 2:3] * 3 * samples).long() + torch.arange(samples)
    loudness = u[:, 1:2].to(audio.device) * NOISE * shifted.square().mean(1, keepdim=True).sqrt()
    return {**batch, "audio": shifted + loudness * white[place.to(audio.device)]}


def _split(name: str, speech: Speech, part: str, folder: Path | None) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Clips int16 (N, samples), labels (N,), and the names of the classes."""
    rows = _rows(speech, part, folder)
    where = f"{name} {part}"
    if not {"audio", "label"} <= set(rows.column_names):
        given, fix = str(rows.column_names), "Rename the columns of the file."
        raise DataError("columns audio and label", given=given, where=where, fix=fix)
    if not len(rows):
        raise DataError("clips", given="no rows", where=where, fix="Check the files.")
    datasets = need_package("datasets", extra="all", purpose="speech tasks")
    if isinstance(rows.features["audio"], datasets.Audio):
        rows = rows.cast_column("audio", datasets.Audio(decode=False))  # decoding plain WAV needs no further package
    names = _names(rows, where)
    classes = names if speech.keywords is None else (*speech.keywords, "unknown", "silence")
    clips, labels = [], []
    for index, row in enumerate(tqdm(rows, desc=f"reading {part} clips", unit="clip", leave=False, mininterval=1.0)):
        label = _class(names[row["label"]], speech.keywords)
        if speech.keywords is not None and label == len(KEYWORDS) and index % 10:
            continue  # other words are twenty times as frequent as any keyword
        clips.append(_clip(row["audio"], speech.mel, f"{where}, row {index}"))
        labels.append(label)
    return torch.from_numpy(np.stack(clips)), torch.tensor(labels, dtype=torch.int64), classes


def _rows(speech: Speech, part: str, folder: Path | None) -> Any:
    datasets = need_package("datasets", extra="all", purpose="speech tasks")
    if folder is None and speech.hub is None:
        fix = "Point --data at the folder `recordings` of github.com/Jakobovski/free-spoken-digit-dataset."
        raise DataError("a folder with the clips", given="none", where=f"{speech.folder} {part}", fix=fix)
    if folder is None:
        assert speech.hub is not None
        hub, configuration, revision = speech.hub
        where = f"{speech.folder} {part}"
        return from_hub(hub, configuration, part, where=where, purpose="speech tasks", revision=revision)
    recordings = sorted(folder.glob("[0-9]_*_*.wav")) if speech.hub is None else []
    if recordings:
        return datasets.Dataset.from_list([_recording(path) for path in recordings if _is_test(path) == (part == "test")])
    return from_parquet(parquet_files(folder, part), folder, purpose="speech tasks")


def _recording(path: Path) -> dict[str, Any]:
    """Row for a file of the Free Spoken Digit Dataset, named digit_speaker_take.wav."""
    return {"audio": {"bytes": path.read_bytes(), "path": path.name}, "label": int(path.name[0])}


def _is_test(path: Path) -> bool:
    """Whether a file belongs to the test split: takes 0 to 4."""
    take = path.stem.rpartition("_")[2]
    return take.isdecimal() and int(take) < 5


def _names(rows: Any, where: str) -> tuple[str, ...]:
    """Names of the labels 0, 1, ..., from the data set's own list or from the labels themselves."""
    datasets = need_package("datasets", extra="all", purpose="speech tasks")
    feature = rows.features["label"]
    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names)
    labels = rows["label"][:]
    if any(not isinstance(label, int) or label < 0 for label in labels):
        odd = next(label for label in labels if not isinstance(label, int) or label < 0)
        raise DataError("labels 0, 1, 2 and so on", given=repr(odd), where=where, fix="Check the file.")
    return tuple(str(label) for label in range(max(labels) + 1))


def _class(word: str, keywords: Sequence[str] | None) -> int:
    if keywords is None:
        return int(word)
    if word in keywords:
        return list(keywords).index(word)
    return len(keywords) + (1 if word == "_silence_" else 0)


def _clip(audio: Any, mel: LogMel, where: str) -> np.ndarray[Any, Any]:
    """One clip as int16 (samples,): a longer one is cropped to its centre, a shorter one padded with silence."""
    try:
        samples = _samples(audio, mel.rate)
    except (wave.Error, EOFError, ValueError, TypeError, KeyError) as error:
        fix = "Store 16-bit samples, or the bytes of a mono WAV file."
        raise DataError("audio", given=f"{type(error).__name__}: {error}", where=where, fix=fix) from error
    if not samples.size:
        raise DataError("audio", given="an empty clip", where=where, fix="Remove the row.")
    extra = samples.size - mel.samples
    if extra > 0:
        samples = samples[extra // 2 : extra // 2 + mel.samples]
    before = max(0, -extra) // 2
    return np.pad(samples, (before, mel.samples - samples.size - before))


def _samples(audio: Any, rate: int) -> np.ndarray[Any, Any]:
    if not isinstance(audio, dict):
        samples = np.asarray(audio)
        if samples.ndim != 1 or (samples.size and (samples.dtype.kind not in "iu" or np.abs(samples).max() > 32_768)):
            raise ValueError(f"an array of {samples.dtype} with {samples.ndim} dimensions")
        return samples.astype(np.int16)
    with wave.open(io.BytesIO(audio["bytes"])) as file:
        if (file.getnchannels(), file.getsampwidth(), file.getframerate()) != (1, 2, rate):
            raise ValueError(f"{file.getnchannels()} channels of {8 * file.getsampwidth()} bits at {file.getframerate()} Hz")
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.int16)
