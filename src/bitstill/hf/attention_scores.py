"""An attention function with tappable scores, registered with transformers; no model class is patched.

Without a tap it is transformers' own fused attention. While scores are tapped (`losses.taps`), or if the operands of its
products are quantized (`model.attention_operands`), it computes the same attention explicitly, and passes the scores before
mask and softmax to the tap. A mask function is registered, too: for an attention function without one, transformers creates
no mask, and padding would silently be attended to.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from bitstill.errors import ArtifactError
from bitstill.model.attention_operands import ATTRIBUTE, HEADS, SCORES, AttentionTransform

NAME = "bitstill"


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention.

    Args:
        module: the attention layer.
        query, key, value: (batch, heads, positions, head size).
        attention_mask: bool (batch, 1, queries, keys), True where attention is allowed, or None; a float mask is added.
        dropout: probability.
        scaling: factor of the scores; None is 1 / sqrt(head size).

    Returns:
        (batch, positions, heads, head size), and None for the probabilities.
    """
    if HEADS in module.__dict__:
        groups = getattr(module, "num_key_value_groups", 1)
        module.__dict__[HEADS](torch.stack((query, repeat_kv(key, groups), repeat_kv(value, groups))))
    receive, transform = module.__dict__.get(SCORES), module._modules.get(ATTRIBUTE)
    if (receive is None and transform is None) or kwargs.get("position_bias") is not None:
        output: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return output
    groups = getattr(module, "num_key_value_groups", 1)
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    if isinstance(transform, AttentionTransform):
        query, key, value = transform.query(query), transform.key(key), transform.value(value)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    causal = kwargs.get("is_causal")
    if getattr(module, "is_causal", False) if causal is None else causal:
        # transformers passes no mask that is only causal. Masked scores are excluded from the losses.
        _hand_over(receive, scores.tril())
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future, torch.finfo(scores.dtype).min)
    else:
        _hand_over(receive, scores)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = torch.where(attention_mask, scores, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    probabilities = F.dropout(scores.softmax(-1), dropout, module.training)
    if isinstance(transform, AttentionTransform):
        probabilities = transform.probabilities(probabilities)
    return (probabilities @ value).transpose(1, 2).contiguous(), None


def require(model: Any) -> None:
    """Switch `model`, whose layers quantize operands of attention, to `attention`.

    Raises:
        ArtifactError: that is impossible, and the operands would stay in float.
    """
    if hasattr(model, "set_attn_implementation"):
        use(model)
    implementation = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if implementation != NAME:
        fix = "Load it without model=, so that it is built from its config.json."
        given = f"{type(model).__name__} with attention {implementation!r}"
        raise ArtifactError("a network whose attention can be quantized", given=given, where="load", fix=fix)


def _hand_over(receive: Any, scores: Tensor) -> None:
    if receive is not None:
        receive(scores)


def use(model: Any) -> None:
    """Switch `model` to `attention` if transformers dispatches its attention; other models offer no scores."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    if getattr(model, "_supports_attention_backend", False):
        model.set_attn_implementation(NAME)
