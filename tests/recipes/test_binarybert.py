"""BinaryBERT: its plan, the equal outputs of its ternary and split models, and its delivery."""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertForPreTraining

import bitstill
import bitstill.runtime
import bitstill.train.loop as loop
from bitstill.data.objective import Objective
from bitstill.data.objectives import Classification, Regression
from bitstill.errors import MatchError, SpecError
from bitstill.losses.features import AttentionRelation, AttentionScoreMSE, FeatureMSE
from bitstill.losses.layer_maps import head_pairs, hidden_pairs, score_pairs
from bitstill.losses.logits import MeanSquaredError, SoftCrossEntropy
from bitstill.quant.granularity import PerChannel
from bitstill.quant.rules import Binary, Compression, QuantizeInput, SplitBinary, Ternary
from bitstill.recipes import BinaryBERT
from bitstill.recipes.recipe import RunContext
from bitstill.recipes.transformer_stages import encoder_rules
from bitstill.schedules import WarmupLinear
from bitstill.train.actions import Compress, Copy, ReduceLayers, ReduceWidth, SetDropout, SplitTernary
from bitstill.train.adaptive import ChooseTernary
from bitstill.train.optim import AdamW
from tests.hf import tiny

from .encoders import QUIET, bert, encoder, task

CLASSES = Classification(2)
SHORT = {"steps": 3, "batch_size": 16, "validations": 1}
ALL = tuple(range(4))
TERNARY = Ternary(PerChannel(), scale_dtype="float16")
BINARY = Binary(PerChannel(), scale_dtype="float16")
RESTING = SetDropout("student", 0.0)
BUDGET = 0.0016
"""Megabytes for codes and scales that allow some weights to be split and not others."""


def stages(recipe: BinaryBERT, *, student: nn.Module | None = None, objective: Objective = CLASSES, untrained=()):
    models = {"teacher": encoder()} if student is None else {"teacher": encoder(), "student": student}
    return recipe.stages(RunContext(objective, models, frozenset(untrained)))


def terms(stage) -> list[tuple]:
    return [(term.loss, term.teacher) for term in stage.terms]


def features(teacher: str, kept=ALL, depth: int = 4, *, scores: bool = True) -> list[tuple]:
    found = [(FeatureMSE(hidden_pairs(kept, depth)), teacher), (AttentionScoreMSE(score_pairs(kept)), teacher)]
    return found if scores else found[:1]


def logits(teacher: str) -> list[tuple]:
    return [(SoftCrossEntropy("mean"), teacher)]


def rules(quantizer):
    return (
        Compression(weight=quantizer, targets=("blocks.*",), input=QuantizeInput()),
        Compression(weight=quantizer, targets=("words",)),
    )


def test_the_whole_chain_is_the_published_one():
    found = stages(BinaryBERT())
    assert [stage.name for stage in found] == ["float I", "float II", "ternary I", "ternary II", "binary I", "binary II"]
    assert [stage.begin for stage in found] == [
        (Copy("teacher", "student"), ReduceWidth("student", 0.5, importance="gradient"), RESTING),
        (),
        (Copy("student", "small"), Compress("student", rules(TERNARY))),
        (),
        (SplitTernary("student"),),
        (),
    ]
    assert terms(found[0]) == features("teacher", scores=False), "scores of other heads cannot be compared"
    assert terms(found[1]) == logits("teacher")
    for first, second in (found[2:4], found[4:6]):
        assert terms(first) == features("small") and terms(second) == logits("small")
    assert all(stage.keep == "best" and stage.train == ("student",) and stage.epochs == 2 for stage in found)
    for stage, lr in zip(found, [2.5 * 5e-5, 5e-5] * 3, strict=True):
        assert stage.optimizer == AdamW(WarmupLinear(lr, warmup=0.1), weight_decay=0.01, learned_lr_scale=1e-4 / lr)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"bits": "ternary"}, ["float I", "float II", "ternary I", "ternary II"]),
        ({"bits": None}, ["float I", "float II"]),
        ({"split": False}, ["float I", "float II", "binary I", "binary II"]),
        ({"split": False, "joint": True}, ["float", "binary"]),
        ({"width": 1.0}, ["ternary I", "ternary II", "binary I", "binary II"]),
        ({"width": 1.0, "bits": "ternary"}, ["ternary I", "ternary II"]),
        ({"width": 1.0, "split": False}, ["binary I", "binary II"]),
        ({"width": 1.0, "layers": 2, "bits": None}, ["float I", "float II"]),
        ({"joint": True}, ["float", "ternary", "binary"]),
        ({"ternary_epochs": 0}, ["float I", "float II", "binary I", "binary II"]),
    ],
)
def test_each_stretch_alone(options, names):
    found = stages(BinaryBERT(**options))
    assert [stage.name for stage in found] == names
    if options.get("joint"):
        assert terms(found[-1]) == [*features("small"), *logits("small")] and found[-1].epochs == 4
        assert found[-1].optimizer.lr.peak == 5e-5, "that of Stage II"


