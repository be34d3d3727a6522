"""`from_pretrained` for artifacts: bitstill as a quantization method of transformers, through its public registration.

transformers only warns of an unknown quantization method, and would give every packed layer random weights. So `config.json`
of an artifact has `REFUSAL` in place of the name of the weights file, which transformers prints as it refuses the folder; the
quantizer removes it before the file is located.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from bitstill.artifact.bounds import check_counts
from bitstill.artifact.config_keys import ATTENTION, POOLER, RESIZED, TRANSFORMERS_WEIGHTS
from bitstill.artifact.format import FORMAT_VERSIONS, LayerRecord
from bitstill.artifact.reader import Archive, read, read_config
from bitstill.errors import ArtifactError, SpecError
from bitstill.hf import attention_scores
from bitstill.model.attention_operands import attention_record, restore_transforms
from bitstill.model.compressed_layers import change_class
from bitstill.model.resize import resize
from bitstill.model.restore import leftover_slots, original_layers, restored_layers
from bitstill.model.swap import swap

METHOD = "bitstill"
REFUSAL = "packed weights of bitstill: run `import bitstill.hf` before loading this model (pip install 'bitstill[all]')"
"""Entry of `config.json` in place of the name of the weights file."""


@register_quantization_config(METHOD)
class BitstillConfig(QuantizationConfigMixin):
    """The `quantization_config` of an artifact's `config.json`, unchanged."""

    def __init__(self, **settings: Any) -> None:
        self.__dict__.update({**settings, "quant_method": METHOD})
        if settings.get("version") not in FORMAT_VERSIONS:
            raise ArtifactError(
                f"artifact version {' or '.join(map(str, FORMAT_VERSIONS))}",
                given=repr(settings.get("version")),
                where="config.json: quantization_config",
                fix="Upgrade bitstill: the artifact was written by another version.",
            )


TENSORS_OF_A_LAYER = 16
"""More than any packed layer has, with the leftovers beside it."""


class _Slot(nn.Module):
    """Placeholder for a packed layer while transformers loads the file, with the file's tensors by name.

    It has an empty `weight` for models whose initialisation accesses the layers of a block (GPT-2).
    """


@register_quantizer(METHOD)
class BitstillQuantizer(HfQuantizer):
    """Quantizer of transformers that inserts packed layers into a model while it is loaded."""

    requires_calibration = True  # an artifact is already quantized; nothing can be quantized while loading

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Dtype of the model: float32, in which packed layers compute.

        Raises:
            SpecError: another dtype was requested.
        """
        if dtype not in (None, torch.float32):
            fix = "Leave dtype out: packed layers compute in float32; the file is small either way."
            raise SpecError("dtype float32", given=str(dtype), where="from_pretrained", fix=fix)
        return torch.float32

    def update_attn_implementation(self, config: Any) -> Any:
        """Remove the entry that makes transformers refuse the folder; this is the first hook with access to the config.

        Raises:
            ArtifactError: attention is to be computed by code from the hub; or the config is not the one that was delivered,
                or describes more layers than there are tensors.
        """
        name = getattr(config, "_attn_implementation", None)
        if isinstance(name, str) and "/" in name:
            fix = "Nothing was fetched. Leave attn_implementation out; if config.json names it, deliver the model again."
            raise ArtifactError("attention of transformers itself", given=name[:100], where="attn_implementation", fix=fix)
        if hasattr(config, TRANSFORMERS_WEIGHTS):
            delattr(config, TRANSFORMERS_WEIGHTS)
        if (folder := Path(config._name_or_path)).is_dir():
            read_config(folder, complete=False)
        records = vars(self.quantization_config).get("layers") or ()
        check_counts(config.to_dict(), TENSORS_OF_A_LAYER * len(records))
        return config

    def update_tp_plan(self, config: Any) -> Any:
        """The same in transformers below 5.18, which has no `update_attn_implementation`."""
        return self.update_attn_implementation(config)

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        assert checkpoint_files is not None
        self.archive = read(Path(checkpoint_files[0]).parent, complete=False)
        _check_class(model, self.archive)
        if self.archive.config.get(POOLER) is False:
            model.register_module("pooler", None)
        resize(model, self.archive.config.get(RESIZED))
        restore_transforms(model, self.archive.config.get(ATTENTION))
        originals = original_layers(model, self.archive)
        own = self.archive.stored_weights
        swap(model, {original: _slot(original, own.get(name), self.archive) for name, original in originals.items()})

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        slots = {name: module for name, module in model.named_modules() if isinstance(module, _Slot)}
        own = self.archive.stored_weights
        devices: dict[str, torch.device] = {}
        for name, record in own.items():
            devices[record.stored_as] = next(tensor.device for tensor in slots[name].buffers() if tensor.device.type != "meta")
        for name, slot in slots.items():
            stored = own[name].tensors() if name in own else {}
            for tensor in (*stored, f"{name}.weight"):
                slot._buffers.pop(tensor.removeprefix(f"{name}."), None)
        layers = restored_layers(slots, self.archive)
        places = {slot: devices[self.archive.layers[name].stored_as] for name, slot in slots.items()}
        swap(model, {slot: layer.to(places[slot]) for slot, layer in layers.items()})  # type: ignore[index]
        leftover_slots(model, self.archive, getattr(model, "all_tied_weights_keys", None) or ())
        if attention_record(model):
            attention_scores.use(model)
        return model.eval().requires_grad_(False)

    def is_serializable(self) -> bool:
        """Always False: copy the folder of a loaded model instead of saving it."""
        return False

    @property
    def is_trainable(self) -> bool:
        """Always False: packed weights cannot be trained."""
        return False


def _check_class(model: nn.Module, archive: Archive) -> None:
    """Check that the class is the delivered one: for another head, transformers would use random or tied weights."""
    architectures = archive.config.get("architectures") or []
    if type(model).__name__ not in architectures:
        raise ArtifactError(
            " or ".join(architectures) or "a model with a class in its config",
            given=type(model).__name__,
            where="config.json: architectures",
            fix="Load with the delivered class, or its Auto class.",
        )


def _slot(original: nn.Module, layer: LayerRecord | None, archive: Archive) -> _Slot:
    """Placeholder for the tensors of `layer`; without tensors if another layer holds the shared weight."""
    slot = change_class(original, _Slot)
    slot._parameters.pop("weight")
    for name in {} if layer is None else layer.tensors():
        assert layer is not None
        *inner, leaf = name.removeprefix(f"{layer.name}.").split(".")
        place: nn.Module = slot
        for part in inner:
            place.add_module(part, place._modules.get(part) or nn.Module())
            place = place.get_submodule(part)
        stored = torch.from_numpy(archive.tensors[name])
        place.register_buffer(leaf, torch.empty_like(stored, device="meta"))
    slot.register_buffer("weight", torch.empty(0, device="meta"), persistent=False)
    return slot


__all__ = ["METHOD", "BitstillConfig", "BitstillQuantizer"]
