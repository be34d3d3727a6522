"""What a model keeps: the one rule by which it is stored, saved in checkpoints, frozen and checked."""

from __future__ import annotations

from torch import Tensor, nn


def stored_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by their first name, each shared one once: the very objects, in registration order.

    A causal mask or a table of positions that is computed when a model is built is no persistent buffer, and not among them.
    """
    persistent = model.state_dict(keep_vars=True)
    return {name: t for name, t in (*model.named_parameters(), *model.named_buffers()) if name in persistent}
