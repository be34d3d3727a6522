"""XTC: its plan for each setting, the layers it compresses, and its delivery."""

from __future__ import annotations

import copy
import itertools
import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import bitstill
import bitstill.train.checkpoint as checkpoint
import bitstill.train.loop as loop
from bitstill.data.objective import Objective
from bitstill.data.objectives import Classification, Regression
from bitstill.data.task import evaluate, predict
from bitstill.errors import ArtifactError, DataError, MatchError, SpecError, TrainingError
from bitstill.losses.features import AttentionScoreMSE, FeatureMSE, Pair
from bitstill.losses.layer_maps import hidden_pairs, score_pairs
from bitstill.losses.logits import CrossEntropy, MeanSquaredError, SoftCrossEntropy
from bitstill.model.lifecycle import freeze, pack, prepare, report
from bitstill.model.weight_transform import WeightTransform
from bitstill.quant.granularity import PerChannel, PerTensor
from bitstill.quant.rules import Binary, Compression, QuantizeInput, Ternary, Uniform
from bitstill.recipes import XTC
from bitstill.recipes.recipe import RunContext
from bitstill.run.models import resolve_models
from bitstill.run.rehearsal import rehearse
from bitstill.schedules import WarmupLinear
from bitstill.train.actions import Compress, Copy, ReduceLayers, SetDropout, Uncompress
from bitstill.train.optim import SGD, AdamW
from bitstill.train.stage import Stage, Term
from bitstill.train.step import TrainingStep
from bitstill.train.teachers import Teachers

from .encoders import QUIET, VOCAB, WIDTH, bert, encoder, task

CLASSES = Classification(2)
SHORT = {"steps": 4, "batch_size": 16, "validations": 2}
ALL = tuple(range(4))


def stages(recipe: XTC, *, student: nn.Module | None = None, objective: Objective = CLASSES, untrained=()):
    models = {"teacher": encoder()} if student is None else {"teacher": encoder(), "student": student}
    return recipe.stages(RunContext(objective, models, frozenset(untrained)))


def names(found) -> list[str]:
    return [stage.name for stage in found]


def terms(stage) -> list[tuple]:
    assert all(term.student == "student" for term in stage.terms)
    return [(term.loss, term.teacher, term.weight) for term in stage.terms]


def losses(stage) -> list[type]:
    return [type(term.loss) for term in stage.terms]


def together(kept=ALL, **options) -> list[tuple]:
    pairs = hidden_pairs(kept, 4, options.get("layer_map", "last"))
    return [
        (SoftCrossEntropy("mean"), "teacher", 1.0),
        (FeatureMSE(pairs), "teacher", 1.0),
        (AttentionScoreMSE(score_pairs(kept)), "teacher", 1.0),
    ]


def rules(weight, rows, input=QuantizeInput()):  # noqa: B008 (frozen)
    return (
        Compression(weight=weight, targets=("blocks.*",), input=input),
        Compression(weight=rows, targets=("words",)),
    )


def binary_rules():
    return rules(Binary(PerChannel(), scale_dtype="float16"), Binary(PerChannel(), scale_dtype="float16"))


def adamw(lr: float) -> AdamW:
    return AdamW(WarmupLinear(lr, warmup=0.1), weight_decay=0.01)


# Plans.


def test_by_default_the_teacher_itself_is_made_binary_in_one_stage_with_all_terms():
    (stage,) = stages(XTC())
    assert stage.begin == (Copy("teacher", "student"), Compress("student", binary_rules()))
    assert (stage.name, stage.train, stage.parameters) == ("binary", ("student",), "all") and terms(stage) == together()
    assert (stage.epochs, stage.steps, stage.batch_size, stage.clip_norm, stage.augment) == (6, None, 32, 1.0, True)
    assert (stage.optimizer, stage.validations, stage.keep) == (adamw(3e-4), 20, "best")
    assert XTC().needs_teacher and XTC().makes_student


@pytest.mark.parametrize(
    ("bits", "name", "quantizer"),
    [
        (1, "binary", Binary(PerChannel(), scale_dtype="float16")),
        ("ternary", "ternary", Ternary(PerChannel(), scale_dtype="float16")),
        (2, "2 bits", Uniform(2, granularity=PerChannel(), scale_dtype="float16")),
        (8, "8 bits", Uniform(8, granularity=PerChannel(), scale_dtype="float16")),
    ],
)
def test_bits_name_the_stage_and_the_quantizer(bits, name, quantizer):
    (stage,) = stages(XTC(bits))
    assert stage.name == name and stage.begin[-1] == Compress("student", rules(quantizer, quantizer))


