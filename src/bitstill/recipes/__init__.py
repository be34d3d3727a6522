"""Published systems as lists of stages: each is a frozen dataclass of settings with one method that returns the stages."""

from bitstill._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
