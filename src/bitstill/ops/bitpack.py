"""Codes packed densely into bytes, row by row, and back; `layouts` describes the three layouts."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from bitstill.ops.layouts import TRITS_PER_BYTE, Layout, bits_for

def pack(codes_RN: Tensor, levels: int, layout: Layout) -> Tensor:
    """uint8 codes (rows, N), each < `levels`, to packed bytes (rows, `packed_length`)."""
    if layout == "bytes":
        return codes_RN.contiguous()
    if layout == "trits":
        weights = torch.tensor([1, 3, 9, 27, 81], device=codes_RN.device)
        fives = _padded(codes_RN, TRITS_PER_BYTE).unflatten(-1, (-1, TRITS_PER_BYTE)).long()
        return (fives * weights).sum(-1).to(torch.uint8)
    bits = bits_for(levels)
    if 8 % bits == 0:
        per_byte = 8 // bits
        shifts = torch.arange(per_byte, device=codes_RN.device) * bits
        together = _padded(codes_RN, per_byte).unflatten(-1, (-1, per_byte)).int() << shifts
        return cast(Tensor, together.sum(-1)).to(torch.uint8)
    stream = ((codes_RN.unsqueeze(-1).int() >> torch.arange(bits, device=codes_RN.device)) & 1).flatten(1)
    powers = 1 << torch.arange(8, device=codes_RN.device)
    return (_padded(stream, 8).unflatten(-1, (-1, 8)) * powers).sum(-1).to(torch.uint8)


def unpack(packed_RB: Tensor, length: int, levels: int, layout: Layout) -> Tensor:
    """Packed bytes (rows, `packed_length`) to uint8 codes (rows, `length`): the inverse of `pack`."""
    if layout == "bytes":
        return packed_RB
    if layout == "trits":
        table = torch.arange(243, device=packed_RB.device).unsqueeze(-1) // torch.tensor(
            [1, 3, 9, 27, 81], device=packed_RB.device
        )
        return (table % 3).to(torch.uint8)[packed_RB.long()].flatten(1)[:, :length]
    bits = bits_for(levels)
    if 8 % bits == 0:
        shifts = (torch.arange(8 // bits, device=packed_RB.device) * bits).to(torch.uint8)
        return ((packed_RB.unsqueeze(-1) >> shifts) & (2**bits - 1)).flatten(1)[:, :length]
    stream = ((packed_RB.unsqueeze(-1) >> torch.arange(8, device=packed_RB.device).to(torch.uint8)) & 1).flatten(1)
    fields = stream[:, : length * bits].unflatten(-1, (length, bits)).int()
    return (fields << torch.arange(bits, device=packed_RB.device)).sum(-1).to(torch.uint8)


def _padded(x_RN: Tensor, multiple: int) -> Tensor:
    missing = -x_RN.shape[-1] % multiple
    return torch.nn.functional.pad(x_RN, (0, missing)) if missing else x_RN