def test_rows_of_the_embedding_have_scales_of_their_own_whatever_matrices_have():
    """The paper's settings also give the paper's scope."""
    (stage,) = stages(XTC(granularity=PerTensor(), scale_dtype="float32", input=None))
    assert stage.begin[-1] == Compress("student", rules(Binary(PerTensor()), Binary(PerChannel()), None))
    (stage,) = stages(XTC(embeddings=False))
    assert stage.begin[-1] == Compress("student", binary_rules()[:1])


def test_the_pooler_stays_in_float_unless_asked_for():
    for pooler in (False, True):
        (*_, compress) = stages(XTC(pooler=pooler))[0].begin
        assert ("pooler" in compress.compression[0].targets) == pooler


def test_learned_scales_are_those_of_matrices():
    """A learned scale per row of the table would quantize the whole table at every step."""
    (stage,) = stages(XTC(learned_scales=True))
    learned = Binary(PerChannel(), scale_dtype="float16", learned_scale=True)
    assert stage.begin[-1] == Compress("student", rules(learned, replace(learned, learned_scale=False)))
    found = stages(XTC("ternary", progressive=(8,), learned_scales=True))
    assert found[1].begin[-1].compression[0].weight == Ternary(PerChannel(), scale_dtype="float16", learned_scale=True)


def test_learned_scales_learn_and_are_delivered():
    result = bitstill.compress(XTC(**SHORT, lr=0.05, learned_scales=True), task(), {"teacher": encoder()}, settings=QUIET)
    student = result.models["student"]
    for block in student.blocks:
        scale = block.query.weight_transform.learned["scale"]
        assert not torch.equal(scale, block.query.weight.detach().abs().mean(1, keepdim=True)), "no longer the formula's"
    assert not student.words.weight_transform.learned
    wanted = predict(pack(freeze(student)), task(), task().test)
    assert torch.equal(predict(result.model, task(), task().test), wanted)
    rows = {row.parameter: row for row in report(student).rows}
    assert rows["blocks.0.query.weight_transform.learned.scale"].detail == "learned by the quantizer"
    assert len(rows) == len(list(student.parameters()))


def test_a_model_that_names_no_word_embeddings_has_none_quantized():
    teacher = encoder()
    teacher.get_input_embeddings = None
    (stage,) = XTC().stages(RunContext(CLASSES, {"teacher": teacher}))
    assert stage.begin[-1] == Compress("student", binary_rules()[:1])


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"layers": 2}, (1, 3)),
        ({"layers": 3}, (0, 1, 3)),
        ({"layers": 3, "choice": "top"}, (1, 2, 3)),
        ({"layers": 3, "choice": "bottom"}, (0, 1, 2)),
        ({"layers": (0, 2)}, (0, 2)),
        ({"layers": (0, 2), "choice": "top", "layer_map": "paper"}, (0, 2)),
        ({"layers": (1,)}, (1,)),
    ],
)
def test_a_student_with_fewer_layers_learns_in_float_first(options, kept):
    warm, main = stages(XTC(**options))
    assert names((warm, main)) == ["float student", "binary"]
    assert warm.begin == (ReduceLayers("teacher", "student", kept),) and main.begin == (Compress("student", binary_rules()),)
    assert terms(warm) == terms(main) == together(kept, **options)
    assert (warm.epochs, main.epochs, warm.optimizer, main.optimizer) == (6, 6, adamw(1e-4), adamw(3e-4))
    assert warm.keep == main.keep == "best"


def test_all_layers_by_number_are_no_reduction():
    assert stages(XTC(layers=4)) == stages(XTC(layers=ALL)) == stages(XTC())


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"layers": 2, "epochs": 5}, [("float student", 5), ("binary", 5)]),
        ({"layers": 2, "float_epochs": 0.5}, [("float student", 0.5), ("binary", 6)]),
        ({"layers": 2, "float_epochs": 0}, [("binary", 6)]),
        ({"float_epochs": 2}, [("float student", 2), ("binary", 6)]),
        ({"bits": None, "layers": 2}, [("float student", 6)]),
        ({"bits": None, "layers": 2, "float_epochs": 1}, [("float student", 1)]),
    ],
)
def test_how_long_the_student_learns_in_float(options, wanted):
    found = stages(XTC(**options, float_lr=0.002))
    assert [(stage.name, stage.epochs) for stage in found] == wanted
    birth = ReduceLayers("teacher", "student", (1, 3)) if "layers" in options else Copy("teacher", "student")
    assert found[0].begin[0] == birth, "the first stage makes the student, whichever it is"
    assert not any(isinstance(action, (Copy, ReduceLayers)) for stage in found[1:] for action in stage.begin)
    if wanted[0][0] == "float student":
        assert found[0].optimizer == adamw(0.002) and len(found[0].begin) == 1


