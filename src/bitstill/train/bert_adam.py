"""Adam without bias correction, as BERT was trained and as BinaryBERT's code trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class BertAdam(torch.optim.AdamW):
    """AdamW whose moments are not corrected for having started at zero (Devlin et al. 2019, code).

    At a constant gradient step t is (1 - beta1^t) / sqrt(1 - beta2^t) times that of Adam: 3.2 times at step 100 and 1.26 times
    at step 1,000 with the common betas. A step is taken by torch's fused AdamW, with a rate, an eps and a decay that undo the
    correction.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on all parameters with a gradient; `closure` as in torch."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        self.param_groups = [part for group in groups for part in self._uncorrected(group)]
        try:
            super().step()
        finally:
            self.param_groups = groups
        return loss

    def _uncorrected(self, group: dict[str, Any]) -> list[dict[str, Any]]:
        """Parts of `group` whose parameters have made equally many steps, each with the numbers that undo the correction."""
        beta1, beta2 = group["betas"]
        by_steps: dict[int, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_steps.setdefault(int(self.state[parameter].get("step", 0)) + 1, []).append(parameter)
        parts = []
        for steps, parameters in by_steps.items():
            factor, root = step_ratio(steps, beta1, beta2), (1.0 - beta2**steps) ** 0.5
            numbers = {"lr": group["lr"] * factor, "eps": group["eps"] / root, "weight_decay": group["weight_decay"] / factor}
            parts.append({**group, **numbers, "params": parameters})
        return parts


def step_ratio(steps: int, beta1: float, beta2: float) -> float:
    """Ratio of step t, from 1, without bias correction to that with it: (1 - beta1^t) / sqrt(1 - beta2^t)."""
    return float((1.0 - beta1**steps) / (1.0 - beta2**steps) ** 0.5)
