"""Entropy coding of codes by Zstandard.

Codes of a trained low-bit layer are far from equally frequent: the outer levels of a min-max quantizer are rare. Zstandard's
literal stage is a Huffman coder over bytes, so packed bytes (several codes each) come close to the entropy of the codes.
"""

from __future__ import annotations

import zstandard

from bitstill.errors import ArtifactError

LEVEL = 19
"""Zstandard's strongest regular level; decoding speed does not depend on it."""


def compress(data: bytes) -> bytes:
    """Compress `data` into one Zstandard frame, with a checksum to detect damage that would still decode."""
    compressor = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True, write_checksum=True)
    compressed: bytes = compressor.compress(data)
    return compressed


def decompress(data: bytes, expected: int, where: str) -> bytes:
    """Decompress a frame of known size, so that a damaged one cannot allocate more memory.

    Raises:
        ArtifactError: the frame is damaged or of another size.
    """
    try:
        size = zstandard.get_frame_parameters(data).content_size
        plain: bytes = zstandard.ZstdDecompressor().decompress(data) if size == expected else b""
    except zstandard.ZstdError as error:
        raise _damaged(str(error), where) from None
    if len(plain) != expected:
        raise _damaged(f"a frame of {size} bytes instead of {expected}", where)
    return plain


def _damaged(given: str, where: str) -> ArtifactError:
    return ArtifactError("an intact Zstandard frame", given=given, where=where, fix="Deliver the model again.")
