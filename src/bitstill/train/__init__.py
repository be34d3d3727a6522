"""Stages, the one loop that runs them, and the checkpoint that lets it stop anywhere."""

from bitstill._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