def test_without_a_ternary_stretch_weights_are_split_as_soon_as_they_are_ternary():
    found = stages(BinaryBERT(ternary_epochs=0))
    assert found[2].begin == (Copy("student", "small"), Compress("student", rules(TERNARY)), SplitTernary("student"))
    with pytest.raises(SpecError, match="a stage that trains the student"):
        stages(BinaryBERT(bits="ternary", ternary_epochs=0, width=1.0))


def test_the_last_stretch_goes_on_from_the_latent_weights_of_an_earlier_run():
    """With a negligible learning rate, the outputs are those of splitting at the end of the first run."""
    first = bitstill.compress(BinaryBERT(**SHORT, bits="ternary"), task(), {"teacher": bert()}, settings=QUIET)
    models = {"teacher": first.models["small"], "student": first.models["student"]}
    before = {name: tensor.clone() for name, tensor in models["student"].state_dict().items()}
    recipe = BinaryBERT(**SHORT, ternary_epochs=0, binary_lr=1e-30)
    planned = recipe.stages(RunContext(CLASSES, models))
    assert [stage.name for stage in planned] == ["binary I", "binary II"]
    assert planned[0].begin == (RESTING, SplitTernary("student")) and terms(planned[0]) == features("teacher")
    last = bitstill.compress(recipe, task(), models, settings=QUIET)
    assert last.report["size"]["nominal_bits"] == 2.0
    assert all(torch.equal(tensor, before[name]) for name, tensor in models["student"].state_dict().items())
    batch = task().sample()
    ternary, binary = (task().outputs(model, batch) for model in (first.model, last.model))
    assert torch.allclose(ternary, binary, atol=2e-2), "float16 scales of two halves"
    assert [stage.name for stage in BinaryBERT(bits="ternary").stages(RunContext(CLASSES, models))] == [
        "ternary I", "ternary II",
    ]  # fmt: skip
    with pytest.raises(SpecError, match="a float student with split=False"):
        BinaryBERT(split=False).stages(RunContext(CLASSES, models))


def test_a_student_of_all_heads_learns_from_the_teacher_itself():
    found = stages(BinaryBERT(width=1.0, layers=2))
    assert found[0].begin == (ReduceLayers("teacher", "student", (1, 3)), RESTING)
    for stage in found[::2]:
        assert terms(stage) == features("teacher", (1, 3))
    assert found[2].begin == (Compress("student", rules(TERNARY)),), "no copy: nothing would look at it"


def test_a_narrow_student_of_fewer_layers_is_matched_layer_by_layer_with_its_own_float_form():
    found = stages(BinaryBERT(layers=2))
    assert terms(found[0]) == features("teacher", (1, 3), scores=False) and terms(found[2]) == features("small", (0, 1), 2)


def test_the_binary_baseline_has_one_plane():
    found = stages(BinaryBERT(split=False))
    assert found[2].begin == (Copy("student", "small"), Compress("student", rules(BINARY)))


