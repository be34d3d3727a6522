"""Losses of independent labels: a yes or no is a softmax over two logits, one of them 0."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bitstill.errors import SpecError
from bitstill.losses.logits import kl_divergence, soft_cross_entropy
from bitstill.losses.sigmoid import BinaryCrossEntropy, BinaryKL, SoftBinaryCrossEntropy, binary_kl_divergence
from bitstill.losses.taps import Output

NO_LABELS = torch.zeros(6)


def logits(seed: int) -> Tensor:
    return 3 * torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))


def as_pairs(x: Tensor) -> Tensor:
    """Each logit paired with a 0: (samples * labels, 2)."""
    return torch.stack([x.flatten(), torch.zeros(x.numel())], 1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_divergence_is_that_of_two_classes_summed_over_labels(temperature):
    ours, theirs = logits(0), logits(1)
    per_decision = kl_divergence(as_pairs(ours), as_pairs(theirs), temperature, "batchmean")
    torch.testing.assert_close(binary_kl_divergence(ours, theirs, temperature, "batchmean"), 4 * per_decision)
    torch.testing.assert_close(binary_kl_divergence(ours, theirs, temperature, "mean"), per_decision)
    assert float(BinaryKL(temperature)(Output(ours), Output(ours), NO_LABELS, 0)) == pytest.approx(0, abs=1e-6)


def test_soft_cross_entropy_is_that_of_two_classes():
    ours, theirs = logits(0), logits(1)
    per_decision = soft_cross_entropy(as_pairs(ours), as_pairs(theirs), "batchmean")
    for reduction, factor in (("batchmean", 4), ("mean", 1)):
        loss = SoftBinaryCrossEntropy(reduction)(Output(ours), Output(theirs), NO_LABELS, 0)
        torch.testing.assert_close(loss, factor * per_decision)


def test_weights_count_where_a_label_holds():
    x, labels = logits(0), (logits(1) > 0).float()
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0])
    p = torch.sigmoid(x)
    expected = -(weights * labels * p.log() + (1 - labels) * (1 - p).log()).mean()
    torch.testing.assert_close(BinaryCrossEntropy((1.0, 2.0, 0.5, 3.0))(Output(x), None, labels, 0), expected)
    plain = -(labels * p.log() + (1 - labels) * (1 - p).log()).mean()
    torch.testing.assert_close(BinaryCrossEntropy()(Output(x), None, labels, 0), plain)


def test_far_logits_stay_finite():
    ours, theirs = torch.tensor([[1e4, -1e4]], requires_grad=True), torch.tensor([[-1e4, 1e4]])
    loss = binary_kl_divergence(ours, theirs, 1.0, "batchmean")
    loss.backward()
    assert float(loss.detach()) == pytest.approx(2e4) and bool(torch.isfinite(ours.grad).all())


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(SpecError, match="temperature above 0"):
        BinaryKL(0.0)
