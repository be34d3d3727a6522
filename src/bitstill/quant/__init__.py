"""Quantizers: one file per method, with its settings, formula and gradient; masks, granularity, bit packing."""

from bitstill._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
