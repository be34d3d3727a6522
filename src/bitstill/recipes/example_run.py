"""The stages of a recipe for models that stand for any, so that a recipe can be drawn before there is a run."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import nn

from bitstill.data.corpus import Corpus
from bitstill.data.objectives import Classification
from bitstill.recipes.recipe import Recipe, RunContext
from bitstill.train.stage import Stage

LAYERS = 12
"""Layers of the example transformer, as in BERT-base."""


class _Block(nn.Module):
    """The matrices of a transformer's layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.wide, self.narrow = nn.Linear(4, 4), nn.Linear(4, 16), nn.Linear(16, 4)


class _Transformer(nn.Module):
    """Word embeddings, blocks, a pooler and a classifier, without numbers: it is planned with and never run."""

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(8, 4)
        self.blocks = nn.ModuleList(_Block() for _ in range(LAYERS))
        self.pooler, self.classifier = nn.Linear(4, 4), nn.Linear(4, 2)

    def get_input_embeddings(self) -> nn.Module:
        return self.word_embeddings


def example_stages(recipe: Recipe) -> tuple[Stage, ...]:
    """The stages of a run of classification whose teacher, if it has one, is not trained yet.

    Raises:
        BitstillError: the recipe needs what this run has not.
    """
    models = ("teacher",) if recipe.makes_student else ("teacher", "student")
    with torch.device("meta"):
        context = RunContext(Classification(2), {name: _Transformer() for name in models}, frozenset({"teacher"}))
    return _with_corpus(recipe).stages(context)


def _with_corpus(recipe: Recipe) -> Recipe:
    """The recipe with a corpus where it cannot do without one, and then for a student of half the layers."""
    options: set[str] = {each.name for each in fields(recipe)} if is_dataclass(recipe) else set()
    settings: Any = recipe
    if "corpus" in options and settings.corpus is None:
        return replace(settings, corpus=Corpus("corpus"), layers=settings.layers or LAYERS // 2)  # type: ignore[no-any-return]
    return recipe
