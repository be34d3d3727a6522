"""Weights that are a sum of two planes, as weight splitting makes them: the same bits from freezing to every reader."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from bitstill.artifact.reader import read
from bitstill.artifact.size import size_report
from bitstill.artifact.writer import Storage, write
from bitstill.model.contents import contents_of
from bitstill.model.lifecycle import freeze, pack, prepare, unpack
from bitstill.model.restore import load_into
from bitstill.quant.binary import binary
from bitstill.quant.granularity import Bucket, PerChannel, PerGroup
from bitstill.quant.quantized import Quantized
from bitstill.quant.rules import Binary, Compression


def two_planes(weight: torch.Tensor, granularity: PerChannel | PerGroup | Bucket, mask: torch.Tensor | None) -> Quantized:
    """Binary of the weight plus binary of the residual (Lin, Zhao, Pan 2017, with two bases)."""
    first = binary(weight, mask, granularity=granularity)
    second = binary(weight - first.dequantize(), mask, granularity=granularity)
    return Quantized((*first.planes, *second.planes), first.grid, first.shape, mask)


@pytest.mark.parametrize("entropy_coding", [False, True])
@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("granularity", [PerChannel(), PerGroup(5), Bucket(16)], ids=repr)
def test_two_planes_survive_everything(
    granularity: PerChannel | PerGroup | Bucket, pruned: bool, entropy_coding: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 7, 3), nn.Flatten(), nn.Linear(28, 5))
    blank = nn.Sequential(nn.Conv2d(3, 7, 3), nn.Flatten(), nn.Linear(28, 5))
    prepare(network, Compression(weight=Binary(granularity=granularity)))
    frozen = freeze(network)
    for index in (0, 2):
        weight = network[index].weight.detach()
        mask = torch.rand_like(weight) > 0.4 if pruned else None
        quantized = two_planes(weight, granularity, mask)
        frozen[index].weight_transform.quantized = quantized
        frozen[index].weight.data = quantized.dequantize()
    packed = pack(frozen)
    write(tmp_path, contents_of(packed), {}, Storage(entropy_coding=entropy_coding))
    archive = read(tmp_path)
    reloaded = load_into(blank, archive)
    x = torch.randn(2, 3, 4, 4)
    wanted = frozen(x)
    for index in (0, 2):
        bits = frozen[index].weight.numpy().tobytes()
        assert packed[index].packed().numpy().tobytes() == bits
        assert reloaded[index].packed().numpy().tobytes() == bits
        assert archive.weight(str(index)).tobytes() == bits
        if pruned:
            kept = frozen[index].weight_transform.quantized.mask
            assert bool((reloaded[index].packed()[~kept] == 0).all())
    for model in (packed, reloaded, unpack(reloaded)):
        assert torch.equal(model(x), wanted)
    assert size_report(archive).nominal_bits == 2
