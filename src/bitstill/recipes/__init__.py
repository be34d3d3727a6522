"""Published systems as lists of stages: each a frozen dataclass of settings and one method that turns them into stages."""

from bitstill._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