def test_without_scores_no_copy_of_the_float_student_is_needed():
    found = stages(BinaryBERT(attention_weight=0))
    assert found[2].begin == (Compress("student", rules(TERNARY)),) and terms(found[2]) == features("teacher", scores=False)


def test_relations_let_a_narrow_student_learn_from_the_teacher_itself():
    found = stages(BinaryBERT(relation_heads=4))
    assert found[2].begin == (Compress("student", rules(TERNARY)),), "no copy: the teacher's relations can be compared"
    relation = AttentionRelation(head_pairs(ALL), 4)
    for stage in found[::2]:
        assert terms(stage) == [(FeatureMSE(hidden_pairs(ALL, 4)), "teacher"), (relation, "teacher")]
    result = bitstill.compress(BinaryBERT(**SHORT, relation_heads=2), task(), {"teacher": bert()}, settings=QUIET)
    assert "small" not in result.models and result.report["size"]["nominal_bits"] == 2.0


def test_a_given_student_learns_in_float_first_and_keeps_its_own_layers():
    found = stages(BinaryBERT(width=1.0), student=encoder(1, layers=2))
    assert found[0].begin == (RESTING,) and terms(found[0]) == features("teacher", (1, 3))
    straight = stages(BinaryBERT(width=1.0, float_epochs=0), student=encoder(1))
    assert straight[0].name == "ternary I" and straight[0].begin == (RESTING, Compress("student", rules(TERNARY)))


def test_a_given_student_of_fewer_layers_is_narrowed_too():
    """Its heads per layer count, not its number of layers."""
    models = {"teacher": bert(), "student": bert(1, layers=2)}
    found = BinaryBERT().stages(RunContext(CLASSES, models))
    assert found[0].begin == (ReduceWidth("student", 0.5), RESTING) and found[2].begin[0] == Copy("student", "small")


def test_a_given_student_is_narrowed_unless_it_is_narrow_already():
    wide, narrow = bert(1), bert(1)
    ReduceWidth("student", 0.5).apply({"student": narrow}, task(), 0)
    models = {"teacher": bert()}
    found = BinaryBERT().stages(RunContext(CLASSES, {**models, "student": wide}))
    assert found[0].begin == (ReduceWidth("student", 0.5), RESTING)
    found = BinaryBERT(width=1.0).stages(RunContext(CLASSES, {**models, "student": narrow}))
    assert found[0].begin == (RESTING,) and found[2].begin[0] == Copy("student", "small")
    assert terms(found[0]) == features("teacher", scores=False), "its scores are not the teacher's"


def test_the_loss_aware_threshold_is_passed_on():
    found = stages(BinaryBERT(width=1.0, ternary_iterations=10, loss_aware=True))
    assert found[0].begin[-1].compression[0].weight == replace(TERNARY, iterations=10, loss_aware=True)


def test_the_second_matrix_of_a_feed_forward_part_may_have_an_input_of_its_own():
    wide = QuantizeInput(symmetric=False)
    (action,) = [a for a in stages(BinaryBERT(width=1.0, wide_input=wide))[0].begin if isinstance(a, Compress)]
    names = tuple(f"blocks.{index}.narrow" for index in ALL)
    inside, second, rows = action.compression
    assert inside == Compression(weight=TERNARY, targets=("blocks.*",), ignore=names, input=QuantizeInput())
    assert second == Compression(weight=TERNARY, targets=names, input=wide) and rows.targets == ("words",)
    result = bitstill.compress(BinaryBERT(**SHORT, wide_input=wide), task(), {"teacher": bert()}, settings=QUIET)
    layers = {name: m.input_transform for name, m in result.model.named_modules() if hasattr(m, "input_transform")}
    inputs = {name: getattr(transform, "spec", None) for name, transform in layers.items()}
    assert {n.rpartition("layer.")[2][2:] for n, spec in inputs.items() if spec == wide} == {"output.dense"}


