"""Batch normalisation over the global batch, so that two processes train as one does at the same batch size.

torch's own SyncBatchNorm needs a GPU. This one works wherever `torch.distributed` does: the sums behind mean and variance are
all-reduced, and so are their gradients.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd import Function

from bitstill.model.compressed_layers import change_class
from bitstill.model.swap import swap


class _SumOverProcesses(Function):
    """All-reduce in both passes: every process's loss depends on every process's sums."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone()
        distributed.all_reduce(total)
        return total


class _Synced1d(nn.BatchNorm1d):
    def forward(self, input: Tensor) -> Tensor:
        return _normalise(self, input) if self.training else super().forward(input)


class _Synced2d(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return _normalise(self, input) if self.training else super().forward(input)


_SYNCED: dict[type[nn.Module], type[nn.Module]] = {nn.BatchNorm1d: _Synced1d, nn.BatchNorm2d: _Synced2d}


@contextlib.contextmanager
def synced_norms(model: nn.Module) -> Iterator[None]:
    """Inside the block, the batch norms of `model` share their statistics among all processes."""
    originals = [module for module in model.modules() if type(module) in _SYNCED]
    synced = {module: change_class(module, _SYNCED[type(module)]) for module in originals}
    swap(model, synced)
    try:
        yield
    finally:
        for old, new in synced.items():
            # The wrapper for several processes may have replaced the buffers.
            old._buffers.update(new._buffers)
        swap(model, {new: old for old, new in synced.items()})


def _normalise(norm: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor) -> Tensor:
    dims = [dim for dim in range(x.ndim) if dim != 1]
    values = x.float()
    channels = x.shape[1]
    sum_over_processes: Callable[[Tensor], Tensor] = _SumOverProcesses.apply
    local = torch.cat([values.sum(dims), values.new_tensor([values.numel() / channels])])
    total, count = sum_over_processes(local).split([channels, 1])
    mean = total / count
    shape = [1, channels] + [1] * (x.ndim - 2)
    # Squared deviations, not E[x^2] - E[x]^2, which cancels for channels far from zero.
    variance = sum_over_processes((values - mean.view(shape)).square().sum(dims)) / count
    with torch.no_grad():
        _update_running(norm, mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
    y: Tensor = (values - mean.view(shape)) * torch.rsqrt(variance + norm.eps).view(shape)
    if norm.affine:
        y = y * norm.weight.view(shape) + norm.bias.view(shape)
    return y.to(x.dtype)


def _update_running(norm: nn.BatchNorm1d | nn.BatchNorm2d, mean: Tensor, unbiased: Tensor) -> None:
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked += 1
    momentum = norm.momentum if norm.momentum is not None else 1.0 / float(norm.num_batches_tracked)
    norm.running_mean.lerp_(mean, momentum)
    norm.running_var.lerp_(unbiased, momentum)
