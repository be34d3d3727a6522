"""Recomputing the masks of a compressed model from the current magnitudes of its weights."""

from __future__ import annotations

from torch import Tensor, nn

from bitstill.errors import SpecError
from bitstill.model.compressed_layers import CompressedTransposedLinear, pruning_transform
from bitstill.model.weight_transform import WeightTransform, layer_mask
from bitstill.quant.masks import global_masks


def move_masks(model: nn.Module, sparsity: float) -> None:
    """Recompute every mask of `model` from its latent weights.

    Layers with `Prune(scope="global")` are ranked together, across rules. Masks are changed in place.

    Args:
        model: prepared, with layers that prune.
        sparsity: fraction of zeros, 0 to 1, instead of that of the layers' `Prune`.

    Raises:
        SpecError: no layer of `model` prunes.
    """
    layers = _pruned(model)
    if not layers:
        fix = "Compress it with prune=Prune(...)."
        raise SpecError("a model with layers that prune", given="none", where=type(model).__name__, fix=fix)
    together = [(t, w) for t, w in layers if t.prune is not None and t.prune.scope == "global"]
    for (transform, _), mask in zip(
        together, global_masks([w for _, w in together], sparsity) if together else [], strict=True
    ):
        _set(transform, mask)
    for transform, weight in layers:
        if transform.prune is not None and transform.prune.scope == "layer":
            _set(transform, layer_mask(weight, transform.prune, sparsity))


def _pruned(model: nn.Module) -> list[tuple[WeightTransform, Tensor]]:
    weights: dict[WeightTransform, Tensor] = {}
    for module in model.modules():
        transform = pruning_transform(module)
        if transform is not None:
            assert isinstance(module.weight, Tensor)
            latent = module.weight.detach()
            weights[transform] = latent.T if isinstance(module, CompressedTransposedLinear) else latent
    return list(weights.items())


def _set(transform: WeightTransform, mask: Tensor) -> None:
    assert transform.mask is not None
    transform.mask.copy_(mask)
