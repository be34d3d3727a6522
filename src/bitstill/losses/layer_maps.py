"""Layer maps: pairs of matching layers of student and teacher, by the names that `tap` understands.

`hidden:0` is the input of the first block and `hidden:i` the output of block i (counted from 1); `scores:i` are the attention
scores before the softmax of block i (counted from 0), (batch, heads, queries, keys), and `heads:i` its queries, keys and
values, (3, batch, heads, positions, head size). `tap` resolves them in any network with repeated blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from bitstill.losses.features import Pair

LayerMap = Literal["last", "paper"]


def hidden_pairs(layers: Sequence[int], depth: int, layer_map: LayerMap = "last") -> tuple[Pair, ...]:
    """Pairs of hidden states for a student built from the teacher's blocks `layers`.

    Each block is matched with the block it was copied from. The maps differ at the ends:

    - "last": the input of the student's first block is matched with the input of the teacher's first, and the output of the
      student's last block with that of the teacher's last, which pooler and classifier read.
    - "paper" (the code of Wu et al. 2022): the input of the first block is matched with the input of the teacher's block
      layers[0] - 1, and the last block with the one it was copied from. For layers (2, 4, 6, 8, 10) of 12 the embeddings
      imitate the output of a block, and nothing imitates the teacher's last hidden state.

    Args:
        layers: indices of the teacher's blocks that the student was built from, from 0.
        depth: number of the teacher's blocks.
        layer_map: the map, "last" or "paper".

    Returns:
        One pair more than layers.
    """
    targets = [layer + 1 for layer in layers]
    first = max(0, layers[0] - 1) if layer_map == "paper" else 0
    if layer_map == "last":
        targets[-1] = depth
    return tuple(Pair(f"hidden:{i}", f"hidden:{target}") for i, target in enumerate([first, *targets]))


def score_pairs(layers: Sequence[int]) -> tuple[Pair, ...]:
    """Pairs of attention scores: each block with the one it was copied from."""
    return tuple(Pair(f"scores:{i}", f"scores:{layer}") for i, layer in enumerate(layers))


def head_pairs(layers: Sequence[int]) -> tuple[Pair, ...]:
    """Pairs of queries, keys and values: each block with the one it was copied from."""
    return tuple(Pair(f"heads:{i}", f"heads:{layer}") for i, layer in enumerate(layers))