def test_bits_on_the_way_share_the_epochs_and_each_starts_from_the_float_layers():
    found = stages(XTC("ternary", progressive=(8, 4), layers=2, epochs=6))
    assert [(stage.name, stage.epochs) for stage in found] == [
        ("float student", 6), ("8 bits", 2), ("4 bits", 2), ("ternary", 2),
    ]  # fmt: skip
    kinds = [[type(action) for action in stage.begin] for stage in found]
    assert kinds == [[ReduceLayers], [Compress], [Uncompress, Compress], [Uncompress, Compress]]
    assert [stage.begin[-1].compression[0].weight.name for stage in found[1:]] == ["8-bit affine", "4-bit affine", "ternary"]
    assert all(terms(stage) == together((1, 3)) for stage in found)
    first = stages(XTC(1, progressive=(8,)))
    assert [type(action) for action in first[0].begin] == [Copy, Compress] and [s.epochs for s in first] == [3, 3]


def test_a_schedule_in_parts_separates_the_terms():
    logits, hidden, scores = together()
    two, three = stages(XTC(schedule="two", epochs=6)), stages(XTC(schedule="three", epochs=6))
    assert [(s.name, s.epochs, s.keep) for s in two] == [("binary features", 3, "last"), ("binary logits", 3, "best")]
    assert [terms(stage) for stage in two] == [[hidden, scores], [logits]]
    assert [(s.name, s.epochs, s.keep) for s in three] == [
        ("binary features", 2, "last"), ("binary all", 2, "last"), ("binary logits", 2, "best"),
    ]  # fmt: skip
    assert [terms(stage) for stage in three] == [[hidden, scores], [logits, hidden, scores], [logits]]
    for found in (two, three):
        assert [type(action) for action in found[0].begin] == [Copy, Compress]
        assert not any(stage.begin for stage in found[1:])
    assert names(stages(XTC(layers=2, progressive=(4,), schedule="two"))) == [
        f"{name} {part}" for name in ("float student", "4 bits", "binary") for part in ("features", "logits")
    ]


def test_labels_come_where_logits_do():
    label = (CrossEntropy(), None, 0.5)
    (single,) = stages(XTC(label_weight=0.5))
    assert terms(single) == [*together(), label]
    features, last = stages(XTC(label_weight=0.5, schedule="two"))
    assert label in terms(last) and label not in terms(features)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"logit_weight": 0}, [FeatureMSE, AttentionScoreMSE]),
        ({"hidden_weight": 0}, [SoftCrossEntropy, AttentionScoreMSE]),
        ({"attention_weight": 0, "label_weight": 2}, [SoftCrossEntropy, FeatureMSE, CrossEntropy]),
        ({"attention_weight": 0, "hidden_weight": 0}, [SoftCrossEntropy]),
    ],
)
def test_terms_without_weight_are_left_out(options, wanted):
    (stage,) = stages(XTC(**options))
    assert losses(stage) == wanted


def test_options_reach_every_stage():
    recipe = XTC(
        layers=2, batch_size=7, validations=3, clip_norm=None, augment=False, weight_decay=0.1, warmup=0.5, lr=1.0,
        float_lr=2.0, reduction="batchmean", dropout=0.2, hidden_weight=3.0, attention_weight=4.0, logit_weight=5.0,
    )  # fmt: skip
    for stage, lr in zip(stages(recipe), (2.0, 1.0), strict=True):
        assert (stage.batch_size, stage.validations, stage.clip_norm, stage.augment) == (7, 3, None, False)
        assert stage.optimizer == AdamW(WarmupLinear(lr, warmup=0.5), weight_decay=0.1)
        assert [term.weight for term in stage.terms] == [5.0, 3.0, 4.0] and stage.terms[0].loss.reduction == "batchmean"
    assert stages(recipe)[0].begin == (ReduceLayers("teacher", "student", (1, 3)), SetDropout("student", 0.2))
    assert [(s.steps, s.epochs) for s in stages(replace(recipe, steps=9))] == [(9, None), (9, None)]


def test_a_teacher_with_a_new_classifier_is_fine_tuned_on_the_labels_first():
    first, main = stages(XTC(teacher_epochs=2, teacher_lr=0.01), untrained=("teacher",))
    assert (first.name, first.train, first.epochs, first.keep) == ("fine-tuning", ("teacher",), 2, "best")
    assert [(type(t.loss), t.student, t.teacher) for t in first.terms] == [(CrossEntropy, "teacher", None)]
    assert first.optimizer == adamw(0.01) and not first.begin
    assert main.begin[0] == Copy("teacher", "student"), "the student is made when the teacher has learned"


