"""The plan of each recipe: its stages, who trains on what, and which layers stay in float."""

from __future__ import annotations

import copy

import pytest
from torch import nn

from bitstill.data.objectives import Classification
from bitstill.errors import SpecError
from bitstill.losses.features import AttentionTransfer, Pair
from bitstill.losses.logits import KL, CrossEntropy
from bitstill.quant.granularity import Bucket, PerGroup, PerTensor
from bitstill.quant.rules import Binary, Clipped, ExactScale, Points, QuantizeInput, Ternary, Uniform
from bitstill.recipes import DifferentiableQuantization, PostTraining, QuantizedDistillation
from bitstill.recipes.by_name import RECIPES, recipe_class, recipe_name
from bitstill.recipes.recipe import RunContext
from bitstill.schedules import at
from bitstill.train.actions import Compress, Copy, SharePoints
from bitstill.train.stage import Term

from .digits import compressed_layers, conv_net, float_layers, small_resnet, task

CLASSES = Classification(10)
UNTRAINED = RunContext(CLASSES, untrained=frozenset({"teacher"}))
KD = (Term(KL(2.0, "batchmean"), teacher="teacher", weight=0.7), Term(CrossEntropy(), weight=pytest.approx(0.3)))


def names(stages):
    return [stage.name for stage in stages]


def terms(stage):
    return [(term.loss, term.student, term.teacher, term.weight) for term in stage.terms]


def test_quantized_distillation_is_one_stage_under_a_teacher():
    (stage,) = QuantizedDistillation().stages(RunContext(CLASSES))
    assert stage.name == "quantized distillation" and stage.train == ("student",) and stage.parameters == "all"
    assert terms(stage) == [(t.loss, t.student, t.teacher, t.weight) for t in KD]
    assert (stage.epochs, stage.steps, stage.batch_size, stage.augment) == (30, None, 128, True)
    (action,) = stage.begin
    assert isinstance(action, Compress) and action.model == "student" and action.skip == "roles"
    assert action.compression.weight == Uniform(4, granularity=PerGroup(128), scale_dtype="float16")


def test_a_fresh_teacher_trains_first_and_on_the_labels_alone():
    teacher, student = QuantizedDistillation(teacher_epochs=7, teacher_lr=0.3).stages(UNTRAINED)
    assert teacher.name == "teacher" and teacher.train == ("teacher",) and teacher.epochs == 7 and not teacher.begin
    assert terms(teacher) == [(CrossEntropy(), "teacher", None, 1.0)]
    assert max(at(teacher.optimizer.lr, p / 100) for p in range(101)) == pytest.approx(0.3)
    assert student.train == ("student",)


def test_a_float_stretch_comes_before_quantizing_with_the_same_terms():
    warm, main = QuantizedDistillation(float_epochs=3, epochs=5).stages(RunContext(CLASSES))
    assert (warm.name, warm.epochs, warm.begin) == ("float student", 3, ())
    assert main.epochs == 5 and main.begin and terms(warm) == terms(main)


def test_without_bits_the_student_is_distilled_in_float():
    (stage,) = QuantizedDistillation(bits=None).stages(RunContext(CLASSES))
    assert stage.name == "distillation" and stage.begin == ()


def test_steps_replace_epochs():
    (stage,) = QuantizedDistillation(steps=9, epochs=5).stages(RunContext(CLASSES))
    assert (stage.steps, stage.epochs) == (9, None) and stage.total_steps(1000) == 9


def test_options_reach_the_stage():
    recipe = QuantizedDistillation(augment=False, batch_size=7, clip_norm=2.0, lr=0.5, weight_decay=0.1, temperature=4.0)
    (stage,) = recipe.stages(RunContext(CLASSES))
    assert (stage.augment, stage.batch_size, stage.clip_norm) == (False, 7, 2.0)
    assert stage.optimizer.weight_decay == 0.1 and at(stage.optimizer.lr, 0.05) == 0.5 and at(stage.optimizer.lr, 0) == 0
    assert stage.terms[0].loss.temperature == 4.0


