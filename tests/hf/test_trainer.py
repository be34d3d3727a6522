"""A `transformers.Trainer` of one's own: its loss from our terms, its result delivered."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import Trainer, TrainingArguments

import bitstill
from bitstill.errors import SpecError, TrainingError
from bitstill.losses.features import AttentionScoreMSE, FeatureMSE
from bitstill.losses.layer_maps import hidden_pairs, score_pairs
from bitstill.losses.logits import CrossEntropy, SoftCrossEntropy
from bitstill.run.hf_trainer import Deliver, DistillationLoss
from bitstill.schedules import Linear
from bitstill.train.stage import Term

from . import tiny

LAYERS = (0, 1)
TERMS = (
    Term(SoftCrossEntropy("mean"), teacher="teacher"),
    Term(FeatureMSE(hidden_pairs(LAYERS, 2)), teacher="teacher"),
    Term(AttentionScoreMSE(score_pairs(LAYERS)), teacher="teacher"),
    Term(CrossEntropy(), weight=0.5),
)
RULE = bitstill.Compression(weight=bitstill.Ternary(iterations=3, loss_aware=True), targets=("bert.encoder.layer.*",))


def pair():
    return tiny.model("bert", seed=0), tiny.model("bert", seed=1)


def test_the_loss_is_the_weighted_sum_of_its_terms():
    teacher, student = pair()
    loss = DistillationLoss(student, teacher, TERMS)
    batch = tiny.batch()
    labels = torch.tensor([0, 1, 0, 1])
    found = loss(student(**batch), labels).detach()
    parts = []
    for term in TERMS:
        one = DistillationLoss(student, teacher, (term,))
        parts.append(one(student(**batch), labels).detach())
        one.close()
    assert found == pytest.approx(float(sum(parts)), rel=1e-5)
    assert all(float(part) > 0 for part in parts)
    loss.close()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in student.modules())


def test_several_batches_count_as_one_when_trainer_accumulates():
    teacher, student = pair()
    loss = DistillationLoss(student, teacher, TERMS[:1])
    batch, labels = tiny.batch(), torch.tensor([0, 1, 0, 1])
    whole = loss(student(**batch), labels).detach()
    part = loss(student(**batch), labels, num_items_in_batch=8).detach()
    assert float(part) == pytest.approx(float(whole) / 2)


def test_trainer_trains_with_it_and_delivers_a_folder_that_loads(tmp_path):
    teacher, student = pair()
    bitstill.prepare(student, RULE)
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    frozen = {name: p.detach().clone() for name, p in teacher.named_parameters()}
    rows = [{**{name: row[0] for name, row in tiny.batch((9,), seed=i).items()}, "labels": i % 2} for i in range(8)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "trainer"), max_steps=2, per_device_train_batch_size=4, report_to=[], save_strategy="no",
        disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
    )  # fmt: skip
    loss = DistillationLoss(student, teacher, TERMS)
    deliver = Deliver(tmp_path / "out", tokenizer=tiny.tokenizer())
    Trainer(student, arguments, train_dataset=rows, compute_loss_func=loss, callbacks=[deliver]).train()
    changed = [name for name, p in student.named_parameters() if not torch.equal(p, before[name])]
    assert "bert.encoder.layer.0.attention.self.query.weight" in changed
    curvature = student.bert.encoder.layer[0].attention.self.query.weight_transform.curvature
    assert len(curvature.unique()) > 4
    assert all(torch.equal(p, frozen[name]) for name, p in teacher.named_parameters())
    loss.close()
    deliver.on_optimizer_step(None, None, None, model=None, optimizer=SimpleNamespace(step_was_skipped=True))
    deliver.on_train_begin(None, None, None)
    assert deliver._follow is None
    delivered = bitstill.load(tmp_path / "out")
    with torch.no_grad():
        wanted = student.eval()(**tiny.batch()).logits
        assert torch.allclose(delivered(**tiny.batch()).logits, wanted, atol=1e-6)
    assert (tmp_path / "out" / "tokenizer.json").exists()


def test_what_cannot_be_is_refused():
    teacher, student = pair()
    with pytest.raises(SpecError, match="terms from teacher to student"):
        DistillationLoss(student, teacher, (Term(SoftCrossEntropy(), student="teacher", teacher="student"),))
    with pytest.raises(SpecError, match="length of the schedule"):
        DistillationLoss(student, teacher, (Term(CrossEntropy(), weight=Linear(0.0, 1.0)),))
    loss = DistillationLoss(student, teacher, TERMS)
    with pytest.raises(TrainingError, match="has just run"):
        loss(teacher(**tiny.batch()), torch.tensor([0, 1, 0, 1]))
