"""Quantizers: one file per method, with its settings, formula and gradient; masks, granularity, bit packing."""
