"""Running an artifact without torch: numpy in, numpy out, on the library of low-bit kernels.

model = bitstill.runtime.load("small")
logits = model(input_ids=ids, attention_mask=mask)
"""

from __future__ import annotations

from bitstill.runtime.model import Model, load

__all__ = ["Model", "load"]
