"""The state of a model: the one rule for storing, checkpoints, freezing and checks."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn


def stored_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by their first name, each shared one once, in registration order, not copied.

    Non-persistent buffers, such as a causal mask or a computed table of positions, are not included.
    """
    persistent = model.state_dict(keep_vars=True)
    return {name: t for name, t in (*model.named_parameters(), *model.named_buffers()) if name in persistent}


def state_digest(model: nn.Module) -> str:
    """Digest of every name, shape, type and byte of a model's state."""
    state = hashlib.blake2b(digest_size=8)
    for name, tensor in model.state_dict().items():
        state.update(repr((name, tuple(tensor.shape), str(tensor.dtype))).encode())
        state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return state.hexdigest()
