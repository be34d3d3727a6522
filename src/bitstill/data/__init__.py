"""Tasks and their data sets: text, images, audio, corpora, augmentation."""

from bitstill._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
