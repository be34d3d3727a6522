"""Outputs of frozen teachers: without gradient, in bf16 where that is fast, and cached where inputs repeat.

Without augmentation a teacher sees the same inputs every epoch, so in a stage of several epochs its logits are computed once,
for all training samples in fixed batches, and then looked up by sample index. A resumed run recomputes them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bitstill.data.task import Batch, Task
from bitstill.losses.taps import Output
from bitstill.train.stage import Stage
from bitstill.train.step import run, taps

CACHE_BATCH = 256


class Teachers:
    """Frozen teachers of a stage's terms.

    Args:
        stage: stage whose terms name them.
        models: all models.
        task: task that runs a model on a batch.
        device: device of the batches.
        bf16: run the teachers under bf16 autocast.
    """

    def __init__(self, stage: Stage, models: Mapping[str, nn.Module], task: Task, device: torch.device, bf16: bool) -> None:
        named = dict.fromkeys(term.teacher for term in stage.terms if term.teacher)
        self.models = {name: models[name].to(device).eval() for name in named if name not in stage.train}
        self.stage, self.task, self.device, self.bf16 = stage, task, device, bf16
        augmented = stage.augment and task.augment is not None
        samples = len(task.train)
        several_epochs = stage.total_steps(samples) * stage.batch_size > samples  # else the cache would hardly be used
        self.cached = {name for name in self.models if several_epochs and not augmented and not taps(stage, name)}
        self._logits: dict[str, Tensor] = {}

    def __call__(self, batch: Batch) -> dict[str, Output]:
        """Output of each teacher for `batch`, float32 and without gradient."""
        return {name: self._output(name, batch) for name in self.models}

    def _output(self, name: str, batch: Batch) -> Output:
        if name in self.cached:
            if name not in self._logits:
                self._logits[name] = self._whole_split(name)
            return Output(self._logits[name][batch["index"].cpu()].to(self.device))
        # Not inference mode: its tensors would have to be copied before they can take part in a backward pass.
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            output = run(self.models[name], self.task, batch, taps(self.stage, name))
        features = {name: value.float() for name, value in output.features.items()}
        return Output(output.logits.float(), features, output.positions)

    def _whole_split(self, name: str) -> Tensor:
        split = self.task.train
        orders, parts = [], []
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            for indices in split.batches(CACHE_BATCH):
                moved = {key: value.to(self.device) for key, value in split.take(indices).items()}
                orders.append(indices)
                parts.append(self.task.outputs(self.models[name], moved).float().cpu())
        return torch.cat(parts)[torch.cat(orders).argsort()].clone()


def fast_bf16(device: torch.device) -> bool:
    """Whether bf16 is faster than float32 here: AMX tiles or bf16 dot products on a CPU, any recent GPU."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return device.type == "cpu" and bool(capabilities.get("amx_bf16") and capabilities.get("amx_tile"))