def test_regression_replaces_the_soft_cross_entropy_and_the_cross_entropy():
    first, warm, main = stages(XTC(layers=2, label_weight=0.5), objective=Regression(), untrained=("teacher",))
    assert losses(first) == [MeanSquaredError]
    assert terms(warm) == terms(main)
    assert terms(main) == [(MeanSquaredError(), "teacher", 1.0), *together((1, 3))[1:], (MeanSquaredError(), None, 0.5)]


def test_a_given_student_is_compressed_as_it_is():
    (stage,) = stages(XTC(dropout=0.3), student=encoder(1))
    assert stage.begin == (SetDropout("student", 0.3), Compress("student", binary_rules())) and terms(stage) == together()
    (stage,) = stages(XTC(), student=encoder(1, layers=2))
    assert stage.begin == (Compress("student", binary_rules()),) and terms(stage) == together((1, 3))
    (stage,) = stages(XTC(layers=(0, 2)), student=encoder(1, layers=2))
    assert terms(stage) == together((0, 2)), "the list says which of the teacher's layers they are"
    warm, _ = stages(XTC(float_epochs=1), student=encoder(1, layers=2))
    assert warm.begin == ()


def test_the_given_student_names_the_layers():
    student = nn.Module()
    student.table, student.net = nn.Embedding(VOCAB, WIDTH), encoder(layers=2)
    student.get_input_embeddings = lambda: student.table
    (stage,) = stages(XTC(), student=student)
    assert [rule.targets for rule in stage.begin[0].compression] == [("net.blocks.*",), ("table",)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logit_weight": 0, "hidden_weight": 0, "attention_weight": 0}, "a weight above 0 for one"),
        ({"logit_weight": 0, "hidden_weight": 0, "attention_weight": 0, "label_weight": 1}, "a weight above 0 for one"),
        ({"schedule": "two", "logit_weight": 0}, "logits and hidden states or attention"),
        ({"schedule": "three", "hidden_weight": 0, "attention_weight": 0}, "logits and hidden states or attention"),
        ({"bits": None}, "something to compress"),
        ({"bits": None, "progressive": (8,), "layers": 2}, "bits at the end"),
        ({"layers": 0}, "1 to 4 layers"),
        ({"layers": 5}, "1 to 4 layers"),
        ({"layers": ()}, "ascending order"),
        ({"layers": (2, 1)}, "ascending order"),
        ({"layers": (0, 4)}, "ascending order"),
        ({"epochs": 0}, "duration above 0"),
        # Nothing to do:
        ({"bits": None, "layers": 2, "float_epochs": 0}, "XTC"),
        # Two stages with one name, delivered to one folder:
        ({"bits": 4, "progressive": (8, 4)}, "XTC progressive"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_runs(options, message):
    with pytest.raises(SpecError, match=message):
        stages(XTC(**options))


def test_a_student_that_does_not_have_the_layers_it_should_is_refused():
    with pytest.raises(SpecError, match="XTC layers: wanted 3 layers, as the student has, got 2"):
        stages(XTC(layers=(0, 1)), student=encoder(layers=3))
    with pytest.raises(SpecError, match="1 to 4 layers, got 5"):
        stages(XTC(), student=encoder(layers=5))


def test_with_a_given_student_nothing_to_do_is_an_error_too():
    with pytest.raises(SpecError, match="XTC"):
        stages(XTC(bits=None, layers=(0, 2)), student=encoder(layers=2))


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_network_without_blocks_is_refused(role):
    flat = nn.Sequential(nn.Embedding(5, 5), nn.Linear(5, 2))
    with pytest.raises(MatchError, match="a list of equal blocks"):
        XTC().stages(RunContext(CLASSES, {"teacher": encoder(), role: flat}))


# Compressed layers.

FLOAT_IN_BERT = {
    "bert.embeddings.position_embeddings.weight": "not selected",
    "bert.embeddings.token_type_embeddings.weight": "not selected",
    "bert.pooler.dense.weight": "not selected",
    "classifier.weight": "not selected",
}


def prepared(teacher: nn.Module, **options) -> nn.Module:
    recipe, data = XTC(**SHORT, **options), task()
    cast = resolve_models(recipe, {"teacher": teacher}, 0, data)
    stages = recipe.stages(RunContext(data.objective, cast.networks, cast.untrained))
    return rehearse(stages, cast.networks, {"task": data})["student"]


def check_rows(student: nn.Module, table: str, blocks: str) -> None:
    rows = report(student).rows
    assert [row.parameter for row in rows] == [name for name, _ in student.named_parameters()], "every parameter, once"
    for row in rows:
        matrix = row.parameter.startswith(f"{blocks}.") and len(row.shape) == 2
        assert row.action == ("quantized" if matrix or row.parameter == f"{table}.weight" else "float"), row


def test_only_matrices_in_blocks_and_word_embeddings_are_quantized():
    student = prepared(encoder())
    check_rows(student, "words", "blocks")
    assert report(prepared(encoder(), embeddings=False)).rows[0].action == "float"
    transformer = prepared(bert())
    check_rows(transformer, "bert.embeddings.word_embeddings", "bert.encoder.layer")
    rows = {row.parameter: row for row in report(transformer).rows}
    assert {name: rows[name].detail for name in FLOAT_IN_BERT} == FLOAT_IN_BERT
    assert {row.detail for row in rows.values() if row.action == "quantized"} == {"binary"}
    assert "classifier.bias" in rows and len(report(prepared(bert(), layers=2)).rows) < len(rows)


def test_a_table_tied_to_the_output_is_one_parameter_that_is_reported_once(tmp_path):
    class Tied(type(encoder())):
        """Also predicts the next word, with the table of its embedding; registered first, as in some models."""

        def __init__(self) -> None:
            super().__init__()
            words = self._modules.pop("words")
            self.decoder, self.words = nn.Linear(WIDTH, VOCAB, bias=False), words
            self.decoder.weight = words.weight

        def forward(self, input_ids, attention_mask):
            logits = super().forward(input_ids, attention_mask)
            return logits + self.decoder(self.words(input_ids)[:, 0])[:, :2]

    torch.manual_seed(0)
    teacher = Tied()
    student = prepared(teacher)
    assert student.decoder.weight is student.words.weight
    rows = {row.parameter: row.action for row in report(student).rows}
    assert len(rows) == len(report(student).rows) == len(list(student.parameters()))
    (name,) = {"decoder.weight", "words.weight"} & rows.keys()
    assert rows[name] == "quantized", "though one of its two uses is in float"
    result = bitstill.compress(XTC(**SHORT), task(), {"teacher": teacher}, settings=QUIET, out=tmp_path / "out")
    wanted = pack(freeze(result.models["student"]))
    assert torch.equal(predict(result.model, task(), task().test), predict(wanted, task(), task().test))


def test_only_the_rows_of_words_in_the_batch_are_quantized_in_a_step(monkeypatch):
    """Quantizing the whole table would take most of the step: BERT's has 30,522 rows."""
    data, seen = task(), []
    student = prepared(encoder())
    (stage,) = stages(XTC(**SHORT))
    batch = data.train.take(torch.arange(3))
    used = batch["input_ids"].unique()
    assert len(used) < VOCAB
    real = WeightTransform._quantize
    table = student.words.weight_transform

    def quantize(self, weight, *arguments):
        if self is table:
            seen.append(weight.detach().clone())
        return real(self, weight, *arguments)

    monkeypatch.setattr(WeightTransform, "_quantize", quantize)
    models = {"student": student, "teacher": encoder()}
    teachers = Teachers(stage, models, data, torch.device("cpu"), False)
    loss, _, norms = TrainingStep(stage, models, data).train()(batch, teachers(batch), 0.0, True)
    loss.backward()
    assert len(seen) == 1 and torch.equal(seen[0], student.words.weight[used]), "each of them once, whatever repeats"
    touched = student.words.weight.grad.abs().sum(1).nonzero().flatten()
    assert touched.tolist() == [index for index in used.tolist() if index != student.words.padding_idx]
    assert all(float(norm) > 0 for norm in norms.values())


def test_rows_that_were_gathered_are_those_of_the_whole_table():
    student = prepared(encoder())
    ids = torch.tensor([[4, 7, 7, 0], [49, 4, 0, 0]])
    assert torch.equal(student.words(ids), student.words.effective_weight()[ids])


# Refused before training.


@pytest.fixture
def untrained(monkeypatch):
    monkeypatch.setattr("bitstill.run.driver.train", lambda *_, **__: pytest.fail("training began"))


@pytest.mark.parametrize(
    ("student", "error", "message"),
    [
        (lambda: encoder(classes=3), DataError, "2 classes, as tiny text has, got 3 outputs"),
        (lambda: encoder(layers=9), SpecError, "1 to 4 layers"),
    ],
)
def test_models_that_do_not_go_together_are_refused_before_training(student, error, message, untrained):
    with pytest.raises(error, match=message):
        bitstill.compress(XTC(**SHORT), task(), {"teacher": encoder(), "student": student()}, settings=QUIET)


def wider():
    import tests.recipes.encoders as encoders

    class Wide(encoders.Encoder):
        def __init__(self):
            super().__init__()
            self.words, self.positions = nn.Embedding(VOCAB, 24), nn.Embedding(12, 24)
            self.blocks = nn.ModuleList(encoders.Block(24) for _ in range(4))
            self.pooler, self.classifier = nn.Linear(24, 24), nn.Linear(24, 2)

    return Wide()


def test_a_student_of_another_width_is_refused_with_the_layers_it_was_paired_by(untrained):
    models = {"teacher": encoder(), "student": wider()}
    with pytest.raises(DataError, match=r"FeatureMSE hidden:0 -> hidden:0: wanted outputs of equal shape.*24\).*16\)"):
        bitstill.compress(XTC(**SHORT), task(), models, settings=QUIET)


def test_but_may_imitate_logits_and_attention():
    models = {"teacher": encoder(), "student": wider()}
    result = bitstill.compress(XTC(**SHORT, hidden_weight=0), task(), models, settings=QUIET)
    assert result.report["history"][-1]["stage"] == "binary"


def test_scores_of_a_model_that_does_not_tell_them_are_refused_and_can_be_left_out(monkeypatch):
    teacher = encoder()
    for block in teacher.blocks:
        block.forward = type(block).forward.__get__(copy.deepcopy(block).requires_grad_(False))
    with monkeypatch.context() as patch:
        patch.setattr("bitstill.run.driver.train", lambda *_, **__: pytest.fail("training began"))
        with pytest.raises(MatchError, match=r"'scores:0'.*Attention scores need a model"):
            bitstill.compress(XTC(**SHORT), task(), {"teacher": teacher}, settings=QUIET)


def test_words_that_the_model_does_not_know_are_refused(untrained):
    small = encoder()
    small.words = nn.Embedding(VOCAB - 5, WIDTH)
    with pytest.raises(DataError, match=r"a model that knows token 49.*45 rows"):
        bitstill.compress(XTC(**SHORT), task(), {"teacher": small}, settings=QUIET)


def test_the_rehearsal_runs_every_term_once_without_touching_the_models(monkeypatch):
    recipe, data = XTC(**SHORT, layers=2, schedule="three", label_weight=1.0, progressive=(4,), dropout=0.1), task()
    networks = {"teacher": encoder().train()}
    before = copy.deepcopy(networks["teacher"].state_dict())
    found = recipe.stages(RunContext(CLASSES, networks))
    calls = []
    for loss in (SoftCrossEntropy, FeatureMSE, AttentionScoreMSE, CrossEntropy):
        real = loss.__call__
        monkeypatch.setattr(
            loss,
            "__call__",
            lambda self, *a, real=real: (calls.append((type(self), torch.is_grad_enabled())), real(self, *a))[1],
        )
    state = torch.get_rng_state()
    models = rehearse(found, networks, {"task": data})
    assert calls == [(type(term.loss), True) for stage in found for term in stage.terms]
    assert torch.equal(torch.get_rng_state(), state)
    assert networks.keys() == {"teacher"} and networks["teacher"].training
    assert all(torch.equal(tensor, before[name]) for name, tensor in networks["teacher"].state_dict().items())
    assert len(models["student"].blocks) == 2 and report(models["student"]).rows[0].detail == "binary"


# Delivery.


def test_what_is_delivered_is_the_packed_student_to_the_last_bit_and_as_small_as_its_bits(tmp_path):
    data, teacher = task(), bert()
    before = copy.deepcopy(teacher.state_dict())
    result = bitstill.compress(XTC(**SHORT), data, {"teacher": teacher}, settings=QUIET, out=tmp_path / "out")
    student = result.models["student"]
    wanted = predict(pack(freeze(student)), data, data.test)
    again = bitstill.load(tmp_path / "out")
    for model in (result.model, again):
        assert torch.equal(predict(model, data, data.test), wanted)
        assert data.objective.metrics(wanted, data.test.labels)[data.objective.decides] == result.report["delivered"]["test"]
    assert type(again) is type(teacher) and not again.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in result.models["teacher"].state_dict().items())

    size = result.report["size"]
    floats = sum(p.numel() for p in student.parameters())
    assert size["float_bytes"] == 4 * floats and size["nominal_bits"] == 1.0
    quantized = {row["parameter"]: row["shape"] for row in result.report["parameters"] if row["action"] == "quantized"}
    bits = sum(shape[0] * (shape[1] // 8) for shape in quantized.values())
    scales = sum(2 * shape[0] for shape in quantized.values())
    rest = 4 * (floats - sum(shape[0] * shape[1] for shape in quantized.values()))
    assert size["by_kind"]["codes"] == bits and size["by_kind"]["scales"] == scales
    assert size["by_kind"]["leftovers"] == rest
    assert (tmp_path / "out" / "model.safetensors").stat().st_size == size["file_bytes"]
    assert size["ratio"] == pytest.approx(size["float_bytes"] / size["file_bytes"], rel=1e-3)
    kept = [entry for entry in result.report["history"] if "kept" in entry]
    assert len(kept) == 1 and evaluate(freeze(student), data, data.validation) == kept[0]["kept"]


def test_the_run_learns():
    """The student's distance to its teacher decreases, and a binary student of a good teacher is better than chance."""
    data = task(256)
    fine = bitstill.compress(
        bitstill.recipes.FineTuning(steps=30, lr=0.02, validations=2), data, {"student": encoder(dropout=0.1)}, settings=QUIET
    )
    teacher = fine.models["student"]
    assert fine.report["delivered"]["test"] > 85
    recipe = XTC(steps=20, lr=0.01, validations=2)
    result = bitstill.compress(recipe, data, {"teacher": teacher}, settings=QUIET)
    curve = [entry["loss"] for entry in result.report["history"] if "loss" in entry]
    assert sum(curve[-5:]) < 0.8 * sum(curve[:5])
    assert result.report["delivered"]["test"] > 70 and result.report["teacher"]["test"] == fine.report["delivered"]["test"]


def test_every_stage_is_delivered_and_judged_if_asked_for(tmp_path):
    data, out = task(), tmp_path / "out"
    recipe = XTC(**SHORT, layers=2, progressive=(8,))
    result = bitstill.compress(recipe, data, {"teacher": bert()}, settings=QUIET, out=out, each_stage=True)
    folders = {"float student": tmp_path / "out-float-student", "8 bits": tmp_path / "out-8-bits", "binary": out}
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in folders.values()}
    kept = {entry["stage"]: entry["kept"] for entry in result.report["history"] if "kept" in entry}
    sizes = []
    for stage, folder in folders.items():
        told = json.loads((folder / "report.json").read_text())
        model = bitstill.load(folder)
        assert evaluate(model, data, data.test) == told["delivered"]["test"], "each is what its own report says"
        assert evaluate(model, data, data.validation) == kept[stage], "and the best of its stage"
        assert told.get("stage", "binary") == stage and model.config.num_hidden_layers == 2
        sizes.append(told["size"]["file_bytes"])
        actions = {row["detail"] for row in told["parameters"] if row["action"] == "quantized"}
        assert actions == {"float student": set(), "8 bits": {"8-bit affine"}, "binary": {"binary"}}[stage]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 4 * sum(p.numel() for p in result.models["student"].parameters())


def test_stages_are_not_delivered_where_they_were_not_asked_for(tmp_path):
    recipe = XTC(**SHORT, layers=2)
    bitstill.compress(recipe, task(), {"teacher": encoder()}, settings=QUIET, out=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(SpecError, match="an out folder to deliver each stage"):
        bitstill.compress(recipe, task(), {"teacher": encoder()}, settings=QUIET, each_stage=True)


def test_a_stage_has_a_place_to_go_before_anything_trains(tmp_path, untrained):
    (tmp_path / "out-float-student").mkdir()
    (tmp_path / "out-float-student" / "thesis.txt").write_text("mine")
    recipe = XTC(**SHORT, layers=2)
    with pytest.raises(ArtifactError, match="float-student"):
        bitstill.compress(recipe, task(), {"teacher": encoder()}, settings=QUIET, out=tmp_path / "out", each_stage=True)


def deliver_each_stage(folder, resume=False):
    """A short run in three stages with a checkpoint at every step: its report, and the weights that each stage delivers."""
    recipe = XTC(steps=2, batch_size=16, validations=2, layers=2, progressive=(8,), lr=0.05, float_lr=0.05)
    settings, models = replace(QUIET, checkpoint_every=1), {"teacher": encoder(dropout=0.1)}
    result = bitstill.compress(recipe, task(), models, settings=settings, out=folder / "out", resume=resume, each_stage=True)
    return result.report, {path.name: (path / "model.safetensors").read_bytes() for path in folder.glob("out*")}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    report, weights = deliver_each_stage(tmp_path_factory.mktemp("whole"))
    assert len(weights) == len(set(weights.values())) == 3
    return report, weights


def stopped_at(call, real, *, after=False):
    """`real`, raising KeyboardInterrupt at its `call`-th call, before or after its work."""
    calls = itertools.count(1)

    def stopping(*arguments, **options):
        last = next(calls) == call
        if last and not after:
            raise KeyboardInterrupt
        value = real(*arguments, **options)
        if last:
            raise KeyboardInterrupt
        return value

    return stopping


@pytest.mark.parametrize(
    ("function", "call"),
    [("deliver", 2), *(pytest.param(*place, marks=pytest.mark.slow) for place in (("save", 2), ("save", 5), ("deliver", 3)))],
)
def test_a_run_stopped_anywhere_and_resumed_delivers_the_same_bytes(tmp_path, monkeypatch, uninterrupted, function, call):
    """During a stage, between stages, and during the delivery of a stage."""
    module = checkpoint if function == "save" else bitstill.run.deliveries
    with monkeypatch.context() as patch:
        patch.setattr(module, function, stopped_at(call, getattr(module, function), after=function == "save"))
        with pytest.raises(KeyboardInterrupt):
            deliver_each_stage(tmp_path)
    assert not (tmp_path / "out").exists()
    report, weights = uninterrupted
    resumed_report, resumed_weights = deliver_each_stage(tmp_path, resume=True)
    assert resumed_weights == weights and resumed_report["history"] == report["history"]


# Other architectures.


def gpt2(layers: int = 3):
    transformers = pytest.importorskip("transformers")
    from bitstill.hf import attention_scores as attention

    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=WIDTH, n_layer=layers, n_head=2, n_positions=12, vocab_size=VOCAB, num_labels=2, pad_token_id=0, bos_token_id=1,
        eos_token_id=1, initializer_range=0.2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = transformers.GPT2ForSequenceClassification(config)
    attention.use(model)
    return model


def test_gpt2_for_classification(tmp_path):
    """Its blocks consist of Conv1D, and its attention is causal."""
    data = task()
    result = bitstill.compress(XTC(**SHORT, layers=2), data, {"teacher": gpt2()}, settings=QUIET, out=tmp_path / "out")
    student = result.models["student"]
    check_rows(student, "transformer.wte", "transformer.h")
    wanted = predict(pack(freeze(student)), data, data.test)
    for model in (result.model, bitstill.load(tmp_path / "out")):
        assert torch.equal(predict(model, data, data.test), wanted)


def test_gpt2_imitates_its_teacher_as_the_teacher_is():
    """Reading hidden states and scores must not break causality, even if no sample of a batch is padded."""
    data, teacher = task(), gpt2().eval()
    whole = [int(index) for index in (data.train.lengths == 12).nonzero().flatten()[:4]]
    batch = data.train.take(torch.tensor(whole))
    assert bool(batch["attention_mask"].all())
    (stage,) = XTC(**SHORT).stages(RunContext(CLASSES, {"teacher": teacher}))
    outputs = Teachers(stage, {"teacher": teacher}, data, torch.device("cpu"), False)(batch)["teacher"]
    with torch.no_grad():
        torch.testing.assert_close(outputs.logits, data.outputs(teacher, batch))


def test_a_layer_that_runs_several_times_is_refused(untrained):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "embedding_size": 8, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 50}
    albert = transformers.AlbertForSequenceClassification(
        transformers.AlbertConfig(num_hidden_layers=3, max_position_embeddings=12, num_labels=2, **sizes)
    )
    with pytest.raises(MatchError, match="ALBERT"):
        bitstill.compress(XTC(**SHORT), task(), {"teacher": albert}, settings=QUIET)
    shared = encoder()
    shared.blocks = nn.ModuleList([shared.blocks[0]] * 3)
    with pytest.raises(MatchError, match="several times"):
        bitstill.compress(XTC(**SHORT, attention_weight=0), task(), {"teacher": shared}, settings=QUIET)


def test_a_teacher_that_is_compressed_already_cannot_become_the_student(untrained):
    teacher = encoder()
    prepare(teacher, Compression(weight=Binary(), targets=("blocks.*",)))
    with pytest.raises(SpecError, match="a float model"):
        bitstill.compress(XTC(**SHORT), task(), {"teacher": pack(freeze(teacher))}, settings=QUIET)


def test_a_soft_cross_entropy_over_one_output_is_noticed():
    data = task(regression=True)
    stage = Stage("s", terms=(Term(SoftCrossEntropy(), teacher="teacher"),), steps=12, batch_size=16)
    models = {"teacher": encoder(1, classes=1), "student": encoder(2, classes=1)}
    with pytest.raises(TrainingError, match=r"SoftCrossEntropy<-teacher.*exactly zero.*use MeanSquaredError"):
        loop.train([stage], models, data, QUIET)


def test_matching_a_layer_with_itself_teaches_nothing_and_is_noticed():
    data = task()
    stage = Stage(
        "s",
        terms=(Term(FeatureMSE((Pair("hidden:0", "hidden:0"),)), teacher="teacher"),),
        steps=12,
        optimizer=SGD(weight_decay=0.0),
    )
    models = {"teacher": encoder(1), "student": encoder(1)}
    with pytest.raises(TrainingError, match=r"FeatureMSE<-teacher.*identical models teach nothing"):
        loop.train([stage], models, data, QUIET)
