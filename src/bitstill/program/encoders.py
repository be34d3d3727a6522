"""Programs of transformer encoders, with a classifier or bare, from a Hugging Face `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bitstill.artifact.config_keys import ATTENTION
from bitstill.artifact.format import is_rule
from bitstill.errors import ArtifactError
from bitstill.program.families import ACTIVATIONS, COMPUTED, FAMILIES, Family
from bitstill.program.operations import (
    Activation,
    Add,
    Attention,
    ByText,
    Embedding,
    FirstToken,
    Input,
    LayerNorm,
    Linear,
    Positions,
    Program,
    Quantize,
    Transform,
)

Config = Mapping[str, Any]
DEFAULT_EPSILON = 1e-12
"""Epsilon of layer norms, if a config has none or a family ignores it."""


def encoder(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> Program:
    """Program of an encoder that classifies or scores texts, or, without a head, returns a vector for each token.

    Args:
        config: contents of `config.json`.
        shapes: shape of every layer's weight, by layer name, which shows pruned heads.

    Raises:
        ArtifactError: the family, its head or its activation is not supported.
    """
    family = FAMILIES.get(config["model_type"])
    if family is None:
        raise _unknown(f"an encoder of {', '.join(FAMILIES)}", config["model_type"], "model_type")
    check_settings(config, family)
    bare = _is_bare(config, family)
    planner = _Encoder.of(config, family, shapes, bare=bare)
    value = planner.embeddings()
    for index in range(planner.layers):
        value = planner.block(index, value)
    if planner.attention_rules:
        raise _unknown("attention layers of this network", ", ".join(planner.attention_rules), ATTENTION)
    if bare:
        planner.program.do(ByText(), value)
    else:
        planner.head(value)
    return planner.program


def check_settings(config: Config, family: Family) -> None:
    """Refuse a config that makes transformers compute something else than a program of this family.

    Raises:
        ArtifactError: names the key.
    """
    for key, usual in {**COMPUTED, **family.computed}.items():
        value = config.get(key)
        if value is not None and value not in usual:
            expected = " or ".join(map(repr, usual)) or "no such key"
            raise _unknown(expected, repr(value)[:100], key)


def _is_bare(config: Config, family: Family) -> bool:
    """Whether the encoder has no head.

    Raises:
        ArtifactError: it has another head than one for sequence classification.
    """
    classes = config.get("architectures") or ()
    if family.bare in classes:
        return True
    if not any(name.endswith("ForSequenceClassification") for name in classes):
        raise _unknown(f"a model for sequence classification, or a {family.bare}", str(classes), "architectures")
    return False


@dataclass
class _Encoder:
    """Builder of an encoder's program.

    Args:
        program: the program so far.
        family, config, shapes: of the encoder.
        prefix: prefix of the names of its layers.
        layers: number of blocks.
        head_width: size of an attention head.
        attention_rules: rules of the remaining attention layers.
    """

    program: Program
    family: Family
    config: Config
    shapes: Mapping[str, tuple[int, ...]]
    prefix: str
    layers: int
    head_width: int
    attention_rules: dict[str, Mapping[str, Any]]

    @classmethod
    def of(cls, config: Config, family: Family, shapes: Mapping[str, tuple[int, ...]], *, bare: bool) -> _Encoder:
        """Start a program with its inputs.

        Raises:
            ArtifactError: inconsistent numbers, or an unknown activation.
        """
        keys = family.keys
        layers, heads, width = (config[key] for key in (keys.layers, keys.heads, keys.width))
        if not all(type(number) is int and number > 0 for number in (layers, heads, width)) or width % heads:
            raise _unknown("heads that divide the width", f"{heads} heads, {width}, {layers} layers", keys.heads)
        if config[keys.activation] not in ACTIVATIONS:
            raise _unknown(f"an activation of {', '.join(ACTIVATIONS)}", config[keys.activation], keys.activation)
        names = ("input_ids", "attention_mask", *(("token_type_ids",) if family.segments else ()))
        inputs = tuple(Input(name, "int64", ("batch", "length")) for name in names)
        program = Program(inputs, "last_hidden_state" if bare else "logits")
        prefix = "" if bare else f"{family.prefix}."
        return cls(program, family, config, shapes, prefix, layers, width // heads, _attention_rules(config))

    def embeddings(self) -> str:
        """Sum of word, segment and position embeddings, normalized, and projected if the family does."""
        tables, do = f"{self.prefix}embeddings", self.program.do
        value = do(Embedding(f"{tables}.word_embeddings"), "input_ids")
        if self.family.segments:
            value = do(Add(), value, do(Embedding(f"{tables}.token_type_embeddings"), "token_type_ids"))
        value = do(Add(), value, do(self._positions(f"{tables}.position_embeddings"), "input_ids"))
        value = self._norm(f"{tables}.LayerNorm", value)
        projection = f"{self.prefix}embeddings_project"
        return do(Linear(projection), value) if projection in self.shapes else value

    def block(self, index: int, value: str) -> str:
        """Attention and the feed-forward layers, each with a residual connection and a norm."""
        family, layer, do = self.family, f"{self.prefix}{self.family.block.format(index)}", self.program.do
        attended = do(Linear(f"{layer}.{family.attended}"), self._attention(layer, value))
        value = self._norm(f"{layer}.{family.attention_norm}", do(Add(), attended, value))
        function = ACTIVATIONS[self.config[family.keys.activation]]
        inner = do(Activation(function), do(Linear(f"{layer}.{family.inner}"), value))
        outer = do(Linear(f"{layer}.{family.outer}"), inner)
        return self._norm(f"{layer}.{family.norm}", do(Add(), outer, value))

    def head(self, value: str) -> None:
        """The classifier over the first token."""
        value = self.program.do(FirstToken(), value)
        for part in self.family.head:
            value = self.program.do(Activation(ACTIVATIONS[part]) if part in ACTIVATIONS else Linear(part), value)

    def _positions(self, table: str) -> Positions:
        if self.family.counts_padding:
            return Positions(table)
        padding = self.config.get("pad_token_id", self.family.padding)
        return Positions(table, first=padding + 1, padding=padding)

    def _norm(self, layer: str, value: str) -> str:
        key = self.family.keys.epsilon
        epsilon = DEFAULT_EPSILON if key is None else float(self.config.get(key, DEFAULT_EPSILON))
        return self.program.do(LayerNorm(layer, epsilon), value)

    def _attention(self, block: str, value: str) -> str:
        names = [f"{block}.{name}" for name in (self.family.query, self.family.key, self.family.value)]
        operands = [self.program.do(Linear(name), value) for name in names]
        attention = Attention(self.shapes[names[0]][0] // self.head_width, self.head_width)
        layer = names[0].rpartition(".")[0]
        if layer in self.attention_rules:
            rule, own = self.attention_rules.pop(layer), f"{layer}.attention_transform"
            transforms = [Transform(f"{own}.{name}", rule["products"]) for name in ("query", "key", "value")]
            pairs = zip(transforms, operands, strict=True)
            operands = [self.program.do(Quantize(transform, self.head_width), operand) for transform, operand in pairs]
            attention = replace(attention, probabilities=Transform(f"{own}.probabilities", rule["probabilities"]))
        return self.program.do(attention, *operands)


def _attention_rules(config: Config) -> dict[str, Mapping[str, Any]]:
    """Rules for the operands of attention products, by the layer's name.

    Raises:
        ArtifactError: a rule is invalid.
    """
    rules = config.get(ATTENTION) or {}
    if not isinstance(rules, Mapping):
        raise _unknown("rules by attention layer", str(rules), ATTENTION)
    for layer, rule in rules.items():
        known = isinstance(rule, Mapping) and set(rule) == {"products", "probabilities"}
        if not known or not all(is_rule(each) for each in rule.values()):
            raise ArtifactError(
                "rules for products and probabilities",
                given=str(rule),
                where=f"config.json: {ATTENTION}: {layer}",
                fix="The file is damaged or was edited; deliver the model again.",
            )
    return dict(rules)


def _unknown(known: str, actual: str, key: str) -> ArtifactError:
    fix = "Run it in torch (bitstill.load), or deliver one of these."
    return ArtifactError(known, given=actual, where=f"config.json: {key}", fix=fix)
