"""Log-mel spectrograms in torch, the inputs of speech networks."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from bitstill.artifact.files import write_file
from bitstill.errors import SpecError

FULL_SCALE = 32_768.0
"""Full scale of 16-bit samples."""


@dataclass(frozen=True)
class LogMel:
    """Log-mel spectrogram with its settings.

    Args:
        rate: samples per second.
        samples: length of a clip.
        window: length of the Fourier transform and of its Hann window, in samples.
        hop: samples between two frames.
        bands: mel bands, from 20 Hz to half the rate.
    """

    rate: int = 16_000
    samples: int = 16_000
    window: int = 512
    hop: int = 160
    bands: int = 40

    def __post_init__(self) -> None:
        if min(self.rate, self.hop, self.bands) < 1 or not 2 <= self.window <= self.samples:
            fix = "Common values are 25 ms windows every 10 ms."
            raise SpecError("positive sizes, and a window no longer than the clip", given=str(self), where="LogMel", fix=fix)

    def __call__(self, audio: Tensor) -> Tensor:
        """Compute spectrograms of clips, each normalised to mean 0 and variance 1, so that loudness does not matter.

        Args:
            audio: 16-bit samples (N, samples), as integers or as floats of the same scale.

        Returns:
            float32 (N, 1, frames, bands).
        """
        x = audio.float() / FULL_SCALE
        hann = torch.hann_window(self.window, device=x.device)
        spectrum = torch.stft(x, self.window, self.hop, window=hann, center=True, pad_mode="constant", return_complex=True)
        power = spectrum.abs().square()
        mel = torch.log(filters(self.rate, self.window, self.bands).to(x.device) @ power + 1e-7)
        mel = mel.transpose(1, 2).unsqueeze(1)
        deviation, mean = torch.std_mean(mel, dim=(1, 2, 3), keepdim=True)
        return (mel - mean) / (deviation + 1e-5)

    def save(self, folder: Path) -> None:
        """Write `preprocessor_config.json`."""
        settings = {"feature_extractor_type": "bitstill.LogMel", **asdict(self)}
        write_file(folder / "preprocessor_config.json", json.dumps(settings, indent=1).encode())


@functools.cache
def filters(rate: int, window: int, bands: int) -> Tensor:
    """Triangular filters, evenly spaced on the mel scale 2595 log10(1 + f / 700) (O'Shaughnessy 1987), each of area 1.

    Returns:
        float32 (bands, window // 2 + 1).
    """
    low, high = (2595.0 * math.log10(1.0 + hertz / 700.0) for hertz in (20.0, rate / 2))
    mels = torch.linspace(low, high, bands + 2, dtype=torch.float64)
    edges = 700.0 * (10.0 ** (mels / 2595.0) - 1.0)
    bins = torch.linspace(0.0, rate / 2, window // 2 + 1, dtype=torch.float64)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    area = 2.0 / (edges[2:] - edges[:-2])
    return (torch.minimum(rising, falling).clamp(min=0.0) * area[:, None]).float()