@pytest.mark.parametrize(
    "options",
    [{"budget": 0.0018}, pytest.param({"ternary_iterations": 3, "loss_aware": True}, marks=pytest.mark.slow)],
    ids=str,
)
def test_the_pooler_may_be_compressed_too(options, tmp_path):
    recipe = BinaryBERT(**SHORT, pooler=True, **options)
    result = bitstill.compress(recipe, task(), {"teacher": bert()}, settings=QUIET, out=tmp_path / "out")
    layers = {layer["name"]: layer["quantizer"] for layer in result.report["size"]["layers"]}
    assert layers["bert.pooler.dense"] in ({"binary", "split binary"} if "budget" in options else {"split binary"})
    assert "classifier" not in layers
    ids = np.array([[5, 6, 7]])
    found, wanted = bitstill.runtime.load(tmp_path / "out")(ids), result.model(torch.from_numpy(ids)).logits
    np.testing.assert_allclose(found, wanted.detach().numpy(), atol=0.02)


def test_what_is_the_pooler():
    for family, names in (
        ("bert", ("bert.pooler.dense",)),
        ("distilbert", ("pre_classifier",)),
        ("roberta", ("classifier.dense",)),
        ("electra", ("classifier.dense",)),
    ):
        model = tiny.model(family)
        rule, _ = encoder_rules(model, BINARY, None, embeddings=1, scale_dtype="float16", pooler=True)
        assert rule.targets[1:] == names
    none = encoder()
    del none.pooler
    tied = BertForPreTraining(tiny.model("bert").config)
    for model, given in ((none, "classifier"), (tied, "cls.seq_relationship"), (tiny.model("gpt2"), "score")):
        with pytest.raises(MatchError, match=f"a layer between blocks and classifier, got {given}"):
            encoder_rules(model, BINARY, None, embeddings=1, scale_dtype="float16", pooler=True)


def test_regression_and_a_new_teacher():
    found = stages(BinaryBERT(), objective=Regression(), untrained=("teacher",))
    assert found[0].name == "fine-tuning" and terms(found[2]) == [(MeanSquaredError(), "teacher")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 4}, "bits of 1, 'ternary' or None"),
        ({"logit_weight": 0.0}, "a weight above 0 for each of the two stages"),
        ({"budget": 1.0, "split": False}, "with a budget"),
        ({"hidden_weight": 0.0, "attention_weight": 0.0}, "a weight above 0 for each of the two stages"),
    ],
)
def test_settings_that_mean_nothing(options, message):
    with pytest.raises(SpecError, match=message):
        stages(BinaryBERT(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"float_epochs": 0}, "a small float student whose scores can teach"),
        ({"hidden_weight": 0.0}, "something to imitate in Stage I"),
        ({"width": 1.0, "bits": None}, "a stage that trains the student"),
        ({"layers": 9}, "1 to 4 layers"),
    ],
)
def test_plans_that_cannot_be_carried_out(options, message):
    with pytest.raises(SpecError, match=message):
        stages(BinaryBERT(**options))


def test_the_chain_delivers_every_model_on_the_way_and_splitting_changes_nothing(tmp_path, monkeypatch):
    outputs: dict[str, torch.Tensor] = {}
    data = task()
    batch = data.test.take(torch.arange(16))
    apply = SplitTernary.apply

    def watched(self, models, task, seed):
        for name in ("before", "after"):
            with torch.no_grad():
                outputs[name] = task.outputs(models["student"].eval(), batch)
            if name == "before":
                apply(self, models, task, seed)

    monkeypatch.setattr(SplitTernary, "apply", watched)
    out = tmp_path / "out"
    recipe = BinaryBERT(**SHORT, input=None)
    result = bitstill.compress(recipe, data, {"teacher": bert()}, out=out, settings=QUIET, each_stage=True)
    assert torch.allclose(outputs["before"], outputs["after"], atol=2e-3), "float16 scales round in halves"
    reports = {path.name: json.loads((path / "report.json").read_text()) for path in sorted(tmp_path.glob("out*"))}
    stages_on_the_way = ["float-I", "float-II", "ternary-I", "ternary-II", "binary-I"]
    assert set(reports) == {"out", *(f"out-{name}" for name in stages_on_the_way)}
    kinds = {name: {layer["quantizer"] for layer in report["size"]["layers"]} for name, report in reports.items()}
    assert kinds["out-float-II"] == set() and kinds["out-ternary-II"] == {"ternary"}
    assert kinds["out"] == {"split binary"} and reports["out"]["size"]["nominal_bits"] == 2.0
    config = result.model.config
    assert result.models["small"].bert.encoder.layer[0].attention.self.num_attention_heads == 1 < config.num_attention_heads
    specs = {type(m.weight_transform.quantizer) for m in result.models["student"].modules() if hasattr(m, "weight_transform")}
    assert specs == {SplitBinary}
    loaded = bitstill.load(out)
    assert torch.equal(data.outputs(loaded, batch), data.outputs(result.model, batch))


