"""bitstill: distil a trained network into a 1- to 8-bit one, and deliver a file that really is that small.

Public names are listed in `__init__.pyi` and imported when first used, so that reading an artifact does not need torch.
"""

from bitstill._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
