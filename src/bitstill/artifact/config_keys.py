"""Keys of `config.json` that more than one part of the library reads; records of packed layers are in `artifact.format`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RESIZED = "bitstill_resized"
"""Layers that pruning made narrower than the configuration says; a model in torch has its record under the same name."""
ATTENTION = "bitstill_attention"
"""Rules for the operands of attention products."""
POOLER = "bitstill_pooler"
"""False for an encoder built without its pooler."""
TRANSFORMERS_WEIGHTS = "transformers_weights"
"""Key under which transformers reads the name of the weights file. An artifact holds no file name there, so that transformers
refuses the folder, and prints what to do, unless `bitstill.hf` is imported; see `hf.quantizer`."""
CODE = frozenset({
    "auto_map", "custom_pipelines", "trust_remote_code", "attn_implementation", "_attn_implementation",
    "_attn_implementation_internal", "experts_implementation", "_experts_implementation", "_experts_implementation_internal",
    "use_kernels", "kernel_config",
})  # fmt: skip
"""Keys by which transformers fetches code and runs it. They are never written, and dropped when read."""


def without_code(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a config without `CODE` keys, those of configs within it included."""
    return {
        key: without_code(value) if isinstance(value, Mapping) else value for key, value in config.items() if key not in CODE
    }
