"""Stages, the one loop that runs them, and the checkpoints from which it resumes."""

from bitstill._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