def test_every_term_of_a_regression_has_a_gradient():
    result = bitstill.compress(BinaryBERT(**SHORT), task(regression=True), {"teacher": bert(classes=1)}, settings=QUIET)
    assert len({entry["stage"] for entry in result.report["history"]}) == 6


def test_a_budget_decides_what_is_split(tmp_path):
    (_, _, stage, _, binary, _) = stages(BinaryBERT(budget=0.5))
    (*_, action) = stage.begin
    assert stage.name == "ternary I" and binary.begin == (SplitTernary("student", optional=True),)
    assert isinstance(action, ChooseTernary) and action.budget == 500_000
    assert [(t.loss, t.teacher) for t in action.terms] == [*features("small"), *logits("small")]
    recipe = BinaryBERT(**SHORT, budget=BUDGET)
    result = bitstill.compress(recipe, task(), {"teacher": bert()}, settings=QUIET, out=tmp_path / "out")
    layers = result.report["size"]["layers"]
    assert {layer["quantizer"] for layer in layers} == {"binary", "split binary"}
    assert sum(layer["bytes"]["codes"] + layer["bytes"]["scales"] for layer in layers) <= 1600
    (decided,) = [entry["decided"]["ChooseTernary"] for entry in result.report["history"] if "decided" in entry]
    assert set(decided["ternary"]) == {layer["name"] for layer in layers if layer["quantizer"] == "split binary"}
    with pytest.raises(SpecError, match="one bit for each weight"):
        bitstill.compress(replace(recipe, budget=0.001), task(), {"teacher": bert()}, settings=QUIET)


def deliver_in_steps(folder, budget=None, resume=False):
    """The weights delivered after two steps of each stage, with a checkpoint at every step."""
    recipe = BinaryBERT(**{**SHORT, "steps": 2}, budget=budget)
    settings = replace(QUIET, checkpoint_every=1)
    bitstill.compress(recipe, task(), {"teacher": bert()}, settings=settings, out=folder / "out", resume=resume)
    return (folder / "out" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Delivered weights of uninterrupted runs, by budget."""
    return functools.cache(lambda budget: deliver_in_steps(tmp_path_factory.mktemp("whole"), budget))


@pytest.mark.parametrize(
    ("stage", "budget"),
    [
        (4, None),
        *(pytest.param(stage, None, marks=pytest.mark.slow) for stage in (0, 1, 2, 3, 5)),
        pytest.param(5, BUDGET, marks=pytest.mark.slow),
    ],
)
def test_a_run_stopped_in_any_stage_and_resumed_delivers_the_same_bytes(tmp_path, monkeypatch, uninterrupted, stage, budget):
    steps = 0
    real = loop._forward_backward

    def dying(*arguments):
        nonlocal steps
        steps += 1
        if steps == 2 * stage + 2:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_forward_backward", dying)
        with pytest.raises(KeyboardInterrupt):
            deliver_in_steps(tmp_path, budget)
    assert deliver_in_steps(tmp_path, budget, resume=True) == uninterrupted(budget)