@pytest.mark.parametrize(
    ("kd_weight", "pairs", "losses", "needed"),
    [
        (0.0, (), [CrossEntropy], False),
        (1.0, (), [KL], True),
        (0.5, (), [KL, CrossEntropy], True),
        (0.0, (Pair("a", "b"),), [CrossEntropy, AttentionTransfer], True),
        (0.5, (Pair("a", "b"),), [KL, CrossEntropy, AttentionTransfer], True),
    ],
)
def test_terms_without_weight_are_left_out_and_with_them_the_need_for_a_teacher(kd_weight, pairs, losses, needed):
    recipe = QuantizedDistillation(kd_weight=kd_weight, pairs=pairs, pair_weight=3.0)
    (stage,) = recipe.stages(RunContext(CLASSES))
    assert [type(term.loss) for term in stage.terms] == losses and recipe.needs_teacher is needed
    weights = {type(term.loss): term.weight for term in stage.terms}
    assert weights.get(CrossEntropy, 0) + weights.get(KL, 0) == pytest.approx(1.0)
    assert weights.get(AttentionTransfer, 3.0) == 3.0


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"bits": None}, None),
        ({"bits": 1}, Binary(granularity=PerGroup(128), scale_dtype="float16")),
        ({"bits": "ternary"}, Ternary(granularity=PerGroup(128), scale_dtype="float16")),
        ({"bits": 1, "gradient": Clipped(0.5)}, Binary(PerGroup(128), Clipped(0.5), "float16")),
        ({"bits": 2}, Uniform(2, granularity=PerGroup(128), scale_dtype="float16")),
        ({"bits": 8, "granularity": PerTensor()}, Uniform(8, granularity=PerTensor(), scale_dtype="float16")),
        (
            {
                "bits": 4,
                "granularity": Bucket(256),
                "scale_dtype": "float32",
                "rounding": "stochastic",
                "gradient": ExactScale(),
            },
            Uniform(4, False, Bucket(256), "stochastic", ExactScale(), "float32"),
        ),
    ],
)
def test_bits_name_a_quantizer(options, wanted):
    assert QuantizedDistillation(**options).quantizer() == wanted


def test_differentiable_quantization_copies_compresses_and_shares_in_this_order():
    warm, points = DifferentiableQuantization(share_points=True).stages(RunContext(CLASSES))
    assert (warm.name, warm.epochs, warm.parameters) == ("float student", 30, "all")
    assert [t.teacher for t in warm.terms] == ["teacher", None]
    assert (points.name, points.epochs, points.parameters) == ("points", 10, "learned")
    assert [t.teacher for t in points.terms] == ["self", None]
    copy_, compress, share = points.begin
    assert copy_ == Copy("student", "self") and share == SharePoints("student", 5, 128)
    assert compress.compression.weight == Points(16, "quantiles", PerGroup(128), "float16")


def test_differentiable_quantization_under_the_teacher_keeps_no_copy():
    recipe = DifferentiableQuantization(teacher="teacher", share_points=False, float_epochs=0, steps=5)
    (points,) = recipe.stages(RunContext(CLASSES))
    assert [t.teacher for t in points.terms] == ["teacher", None] and recipe.needs_teacher
    assert [type(action) for action in points.begin] == [Compress]
    assert (points.steps, points.epochs) == (5, None)


def test_only_float_distillation_or_a_chosen_teacher_need_one():
    assert not DifferentiableQuantization(float_epochs=0).needs_teacher
    assert DifferentiableQuantization(float_epochs=1).needs_teacher
    assert DifferentiableQuantization(float_epochs=0, teacher="teacher").needs_teacher


