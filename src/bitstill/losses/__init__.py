"""Losses between a student and its teacher, and the taps that collect what they compare."""

from bitstill._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
