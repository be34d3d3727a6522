"""The head of an artifact: the meaning of its outputs, from `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bitstill.errors import ArtifactError

Array = npt.NDArray[Any]
Scores = Literal["softmax", "sigmoid", "identity"]
_OF_PROBLEM: dict[str, Scores] = {
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
    "regression": "identity",
}


@dataclass(frozen=True)
class Head:
    """The meaning of outputs.

    Args:
        labels: their names in order; empty if they have none.
        scores: "softmax", one of several classes; "sigmoid", independent labels; "identity", values.
    """

    labels: tuple[str, ...]
    scores: Scores

    def probabilities(self, outputs: Array) -> Array:
        """Probabilities of classes or labels from outputs (samples, outputs), or the values themselves; float32."""
        if self.scores == "identity":
            return outputs
        logits = outputs.astype(np.float64)
        if self.scores == "sigmoid":
            return np.asarray(np.exp(-np.logaddexp(0.0, -logits)), np.float32)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        return np.asarray(weights / weights.sum(-1, keepdims=True), np.float32)

    def decisions(self, outputs: Array) -> Array | None:
        """Class of each sample (samples,), or whether each label holds (samples, labels); None for values."""
        if self.scores == "identity":
            return None
        return np.asarray(outputs >= 0 if self.scores == "sigmoid" else outputs.argmax(-1))


def head_of(config: Mapping[str, Any]) -> Head:
    """The head that `config.json` describes: by its `problem_type`, and without one by the number of its outputs.

    Raises:
        ArtifactError: an unknown problem type.
    """
    problem = config.get("problem_type")
    if problem is not None and problem not in tuple(_OF_PROBLEM):
        expected, fix = f"one of {', '.join(_OF_PROBLEM)}", "The file was edited, or is of a newer release: deliver it again."
        raise ArtifactError(expected, given=repr(problem)[:100], where="config.json: problem_type", fix=fix)
    names = config.get("id2label") or {}
    labels = tuple(name for _, name in sorted(names.items(), key=lambda item: int(item[0])))
    return Head(labels, _OF_PROBLEM.get(problem or "", "identity" if len(labels) == 1 else "softmax"))
