"""The dense view: a second module tree over a pruned model's weights that includes the pruned ones.

    w_teacher = stop_gradient(Q(w, m)) + spare * (1 - m)

The important weights are the student's own, quantized as in the student, and receive no gradient here; the spare ones are
Parameters of the view, in full precision. The view has its own norm layers (with the statistics of a different network) and
its own classifier; everything else (biases, the first layer) is the student's, read at each forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bitstill.errors import SpecError
from bitstill.model.compressed_layers import CompressedLayer, CompressedTransposedLinear, is_compressed, pruning_transform
from bitstill.model.weight_transform import WeightTransform


class DenseView(nn.Module):
    """A pruned model together with its spare weights (the teacher of PQK; Kim, Chang, Kwak 2021).

    Inputs of layers are not quantized here.

    Args:
        student: prepared, with masks. It is not a submodule: its parameters are neither trained, saved nor counted here.
        skeleton: the same network of ordinary layers, with the latent weights; it becomes part of the view. Its weights of
            pruned layers become the spare weights, 0 where the weight is important.
        own: names of modules of the skeleton whose parameters and buffers belong to the view.

    Raises:
        SpecError: no layer of `student` prunes.
    """

    def __init__(self, student: nn.Module, skeleton: nn.Module, own: Collection[str]) -> None:
        super().__init__()
        self._student = (student,)  # in a tuple, so that it is not registered
        self.skeleton = skeleton
        self.pruned = tuple(
            name for name, module in student.named_modules() if pruning_transform(module) is not None and name not in own
        )
        if not self.pruned:
            fix = "Compress it with prune=Prune(...): without masks there are no spare weights."
            raise SpecError("a student with layers that prune", given="none", where="dense view", fix=fix)
        mine = {f"{module}." for module in own}
        self.shared: tuple[str, ...] = tuple(
            name
            for name, _ in skeleton.named_parameters(remove_duplicate=False)
            if not any(name.startswith(prefix) for prefix in mine) and not self._is_spare(name)
        )
        for name in self.shared:
            _parent(skeleton, name)._parameters[name.rpartition(".")[2]] = None
        for name in self.pruned:
            latent = skeleton.get_submodule(name).weight
            assert isinstance(latent, nn.Parameter)
            with torch.no_grad():
                latent.mul_(~self._mask(name))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the skeleton with the weights of the view."""
        tensors = {name: self._shared(name) for name in self.shared}
        tensors |= {f"{name}.weight": self.weight(name) for name in self.pruned}
        return functional_call(self.skeleton, tensors, args, kwargs)

    def weight(self, name: str) -> Tensor:
        """Weight of the layer `name` in the view, in the skeleton's shape; gradients reach only spare weights."""
        layer = self._layer(name)
        transform = layer.weight_transform
        assert isinstance(transform, WeightTransform)
        flip = isinstance(layer, CompressedTransposedLinear)
        latent = layer.weight.detach()
        important = transform.quantize(latent.T if flip else latent).dequantize().to(latent.dtype)
        spare = self.skeleton.get_submodule(name).weight
        assert isinstance(spare, Tensor)
        return (important.T if flip else important) + spare * ~self._mask(name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DenseView:
        # The student's weights must move along with the view.
        self.student._apply(fn, recurse)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    @property
    def student(self) -> nn.Module:
        """The pruned model."""
        return self._student[0]

    def _layer(self, name: str) -> CompressedLayer:
        layer = self.student.get_submodule(name)
        assert is_compressed(layer)
        return layer  # type: ignore[return-value]

    def _mask(self, name: str) -> Tensor:
        """Mask in the orientation of the stored weight."""
        layer = self._layer(name)
        mask = layer.weight_transform.mask
        assert isinstance(mask, Tensor)
        return mask.T if isinstance(layer, CompressedTransposedLinear) else mask

    def _shared(self, name: str) -> Tensor:
        """A parameter of the student, or the effective weight of a layer that is quantized without a mask."""
        owner, _, leaf = name.rpartition(".")
        module = self.student.get_submodule(owner)
        if leaf == "weight" and is_compressed(module):
            weight: Tensor = self._layer(owner).effective_weight().detach()
            return weight.T if isinstance(module, CompressedTransposedLinear) else weight
        return self.student.get_parameter(name).detach()

    def _is_spare(self, name: str) -> bool:
        owner, _, leaf = name.rpartition(".")
        return leaf == "weight" and owner in self.pruned


def _parent(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])
