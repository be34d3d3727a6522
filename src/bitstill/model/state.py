"""What a model keeps: the one rule by which it is stored, saved in checkpoints, frozen and checked."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn


def stored_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by their first name, each shared one once: the very objects, in registration order.

    A causal mask or a table of positions that is computed when a model is built is no persistent buffer, and not among them.
    """
    persistent = model.state_dict(keep_vars=True)
    return {name: t for name, t in (*model.named_parameters(), *model.named_buffers()) if name in persistent}


def state_digest(model: nn.Module) -> str:
    """Of every name, shape, type and byte of a model's state."""
    state = hashlib.blake2b(digest_size=8)
    for name, tensor in model.state_dict().items():
        state.update(repr((name, tuple(tensor.shape), str(tensor.dtype))).encode())
        state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return state.hexdigest()
