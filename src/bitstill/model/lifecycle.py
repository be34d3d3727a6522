"""prepare -> freeze -> pack -> unpack: the life of a compressed model.

    prepare(model, compression)   in place: layers train at their effective weights; a report lists every parameter
    freeze(model)                 a copy whose weights *are* the effective weights, along with their codes
    pack(frozen)                  a copy with packed bits only
    unpack(packed)                a copy of ordinary torch layers in float32, for other tools

Each step gives the same outputs as the one before, bit for bit in float32 (leftovers, the parameters that stay in float,
may be cast to float16 by `freeze`, and only there).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bitstill.errors import DataError, MatchError, SpecError
from bitstill.model.attention_operands import attention_record, remove_transforms
from bitstill.model.compressed_layers import (
    CompressedLayer,
    CompressedTransposedLinear,
    FrozenWeight,
    change_class,
    compress_layer,
    compressed_kind,
    is_compressed,
    kind_of,
)
from bitstill.model.copies import copy_model
from bitstill.model.input_transform import InputTransform
from bitstill.model.packed_layers import PackedLayer, PackedSpec, PackedWeight, is_packed, pack_weight, packed_layer
from bitstill.model.prune import move_masks
from bitstill.model.save_guard import guard_saving, release_saving
from bitstill.model.select import RunOnce, select
from bitstill.model.state import stored_tensors
from bitstill.model.swap import swap
from bitstill.model.weight_transform import WeightTransform, belongs_to_quantizer, check_finite, check_scales
from bitstill.model.wrappers import without_compiler
from bitstill.quant.base import SCALE_DTYPES, ScaleDtype
from bitstill.quant.rules import Compression


@dataclass(frozen=True)
class Touched:
    """Treatment of one parameter.

    Args:
        parameter: its name in the model.
        shape: its shape.
        action: "quantized" or "float".
        detail: the quantizer, or why it stays in float.
    """

    parameter: str
    shape: tuple[int, ...]
    action: str
    detail: str


@dataclass(frozen=True)
class PrepareReport:
    """All parameters of a prepared model and their treatment."""

    rows: tuple[Touched, ...]

    @property
    def quantized(self) -> tuple[str, ...]:
        """Names of the quantized parameters."""
        return tuple(row.parameter for row in self.rows if row.action == "quantized")


def prepare(
    model: nn.Module, compression: Compression | Sequence[Compression], *, run_once: RunOnce | None = None
) -> PrepareReport:
    """Replace layers of `model` by compressed ones, in place; parameters stay the same objects under the same names.

    Args:
        model: any module; its Linear, Embedding, Conv1d, Conv2d and Hugging Face Conv1D layers can be compressed. A compiled
            model is prepared inside its wrapper.
        compression: one rule, or several for different layers.
        run_once: runs the model on a small batch; needed if a rule names a role ("role:classifier").

    Returns:
        A report on every parameter.

    Raises:
        MatchError: a pattern matches nothing, or two rules name one layer.
        DataError: a weight is NaN, infinite, or too small or too large for scales in float16.
        SpecError: the model is already compressed, has inference tensors, or is inside a wrapper such as DataParallel.
    """
    model = without_compiler(model, "prepare")
    if any(is_compressed(m) or is_packed(m) for m in model.modules()):
        raise SpecError(
            "a float model", given="one with compressed layers", where="prepare", fix="Load or build the model anew."
        )
    _check_trainable(model)
    rules = (compression,) if isinstance(compression, Compression) else tuple(compression)
    chosen: dict[str, tuple[nn.Module, Compression]] = {}
    for rule in rules:
        for name, module in select(model, rule.targets, rule.ignore, run_once).items():
            if name in chosen:
                raise MatchError(
                    "each layer in one rule only",
                    given="two rules that name it",
                    where=name,
                    fix="Add it to `ignore` of one of them.",
                )
            chosen[name] = (module, rule)
    replacements: dict[nn.Module, nn.Module] = {}
    for name, (module, rule) in chosen.items():
        assert isinstance(module.weight, Tensor)
        check_finite(module.weight, f"{name}.weight")
        kind = kind_of(module)
        assert kind is not None
        replacements[module] = _compressed(name, module, kind, rule)
    swap(model, replacements)
    guard_saving(model)
    for rule in rules:
        if rule.prune is not None and rule.prune.scope == "global":
            own = [replacements[module] for module, its_rule in chosen.values() if its_rule is rule]
            move_masks(nn.ModuleList(own), rule.prune.sparsity)
    return report(model)


def report(model: nn.Module) -> PrepareReport:
    """Treatment of every parameter of a compressed model."""
    reasons: dict[int, tuple[str, str]] = {}
    for module in model.modules():
        if is_compressed(module) and isinstance(module.weight_transform, WeightTransform):
            transform = module.weight_transform
            for weight in (module.weight, *transform.latents.values()):
                reasons[id(weight)] = ("quantized", transform.quantizer.name)
        elif kind_of(module) is not None:  # a tied weight counts as quantized if one of its layers is
            reasons.setdefault(id(module.weight), ("float", "not selected"))
    rows = []
    for name, parameter in model.named_parameters():
        action, detail = reasons.get(id(parameter), ("float", _why_float(model, name)))
        rows.append(Touched(name, tuple(parameter.shape), action, detail))
    return PrepareReport(tuple(rows))


def freeze(model: nn.Module, leftovers: ScaleDtype = "float32") -> nn.Module:
    """Copy `model` with its effective weights as weights. The copy is in eval mode and needs no gradient.

    Frozen weights are rounded to nearest, even after stochastic rounding in training.

    Args:
        model: a prepared (or plain float) model.
        leftovers: storage dtype of everything that is not quantized. Values are rounded to it, but kept in float32, so that
            the frozen model computes like the reloaded one.

    Raises:
        DataError: a weight is NaN or infinite, or too large for `leftovers` or for scales in float16.
        SpecError: loss-aware quantizers have never been updated after an optimizer step.
    """
    _check_updated(model)
    frozen = copy_model(model, "freeze").eval().requires_grad_(False)
    done: dict[nn.Parameter, CompressedLayer] = {}
    owned: set[int] = set()
    for name, module in frozen.named_modules():
        if is_compressed(module) and isinstance(module.weight_transform, WeightTransform):
            latent = module.weight
            _freeze_layer(name, module, done.get(latent))
            done.setdefault(latent, module)
            owned.add(id(module.weight))
    for name, tensor in stored_tensors(frozen).items():
        if tensor.is_floating_point() and id(tensor) not in owned:
            check_finite(tensor, name)
            tensor.data = _rounded(tensor.data, SCALE_DTYPES[leftovers], name)
    return frozen


def pack(frozen: nn.Module) -> nn.Module:
    """Copy a frozen model with packed layers, which hold bits and no float weights.

    Raises:
        SpecError: if `frozen` still trains.
    """
    packed = copy_model(frozen, "pack")
    weights: dict[int, PackedWeight] = {}
    replacements: dict[nn.Module, nn.Module] = {}
    for name, module in packed.named_modules():
        if not is_compressed(module):
            continue
        transform = module.weight_transform
        if isinstance(transform, WeightTransform):
            raise SpecError("a frozen model", given="latent weights", where=name, fix="Call freeze(model) first.")
        if isinstance(transform, FrozenWeight):
            key = id(transform.quantized)
            if key not in weights:
                weights[key] = _packed_weight(transform)
            replacements[module] = packed_layer(module, compressed_kind(module), weights[key], module.input_transform)
    swap(packed, replacements)
    return packed


def unpack(packed: nn.Module) -> nn.Module:
    """Copy a packed model with ordinary torch layers and float32 weights.

    Raises:
        SpecError: a layer quantizes its input, which an ordinary layer cannot.
    """
    plain = copy_model(packed, "unpack")
    weights: dict[int, nn.Parameter] = {}
    replacements: dict[nn.Module, nn.Module] = {}
    for name, module in plain.named_modules():
        if is_packed(module):
            if isinstance(module._modules.get("input_transform"), InputTransform):
                raise SpecError(
                    "layers with float inputs",
                    given="a quantized input",
                    where=name,
                    fix="Keep the packed model, whose layers quantize their inputs.",
                )
            key = id(module.packed)
            if key not in weights:
                weights[key] = nn.Parameter(module.packed(), requires_grad=False)
            replacements[module] = _plain(module, weights[key])
    if attention_record(plain):
        fix = "Keep the packed model, which quantizes them."
        where = next(iter(attention_record(plain)))
        raise SpecError("attention with float operands", given="quantized ones", where=where, fix=fix)
    swap(plain, replacements)
    release_saving(plain)
    return plain


def uncompressed(model: nn.Module) -> nn.Module:
    """Copy a prepared model with its original layers and latent weights: the float architecture.

    Several latent weights are combined: those of a split weight are summed.
    """
    plain = copy_model(model, "uncompressed")
    replacements: dict[nn.Module, nn.Module] = {}
    whole: set[int] = set()
    for module in plain.modules():
        if is_compressed(module):
            if id(module.weight) not in whole:
                _join_latents(module)
                whole.add(id(module.weight))
            kind: type[nn.Module] = module.__dict__["original_class"]
            original = change_class(module, kind)
            for name in ("weight_transform", "input_transform"):
                original._modules.pop(name)
            del original.__dict__["original_class"]
            original.__dict__.pop("has_run", None)
            replacements[module] = original
    swap(plain, replacements)
    release_saving(plain)
    remove_transforms(plain)
    return plain


def _check_trainable(model: nn.Module) -> None:
    """Check that no parameter was created under `torch.inference_mode`, where gradients cannot reach it."""
    for name, parameter in model.named_parameters():
        if parameter.is_inference():
            fix = "Build or load the model outside of torch.inference_mode()."
            raise SpecError("parameters that can train", given="an inference tensor", where=name, fix=fix)


def _compressed(name: str, module: nn.Module, kind: str, rule: Compression) -> CompressedLayer:
    layer = compress_layer(module, kind, rule)
    transform = layer.weight_transform
    assert isinstance(transform, WeightTransform)
    latent = layer.weight.detach()
    latent = latent.T if isinstance(layer, CompressedTransposedLinear) else latent
    if rule.weight.scale_dtype == "float16":
        check_scales(latent, transform.quantize(latent), rule.weight, name)
    return layer


def _check_updated(model: nn.Module) -> None:
    """Check that quantizers with state from an optimizer have been updated at least once."""
    following = [m for m in model.modules() if isinstance(m, WeightTransform) and m.buffer_names]
    if following and all(transform.never_updated for transform in following):
        given = f"{following[0].quantizer.name} ones that never have"
        fix = "In your own loop, call bitstill.train.after_optimizer_step(model, optimizer) after each step."
        raise SpecError("quantizers that have followed an optimizer", given=given, where="freeze", fix=fix)


def _join_latents(module: nn.Module) -> None:
    """Replace the weight of a layer by the float weight of all its latent weights."""
    transform = module.weight_transform
    if isinstance(transform, WeightTransform) and transform.latents:
        assert isinstance(module.weight, Tensor)
        flip = isinstance(module, CompressedTransposedLinear)
        weight = module.weight.detach()
        joined = transform.latent(weight.T if flip else weight)
        weight.copy_(joined.T if flip else joined)


def _freeze_layer(name: str, module: CompressedLayer, tied: CompressedLayer | None) -> None:
    """Freeze one layer; equal results are shared with `tied`, a frozen layer that had the same latent weight."""
    transform = module.weight_transform
    assert isinstance(transform, WeightTransform)
    transposed = isinstance(module, CompressedTransposedLinear)
    latent = module.weight.detach()
    check_finite(latent, f"{name}.weight")
    for key, tensor in transform.state.items():
        check_finite(tensor, f"{name}, {key} of its quantizer")
    quantized = transform.quantize(latent.T if transposed else latent)
    check_scales(latent.T if transposed else latent, quantized, transform.quantizer, name)
    if tied is not None:
        other = tied.weight_transform
        assert isinstance(other, FrozenWeight)
        if other.quantizer == transform.quantizer and other.quantized.equals(quantized):
            quantized = other.quantized
            if transposed == isinstance(tied, CompressedTransposedLinear):
                module.weight, module.weight_transform = tied.weight, FrozenWeight(quantized, transform.quantizer)
                return
    effective = quantized.dequantize()
    module.weight = nn.Parameter(effective.T.contiguous() if transposed else effective, requires_grad=False)
    module.weight_transform = FrozenWeight(quantized, transform.quantizer)


def _rounded(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    rounded = tensor.to(dtype).float()
    if not bool(torch.isfinite(rounded).all()):
        raise DataError(
            f"values up to {torch.finfo(dtype).max:g}, the largest {str(dtype).removeprefix('torch.')}",
            given=f"{tensor.abs().max().item():g}",
            where=name,
            fix="Store leftovers in float32.",
        )
    return rounded


def _packed_weight(frozen: FrozenWeight) -> PackedWeight:
    quantized, quantizer = frozen.quantized, frozen.quantizer
    spec = PackedSpec(
        shape=tuple(quantized.shape),
        granularity=quantizer.granularity,
        name=quantizer.name,
        scale_dtype=quantizer.scale_dtype,
        pruned=quantized.mask is not None,
    )
    return pack_weight(quantized, spec)


def _plain(module: PackedLayer, weight: nn.Parameter) -> nn.Module:
    kinds: dict[str, type[nn.Module]] = {
        "Linear": nn.Linear, "TransposedLinear": nn.Linear, "Conv1d": nn.Conv1d, "Conv2d": nn.Conv2d,
        "Embedding": nn.Embedding,
    }  # fmt: skip
    spec = module.packed.spec
    plain = change_class(module, kinds[module.kind])
    del plain.__dict__["kind"]
    for name in ("packed", "input_transform"):
        plain._modules.pop(name, None)
    plain.register_parameter("weight", weight)
    if module.kind == "TransposedLinear":
        plain.__dict__.update(in_features=spec.shape[1], out_features=spec.shape[0])
    return plain


def _why_float(model: nn.Module, parameter: str) -> str:
    owner, _, leaf = parameter.rpartition(".")
    if belongs_to_quantizer(parameter):
        return "learned by the quantizer"
    module = model.get_submodule(owner)
    if leaf == "bias":
        return "bias"
    if leaf == "weight" and isinstance(module, (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d)):
        return f"subclass {type(module).__name__} with a forward of its own"
    return f"parameter of {type(module).__name__}"
