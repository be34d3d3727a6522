"""Losses between a student and its teacher, and taps that collect the intermediate outputs they compare."""

from bitstill._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
