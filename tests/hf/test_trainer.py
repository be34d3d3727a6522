"""A plain `transformers.Trainer`: its loss from our terms, its result delivered."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import Trainer, TrainingArguments

import bitstill
from bitstill.deliver.callback import deliver_callback
from bitstill.errors import ArtifactError, SpecError, TrainingError
from bitstill.hf.trainer import DistillationLoss, QuantizerCallback
from bitstill.losses.features import AttentionScoreMSE, FeatureMSE
from bitstill.losses.layer_maps import hidden_pairs, score_pairs
from bitstill.losses.logits import CrossEntropy, SoftCrossEntropy
from bitstill.schedules import Linear
from bitstill.train.loop import PROBED_STEPS
from bitstill.train.stage import Term

from . import tiny

LAYERS = (0, 1)
TERMS = (
    Term(SoftCrossEntropy("mean"), teacher="teacher"),
    Term(FeatureMSE(hidden_pairs(LAYERS, 2)), teacher="teacher"),
    Term(AttentionScoreMSE(score_pairs(LAYERS)), teacher="teacher"),
    Term(CrossEntropy(), weight=0.5),
)
RULE = bitstill.quant.Compression(
    weight=bitstill.quant.Ternary(iterations=3, loss_aware=True), targets=("bert.encoder.layer.*",)
)


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
    with torch.no_grad():
        whole = loss(student(**batch), labels)
        part = loss(student(**batch), labels, num_items_in_batch=8)
    assert float(part) == pytest.approx(float(whole) / 2)


def trainer(folder, student, loss=None, callbacks=(), **settings) -> Trainer:
    rows = [{**{name: row[0] for name, row in tiny.batch((9,), seed=i).items()}, "labels": i % 2} for i in range(8)]
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=4, report_to=[], disable_tqdm=True, use_cpu=True,
        dataloader_pin_memory=False, **{"max_steps": 2, "save_strategy": "no", **settings},
    )  # fmt: skip
    return Trainer(student, arguments, train_dataset=rows, compute_loss_func=loss, callbacks=list(callbacks))


def test_trainer_trains_with_it_and_delivers_a_folder_that_loads(tmp_path):
    teacher, student = pair()
    bitstill.prepare(student, RULE)
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    frozen = {name: p.detach().clone() for name, p in teacher.named_parameters()}
    loss = DistillationLoss(student, teacher, TERMS)
    deliver = deliver_callback(tmp_path / "out", tokenizer=tiny.tokenizer())
    trainer(tmp_path / "trainer", student, loss, [deliver]).train()
    changed = [name for name, p in student.named_parameters() if not torch.equal(p, before[name])]
    assert "bert.encoder.layer.0.attention.self.query.weight" in changed
    curvature = student.bert.encoder.layer[0].attention.self.query.weight_transform.curvature
    assert len(curvature.unique()) > 4
    assert all(torch.equal(p, frozen[name]) for name, p in teacher.named_parameters())
    loss.close()
    deliver.on_optimizer_step(None, None, None, model=None, optimizer=SimpleNamespace(step_was_skipped=True))
    delivered = bitstill.load(tmp_path / "out")
    with torch.no_grad():
        logits = student.eval()(**tiny.batch()).logits
        assert torch.equal(delivered(**tiny.batch()).logits, logits)
    assert (tmp_path / "out" / "tokenizer.json").exists()


def test_a_place_that_is_taken_is_refused_before_training(tmp_path):
    (tmp_path / "mine.txt").write_text("a file of the user's")
    with pytest.raises(ArtifactError, match="wanted a new folder"):
        deliver_callback(tmp_path)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
def test_reentrant_checkpoints_keep_the_gradient_or_are_refused():
    """Attention scores inside a reentrant checkpoint have no gradient; hidden states around it do."""
    norms = {}
    for terms in (TERMS[:2], TERMS):
        for reentrant in (None, False, True):
            teacher, student = pair()
            student.train()
            if reentrant is not None:
                student.gradient_checkpointing_enable({"use_reentrant": reentrant})
            loss = DistillationLoss(student, teacher, terms)
            if reentrant and terms is TERMS:
                with pytest.raises(TrainingError, match="scores:0: wanted an intermediate output with a gradient"):
                    student(**tiny.batch())
                continue
            torch.manual_seed(0)  # for dropout
            loss(student(**tiny.batch()), torch.tensor([0, 1, 0, 1])).backward()
            norms[len(terms), reentrant] = float(student.bert.encoder.layer[0].attention.self.query.weight.grad.norm())
    assert norms[2, False] == pytest.approx(norms[2, None], rel=1e-4) == pytest.approx(norms[2, True], rel=1e-4)
    assert norms[4, False] == pytest.approx(norms[4, None], rel=1e-4)
    assert norms[4, None] != pytest.approx(norms[2, None], rel=1e-2)


def test_a_term_without_gradient_is_noticed(tmp_path):
    teacher, student = (tiny.model("bert", seed=seed, num_labels=1) for seed in (0, 1))
    loss = DistillationLoss(student, teacher, (Term(SoftCrossEntropy(), teacher="teacher"),))  # constant: one output
    with pytest.raises(TrainingError, match="term student/SoftCrossEntropy<-teacher: wanted a loss with a gradient"):
        trainer(tmp_path, student, loss, [QuantizerCallback()], max_steps=20).train()
    assert loss.seen == PROBED_STEPS


def test_what_trainer_would_ignore_is_refused(tmp_path):
    teacher, student = pair()
    loss = DistillationLoss(student, teacher, TERMS)
    with pytest.raises(TrainingError, match="Trainer with the callback"):
        trainer(tmp_path, student, loss).train()
    with pytest.raises(SpecError, match=r"label_smoothing_factor 0 .* got 0.3. .* CrossEntropy\(label_smoothing=0.3\)"):
        trainer(tmp_path, student, loss, [QuantizerCallback()], label_smoothing_factor=0.3).train()


def test_what_cannot_be_is_refused():
    teacher, student = pair()
    with pytest.raises(SpecError, match="terms from teacher to student"):
        DistillationLoss(student, teacher, (Term(SoftCrossEntropy(), student="teacher", teacher="student"),))
    with pytest.raises(SpecError, match="length of the schedule"):
        DistillationLoss(student, teacher, (Term(CrossEntropy(), weight=Linear(0.0, 1.0)),))
    loss = DistillationLoss(student, teacher, TERMS)
    with pytest.raises(TrainingError, match="has just run"):
        loss(teacher(**tiny.batch()), torch.tensor([0, 1, 0, 1]))
