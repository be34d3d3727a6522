"""Every loss against its formula, written with loops over numpy numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from bitstill.errors import DataError
from bitstill.losses.features import AttentionTransfer, FeatureMSE, Pair, attention_transfer
from bitstill.losses.logits import KL, CrossEntropy, MeanSquaredError, SoftCrossEntropy, kl_divergence, soft_cross_entropy
from bitstill.losses.taps import Output
from bitstill.schedules import Linear

NO_LABELS = torch.zeros(0, dtype=torch.int64)


def softmax(row, temperature=1.0):
    powers = [math.exp(float(x) / temperature) for x in row]
    return [p / sum(powers) for p in powers]


def slow_kl(student, teacher, temperature, reduction):
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        for q, p in zip(softmax(s, temperature), softmax(t, temperature), strict=True):
            total += p * (math.log(p) - math.log(q))
    batch, classes = student.shape
    return temperature**2 * total / (batch if reduction == "batchmean" else batch * classes)


def slow_cross_entropy(student, teacher, reduction):
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        total -= sum(p * math.log(q) for q, p in zip(softmax(s), softmax(t), strict=True))
    batch, classes = student.shape
    return total / (batch if reduction == "batchmean" else batch * classes)


def slow_attention(student, teacher):
    """Zagoruyko and Komodakis (2017), eq. 2 with p = 2: map = sum over channels of squares, normalised, squared distance."""
    maps = []
    for features in (student.numpy().astype(np.float64), teacher.numpy().astype(np.float64)):
        batch, channels = features.shape[:2]
        flat = features.reshape(batch, channels, -1)
        rows = [[sum(flat[n, c, i] ** 2 for c in range(channels)) for i in range(flat.shape[2])] for n in range(batch)]
        maps.append([[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in rows])
    distances = [sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) for s, t in zip(*maps, strict=True)]
    return sum(distances) / len(distances)


def logits(batch=5, classes=7):
    return torch.randn(batch, classes) * 2, torch.randn(batch, classes) * 2


def outputs(student: Tensor, teacher: Tensor) -> tuple[Output, Output]:
    return Output(NO_LABELS, {"a": student}), Output(NO_LABELS, {"b": teacher})


@pytest.mark.parametrize("reduction", ["batchmean", "mean"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 5.0])
def test_kl_is_the_formula_with_its_factor_and_its_reduction(temperature, reduction):
    student, teacher = logits()
    wanted = slow_kl(student, teacher, temperature, reduction)
    assert float(kl_divergence(student, teacher, temperature, reduction)) == pytest.approx(wanted, rel=1e-5)
    loss = KL(temperature, reduction)
    assert float(loss(Output(student), Output(teacher), NO_LABELS, 0.3)) == pytest.approx(wanted, rel=1e-5)


def test_kl_of_equal_logits_is_zero_and_its_gradient_hardly_depends_on_the_temperature():
    student, teacher = logits(64, 10)
    assert float(kl_divergence(teacher, teacher, 2.0, "batchmean")) == pytest.approx(0.0, abs=1e-6)
    norms = []
    for temperature in (20.0, 40.0):
        x = student.clone().requires_grad_()
        kl_divergence(x, teacher, temperature, "batchmean").backward()
        norms.append(float(x.grad.norm()))
    assert norms[0] == pytest.approx(norms[1], rel=0.1), "T^2 makes up for the 1 / T^2 of the softened gradient"


def test_kl_gradient_is_the_difference_of_softened_probabilities():
    """d/ds of T^2 KL / N = T (softmax(s / T) - softmax(t / T)) / N (Hinton et al. 2015, eq. 2)."""
    student, teacher = logits()
    x = student.clone().requires_grad_()
    kl_divergence(x, teacher, 3.0, "batchmean").backward()
    for row, (s, t) in enumerate(zip(student.tolist(), teacher.tolist(), strict=True)):
        wanted = [3.0 * (q - p) / len(student) for q, p in zip(softmax(s, 3.0), softmax(t, 3.0), strict=True)]
        assert x.grad[row].tolist() == pytest.approx(wanted, abs=1e-6)


def test_a_temperature_may_follow_a_schedule():
    student, teacher = logits()
    loss = KL(Linear(5.0, 1.0))
    for progress, temperature in ((0.0, 5.0), (0.5, 3.0), (1.0, 1.0)):
        found = float(loss(Output(student), Output(teacher), NO_LABELS, progress))
        assert found == pytest.approx(slow_kl(student, teacher, temperature, "batchmean"), rel=1e-5)


@pytest.mark.parametrize("reduction", ["batchmean", "mean"])
def test_soft_cross_entropy_is_the_formula(reduction):
    student, teacher = logits()
    wanted = slow_cross_entropy(student, teacher, reduction)
    assert float(soft_cross_entropy(student, teacher, reduction)) == pytest.approx(wanted, rel=1e-5)
    assert float(SoftCrossEntropy(reduction)(Output(student), Output(teacher), NO_LABELS, 0)) == pytest.approx(wanted, rel=1e-5)


def test_soft_cross_entropy_is_kl_plus_the_entropy_of_the_teacher():
    student, teacher = logits()
    entropy = -sum(p * math.log(p) for row in teacher.tolist() for p in softmax(row)) / len(teacher)
    wanted = slow_kl(student, teacher, 1.0, "batchmean") + entropy
    assert float(soft_cross_entropy(student, teacher, "batchmean")) == pytest.approx(wanted, rel=1e-5)


def test_soft_cross_entropy_over_one_logit_is_constant():
    """The reason why regression uses squared error for distillation: a softmax over one number is always 1."""
    teacher = torch.randn(6, 1)
    student = torch.randn(6, 1, requires_grad=True)
    loss = soft_cross_entropy(student, teacher, "batchmean")
    loss.backward()
    assert loss.item() == 0.0 and not student.grad.any()


def test_attention_transfer_is_the_formula_for_different_widths_and_ranks():
    student, teacher = torch.randn(3, 4, 2, 5), torch.randn(3, 9, 2, 5)
    assert float(attention_transfer(student, teacher)) == pytest.approx(slow_attention(student, teacher), rel=1e-5)
    student, teacher = torch.randn(3, 2, 6), torch.randn(3, 1, 6)
    assert float(attention_transfer(student, teacher)) == pytest.approx(slow_attention(student, teacher), rel=1e-5)


def test_attention_transfer_ignores_the_size_of_activations_and_adds_up_pairs():
    student, teacher = torch.randn(3, 4, 2, 5), torch.randn(3, 9, 2, 5)
    assert float(attention_transfer(7 * student, 0.1 * teacher)) == pytest.approx(slow_attention(student, teacher), rel=1e-4)
    loss = AttentionTransfer((Pair("a", "b"), Pair("a", "b")))
    assert loss.taps() == (("a", "a"), ("b", "b"))
    wanted = 2 * slow_attention(student, teacher)
    assert float(loss(*outputs(student, teacher), NO_LABELS, 0)) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [((2, 3, 4, 4), (2, 3, 2, 2), "feature maps of equal size"), ((2, 8), (2, 8), "use FeatureMSE")],
)
def test_attention_transfer_says_which_maps_do_not_go_together(student, teacher, message):
    with pytest.raises(DataError, match=message):
        attention_transfer(torch.randn(student), torch.randn(teacher))


def test_feature_mse_is_the_mean_over_all_elements_summed_over_pairs():
    student, teacher = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    differences = [(a - b) ** 2 for a, b in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True)]
    loss = FeatureMSE((Pair("a", "b"),))
    assert float(loss(*outputs(student, teacher), NO_LABELS, 0)) == pytest.approx(sum(differences) / 60, rel=1e-5)
    twice = FeatureMSE((Pair("a", "b"), Pair("a", "b")))
    assert float(twice(*outputs(student, teacher), NO_LABELS, 0)) == pytest.approx(2 * sum(differences) / 60, rel=1e-5)


def test_feature_mse_refuses_outputs_that_would_broadcast():
    with pytest.raises(DataError, match=r"FeatureMSE a -> b.*AttentionTransfer, which allows different widths"):
        FeatureMSE((Pair("a", "b"),))(*outputs(torch.randn(3, 1), torch.randn(3, 4)), NO_LABELS, 0)


def test_squared_error_with_labels_is_regression_and_with_a_teacher_logit_matching():
    student, teacher, labels = torch.randn(6, 1), torch.randn(6, 1), torch.randn(6)
    with_labels = sum((s - y) ** 2 for s, y in zip(student[:, 0].tolist(), labels.tolist(), strict=True)) / 6
    with_teacher = sum((s - t) ** 2 for s, t in zip(student[:, 0].tolist(), teacher[:, 0].tolist(), strict=True)) / 6
    assert float(MeanSquaredError()(Output(student), None, labels, 0)) == pytest.approx(with_labels, rel=1e-5)
    assert float(MeanSquaredError()(Output(student), Output(teacher), labels, 0)) == pytest.approx(with_teacher, rel=1e-5)
    flat = MeanSquaredError()(Output(student[:, 0]), None, labels, 0)
    assert float(flat) == pytest.approx(with_labels, rel=1e-5), "(batch,) logits do not broadcast to (batch, batch)"


def test_cross_entropy_is_minus_the_mean_log_probability_of_the_label():
    student, _ = logits()
    labels = torch.tensor([0, 6, 3, 3, 1])
    probabilities = [softmax(row)[label] for row, label in zip(student.tolist(), labels.tolist(), strict=True)]
    wanted = -sum(math.log(p) for p in probabilities) / 5
    assert float(CrossEntropy()(Output(student), None, labels, 0)) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("loss", [KL(), SoftCrossEntropy(), CrossEntropy(), MeanSquaredError()])
def test_losses_are_computed_in_float32_whatever_the_logits_are(loss):
    student, teacher = logits()
    labels = torch.zeros(5, dtype=torch.int64)
    found = loss(Output(student.bfloat16()), Output(teacher.bfloat16()), labels, 0)
    wanted = loss(Output(student.bfloat16().float()), Output(teacher.bfloat16().float()), labels, 0)
    assert found.dtype == torch.float32 and torch.equal(found, wanted)
    assert loss.taps() == ((), ())


def test_cross_entropy_refuses_values_that_are_not_classes():
    with pytest.raises(DataError, match=r"classes as labels, got torch.float32 values. Use MeanSquaredError"):
        CrossEntropy()(Output(torch.randn(5, 1)), None, torch.randn(5), 0)
