"""Random inputs for comparing and timing networks: random tokens, images of noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bitstill.program.convnets import CONV_NETS

Array = npt.NDArray[Any]
FREE = {"height": 32, "width": 32, "frames": 100, "bands": 40}
"""Sizes for the free dimensions of images and spectrograms."""
WORDS = 1_000
"""Ids below this are special or unused tokens in most vocabularies."""


def random_inputs(
    config: Mapping[str, Any], batch: int, length: int, *, shortest: int | None = None, seed: int = 0
) -> dict[str, Array]:
    """Random inputs for a network.

    Args:
        config: contents of its `config.json`: an encoder of transformers, or a built-in network.
        batch: number of texts or images.
        length: length of the longest text in tokens; ignored for images.
        shortest: length of the shortest text; shorter texts are padded. None makes all equally long.
        seed: random seed.

    Returns:
        Inputs by name: int64 (batch, length), or float32 (batch, channels, height, width).
    """
    draw = np.random.default_rng(seed)
    if "model_type" not in config:
        (image,) = CONV_NETS[config["architecture"]](config["arguments"]).inputs
        shape = [{"batch": batch, **FREE}[size] if isinstance(size, str) else size for size in image.shape]
        return {image.name: draw.standard_normal(shape).astype(np.float32)}
    words, padding = config["vocab_size"], config.get("pad_token_id") or 0
    lengths = draw.integers(length if shortest is None else min(shortest, length), length + 1, batch)
    mask = (np.arange(length) < lengths[:, None]).astype(np.int64)
    ids = np.where(mask, draw.integers(max(padding + 1, min(WORDS, words // 2)), words, mask.shape), padding)
    values = {"input_ids": ids, "attention_mask": mask}
    if config.get("type_vocab_size"):
        values["token_type_ids"] = np.zeros_like(ids)
    return values
