"""Estimate of how many binary weights can change sign under a schedule; the rest keep the signs of the float weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from bitstill.errors import BitstillWarning
from bitstill.model.compressed_layers import is_compressed
from bitstill.model.weight_transform import WeightTransform
from bitstill.quant.binary import Binary
from bitstill.quant.split import SplitBinary
from bitstill.schedules import at
from bitstill.train.bert_adam import step_ratio
from bitstill.train.optim import AdamW, Optimizer
from bitstill.train.run import Run, data_for
from bitstill.train.stage import Stage

MOST = 0.5
"""Fraction below which a stage warns that most signs cannot change."""


def note_sign_changes(run: Run, stage: Stage) -> None:
    """Log the fraction of binary weights that can change sign in a stage and its continuations; warn if it is small.

    Nothing is logged for stages that continue another, train no binary weights, or use an optimizer other than `AdamW`, the
    only one with bounded steps.
    """
    stretch = _stretch(run.stages[run.position.stage :], stage)
    if (run.position.stage and not stage.begin) or not all(isinstance(each.optimizer, AdamW) for each in stretch):
        return
    reach = sum(adam_reach(each.optimizer, each.total_steps(len(data_for(each, run.data).train))) for each in stretch)
    for name in stage.train:
        fraction = fraction_within(run.models[name], reach)
        if fraction is None:
            continue
        run.history.append({"stage": stage.name, "step": 0, "can_change_sign": fraction})
        if fraction < MOST and run.accelerator.is_main_process:
            warnings.warn(
                f"stage {stage.name!r}: at most {fraction:.1%} of the binary weights of {name!r} can change sign. Its learning"
                f" rates add up to {reach:.2g}, about as far as Adam moves a weight. Train longer, or raise the learning rate.",
                BitstillWarning,
                stacklevel=2,
            )


def adam_reach(optimizer: Optimizer, steps: int) -> float:
    """Approximate maximum distance that `AdamW` moves a weight: the sum of its learning rates (constant gradient)."""
    assert isinstance(optimizer, AdamW)
    rates = [at(optimizer.lr, (step + 0.5) / steps) for step in range(steps)]
    if optimizer.bias_correction:
        return sum(rates)
    return sum(lr * step_ratio(step + 1, optimizer.beta1, optimizer.beta2) for step, lr in enumerate(rates))


def fraction_within(model: nn.Module, reach: float) -> float | None:
    """Fraction of the latent weights of binary layers whose magnitude is at most `reach`; None without such layers."""
    latents = list({id(latent): latent for latent in _binary_latents(model)}.values())
    if not latents:
        return None
    near = sum(int((latent.detach().abs() <= reach).sum()) for latent in latents)
    return near / sum(latent.numel() for latent in latents)


def _binary_latents(model: nn.Module) -> Iterator[Tensor]:
    for layer in model.modules():
        transform = layer.weight_transform if is_compressed(layer) else None
        if isinstance(transform, WeightTransform) and isinstance(transform.quantizer, (Binary, SplitBinary)):
            assert isinstance(layer.weight, Tensor)
            yield from (layer.weight, *transform.latents.values())


def _stretch(stages: Sequence[Stage], first: Stage) -> list[Stage]:
    """`first` and the following stages that continue training the same models unchanged."""
    stretch = [first]
    for stage in stages[1:]:
        if stage.begin or stage.train != first.train or not stage.terms:
            break
        stretch.append(stage)
    return [stage for stage in stretch if stage.parameters != "learned"]
