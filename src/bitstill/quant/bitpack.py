"""Codes packed densely into bytes, row by row, and back; `layouts` describes the three layouts."""

from __future__ import annotations

import torch
from torch import Tensor

from bitstill.quant.layouts import TRITS_PER_BYTE, Layout, bits_for


def pack(codes_RN: Tensor, levels: int, layout: Layout) -> Tensor:
    """Pack uint8 codes (rows, N), each < `levels`, into bytes (rows, `packed_length`)."""
    if layout == "bytes":
        return codes_RN.contiguous()
    if layout == "trits":
        return (_cut(codes_RN, TRITS_PER_BYTE).long() * _powers_of_three(codes_RN)).sum(-1).to(torch.uint8)
    bits = bits_for(levels)
    if 8 % bits == 0:
        shifts = torch.arange(0, 8, bits, device=codes_RN.device)
        together: Tensor = _cut(codes_RN, 8 // bits).int() << shifts
        return together.sum(-1).to(torch.uint8)
    stream = ((codes_RN.unsqueeze(-1).int() >> torch.arange(bits, device=codes_RN.device)) & 1).flatten(1)
    octets: Tensor = _cut(stream, 8) << torch.arange(8, device=codes_RN.device)
    return octets.sum(-1).to(torch.uint8)


def unpack(packed_RB: Tensor, length: int, levels: int, layout: Layout) -> Tensor:
    """Unpack bytes (rows, `packed_length`) into uint8 codes (rows, `length`), the inverse of `pack`."""
    if layout == "bytes":
        return packed_RB
    if layout == "trits":
        table = torch.arange(243, device=packed_RB.device).unsqueeze(-1) // _powers_of_three(packed_RB) % 3
        return table.to(torch.uint8)[packed_RB.long()].flatten(1)[:, :length]
    bits = bits_for(levels)
    if 8 % bits == 0:
        shifts = torch.arange(0, 8, bits, device=packed_RB.device).to(torch.uint8)
        return ((packed_RB.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)).flatten(1)[:, :length]
    stream = ((packed_RB.unsqueeze(-1) >> torch.arange(8, device=packed_RB.device).to(torch.uint8)) & 1).flatten(1)
    fields = _cut(stream[:, : length * bits], bits).int()
    return (fields << torch.arange(bits, device=packed_RB.device)).sum(-1).to(torch.uint8)


def _cut(x_RN: Tensor, size: int) -> Tensor:
    """(rows, N) to (rows, ceil(N / size), size), padded with zeros."""
    missing = -x_RN.shape[-1] % size
    padded = torch.nn.functional.pad(x_RN, (0, missing)) if missing else x_RN
    return padded.reshape(x_RN.shape[0], -1, size)


def _powers_of_three(like: Tensor) -> Tensor:
    return 3 ** torch.arange(TRITS_PER_BYTE, device=like.device)
