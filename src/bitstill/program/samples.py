"""Random inputs for comparing and timing networks: random tokens, images of noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bitstill.program.convnets import CONV_NETS
from bitstill.program.families import FAMILIES

Array = npt.NDArray[Any]
FREE = {"height": 32, "width": 32, "frames": 100, "bands": 40}
"""Sizes for the free dimensions of images and spectrograms."""
LONGEST = 512
"""Tokens of the longest text of a comparison, where the network has positions for more."""
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


def contrasting_inputs(config: Mapping[str, Any], batch: int, length: int, seed: int = 0) -> list[dict[str, Array]]:
    """Batches on which networks differ that compute almost the same thing.

    Texts: a batch with texts of 1 token to `length`, padded; one text of a single token; and one as long as the table of
    positions, or `LONGEST`. Tokens are of the whole vocabulary, rare ones and that of padding included, and each text but the
    shortest has a second segment where the network knows segments. Images: a batch, and one alone.

    Args:
        config, seed: those of `random_inputs`.
        batch: texts or images of the first batch.
        length: tokens of its longest text, at most.
    """
    if "model_type" not in config:
        return [random_inputs(config, size, 1, seed=seed + size) for size in (batch, 1)]
    draw = np.random.default_rng(seed)
    family, padding = FAMILIES.get(config["model_type"]), config.get("pad_token_id") or 0
    first = 0 if family is None or family.counts_padding else padding + 1
    longest = min(LONGEST, config.get("max_position_embeddings", LONGEST) - first)
    lengths = draw.integers(1, min(length, longest) + 1, batch)
    lengths[:2] = min(length, longest), 1
    segments = config.get("type_vocab_size") or 0
    return [
        _texts(each, config["vocab_size"], padding, segments, draw) for each in (lengths, np.array([1]), np.array([longest]))
    ]


def _texts(lengths: Array, words: int, padding: int, segments: int, draw: np.random.Generator) -> dict[str, Array]:
    """Random texts of these lengths, padded at the right; with segments, the second half of each is of the last one."""
    place = np.arange(lengths.max())
    mask = (place < lengths[:, None]).astype(np.int64)
    values = {"input_ids": np.where(mask, draw.integers(0, words, mask.shape), padding), "attention_mask": mask}
    if segments:
        values["token_type_ids"] = np.where(place >= (lengths[:, None] + 1) // 2, segments - 1, 0) * mask
    return values
