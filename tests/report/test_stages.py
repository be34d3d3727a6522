"""A recipe's figure: who learns from whom, on what, for how long, as text and as SVG, drawn from the stages themselves."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from bitstill.losses import KL, CrossEntropy
from bitstill.quant import Binary, Compression
from bitstill.recipes.by_name import RECIPES
from bitstill.recipes.example_run import example_stages
from bitstill.report.stage_plan import stage_plans
from bitstill.report.stage_svg import stage_svg
from bitstill.report.stage_text import WIDTH, stage_text
from bitstill.train import Compress, Linear, Stage, Term
from bitstill.train.stage import Action

STAGES = (
    Stage("first", train=("teacher",), terms=(Term(CrossEntropy(), student="teacher"),), steps=1500),
    Stage(
        "second",
        terms=(Term(KL(), teacher="teacher", weight=0.7), Term(CrossEntropy(), weight=Linear(0.0, 1.0))),
        epochs=1,
        begin=(Compress("student", Compression(weight=Binary())),),
    ),
)


def test_stages_as_text():
    assert stage_text(stage_plans(STAGES)).splitlines() == [
        "┌ 1. first ─────────────────────────────────────────── 1,500 steps on the task ┐",
        "│ labels ──▶ teacher*   cross-entropy                                          │",
        "└──────────────────────────────────────────────────────────────────────────────┘",
        "                                       ▼",
        "┌ 2. second ────────────────────────────────────────────── 1 epoch on the task ┐",
        "│ student: weights binary                                                      │",
        "│ teacher ──▶ student*   KL x 0.7                                              │",
        "│ labels ──▶ student*    cross-entropy x schedule                              │",
        "└──────────────────────────────────────────────────────────────────────────────┘",
        "* learns                                              delivered: student, packed",
    ]


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_has_a_figure_that_says_the_same_in_both_forms(name):
    """Each edge of each stage is an arrow, each action has its text, and no line is wider than the box."""
    stages = example_stages(RECIPES[name]())
    plans = stage_plans(stages)
    for stage, plan in zip(stages, plans, strict=True):
        edges = {(term.teacher or "labels", term.student) for term in stage.terms}
        assert {(arrow.teacher, arrow.student) for arrow in plan.arrows} == edges
        assert sum(len(arrow.losses) for arrow in plan.arrows) == len(stage.terms)
        assert not {type(action).__name__ for action in stage.begin} & set(plan.begin), "an action without words"
    text = stage_text(plans)
    assert max(map(len, text.splitlines())) == WIDTH
    drawing = ElementTree.fromstring(stage_svg(plans))
    words = [element.text for element in drawing.iter("text")]
    for plan in plans:
        assert plan.heading in words and all(line in words for line in plan.begin)
        assert all(arrow.teacher in words and arrow.student in words for arrow in plan.arrows)
        assert re.search(re.escape(plan.name), text)


def test_an_action_from_elsewhere_goes_by_its_class():
    class Perturb:
        def apply(self, models, task, seed):
            pass

    action: Action = Perturb()
    (plan,) = stage_plans((Stage("last", begin=(action,)),))
    assert plan.begin == ("Perturb",) and plan.heading == "no training"
