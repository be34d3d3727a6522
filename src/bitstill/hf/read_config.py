"""The config of a foreign model: read without what would fetch code, and refused where transformers would not heed it."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig

from bitstill.errors import DataError

_IMPLEMENTATIONS = ("_attn_implementation", "_experts_implementation")
"""Functions that transformers calls by name; one like "owner/name" is a kernel that it fetches from the hub and runs."""
_QUANTIZATION = "quantization_config"


def read_config(source: str, **settings: Any) -> Any:
    """Read a config for models that compute with transformers' own functions.

    Args:
        source: folder or hub name.
        settings: keys that replace those of the file.

    Raises:
        DataError: the model is quantized by another library, or has positions that transformers no longer computes.
    """
    config = AutoConfig.from_pretrained(source, trust_remote_code=False, **settings)
    for name in _IMPLEMENTATIONS:
        if getattr(config, name, None) is not None:
            setattr(config, name, None)
    for key in ("auto_map", "custom_pipelines"):
        config.__dict__.pop(key, None)
    quantization = getattr(config, _QUANTIZATION, None)
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    if method not in (None, "bitstill"):
        fix = "Give the float model that it was made from."
        given = f"one quantized by {str(method)[:100]!r}"
        raise DataError("a model in float", given=given, where=f"{source}: {_QUANTIZATION}", fix=fix)
    positions = getattr(config, "position_embedding_type", None)
    if positions not in (None, "absolute") and not hasattr(type(config)(), "position_embedding_type"):
        fix = "transformers reads it as one with absolute positions since release 5: choose another model."
        where = f"{source}: position_embedding_type"
        raise DataError("positions that transformers computes", given=repr(positions)[:100], where=where, fix=fix)
    return config