def test_alternation_takes_turns_of_one_epoch_and_ends_on_the_weights():
    stages = DifferentiableQuantization(alternate=True, epochs=3, float_epochs=0, lr=0.2).stages(RunContext(CLASSES))
    assert names(stages) == ["points 1", "weights 1", "points 2", "weights 2", "points 3", "weights 3"]
    assert [stage.parameters for stage in stages] == ["learned", "weights"] * 3
    assert [stage.epochs for stage in stages] == [1] * 6
    assert stages[0].begin and not any(stage.begin for stage in stages[1:]), "compressed once"
    ends = [(at(stage.optimizer.lr, 0), at(stage.optimizer.lr, 1)) for stage in stages[1::2]]
    assert ends[0][0] == pytest.approx(0.02) and ends[-1][1] == pytest.approx(0)
    assert ends[0][1] == pytest.approx(ends[1][0]) and ends[1][1] == pytest.approx(ends[2][0]), "one line over all turns"


def test_post_training_is_one_stage_without_steps():
    (stage,) = PostTraining(bits=3).stages(RunContext(CLASSES))
    assert stage.terms == () and stage.total_steps(1000) == 0 and not PostTraining().needs_teacher
    fitted = Uniform(3, granularity=PerGroup(128), scale_dtype="float16", fit="least-squares")
    assert stage.begin[0].compression.weight == fitted


@pytest.mark.parametrize("recipe", [QuantizedDistillation(), PostTraining(), DifferentiableQuantization()])
def test_names_of_stages_are_unique_and_recipes_are_found_by_name(recipe):
    stages = recipe.stages(UNTRAINED)
    assert len(set(names(stages))) == len(stages)
    assert recipe_class(recipe_name(recipe)) is type(recipe)


def test_an_unknown_recipe_is_named_with_the_nearest():
    with pytest.raises(SpecError, match=r"got 'quantised-distillation'. Did you mean 'quantized-distillation'\?"):
        recipe_class("quantised-distillation")
    assert list(RECIPES) == sorted(RECIPES)


def skipping(recipe, model):
    """Apply the recipe's own `Compress` and return the layers that stay in float."""
    model = copy.deepcopy(model)
    (action,) = [a for stage in recipe.stages(RunContext(CLASSES)) for a in stage.begin if isinstance(a, Compress)]
    action.apply({"student": model}, task(), 0)
    assert compressed_layers(model), "something is compressed"
    return float_layers(model)


@pytest.mark.parametrize("kind", [QuantizedDistillation, DifferentiableQuantization, PostTraining])
def test_which_layers_stay_in_float(kind):
    """The paper's literal rule skips the first tensor only: the last one is the classifier's bias."""
    for model, stem in ((conv_net(), "features.0"), (small_resnet(), "stem")):
        assert skipping(kind(skip="roles"), model) == {stem, "classifier"}
        assert skipping(kind(skip="paper"), model) == {stem}
        assert skipping(kind(skip="none"), model) == set()


def test_roles_follow_the_forward_pass_and_the_papers_rule_the_registration():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(8, 10, bias=False)
            self.middle = nn.Linear(8, 8, bias=False)
            self.first = nn.Linear(64, 8, bias=False)

        def forward(self, x):
            return self.last(self.middle(self.first(x.flatten(1))))

    assert skipping(QuantizedDistillation(skip="roles"), Backwards()) == {"first", "last"}
    assert skipping(QuantizedDistillation(skip="paper"), Backwards()) == {"last", "first"}
    model = Backwards()
    model.last = nn.Linear(8, 10)
    assert [n for n, _ in model.named_parameters()] == ["last.weight", "last.bias", "middle.weight", "first.weight"]
    model.first = nn.Linear(64, 8)
    assert skipping(QuantizedDistillation(skip="paper"), model) == {"last"}
    assert skipping(QuantizedDistillation(skip="roles"), model) == {"first", "last"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QuantizedDistillation(bits=1, rounding="stochastic"), "2 to 8 bits for stochastic rounding"),
        (lambda: QuantizedDistillation(bits="ternary", gradient=ExactScale()), "2 to 8 bits"),
        (lambda: QuantizedDistillation(bits=None, input=QuantizeInput()), "quantized weights where inputs are quantized"),
        (lambda: DifferentiableQuantization(alternate=True, steps=5), "epochs when alternating, got steps=5"),
    ],
)
def test_options_that_cannot_be_are_refused_when_they_are_written(make, message):
    with pytest.raises(SpecError, match=message):
        make()
