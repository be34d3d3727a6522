"""Programs of transformer encoders, with a classifier or bare, from a Hugging Face `config.json`.

Families differ in what they call their layers, in how places are counted and in what comes after the last block; the blocks
themselves are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bitstill.artifact.config_keys import ATTENTION
from bitstill.artifact.format import is_rule
from bitstill.errors import ArtifactError
from bitstill.program.operations import (
    Activation,
    Add,
    Attention,
    ByText,
    Embedding,
    FirstToken,
    Function,
    Input,
    LayerNorm,
    Linear,
    Positions,
    Program,
    Quantize,
    Transform,
)

_FUNCTIONS: dict[str, Function] = {
    "relu": "relu", "gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "tanh": "tanh",
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """What one family calls its parts.

    Args:
        bare: the class without a head, whose layers have no prefix.
        prefix: of everything but the head.
        block: of each block; `{}` is its number.
        query, key, value, attended, attention_norm, inner, outer, norm: layers of a block.
        head: layers and activations behind the last block, which see the first token; names that are activations are those.
        keys: of the config: number of blocks, heads, activation, width.
        segments: whether there is a table of segments.
        counts_padding: False where places are counted over real tokens, from the padding id on (RoBERTa).
    """

    bare: str
    prefix: str
    block: str
    query: str
    key: str
    value: str
    attended: str
    attention_norm: str
    inner: str
    outer: str
    norm: str
    head: tuple[str, ...]
    keys: tuple[str, str, str, str] = ("num_hidden_layers", "num_attention_heads", "hidden_act", "hidden_size")
    segments: bool = True
    counts_padding: bool = True


_BERT = Family(
    "BertModel", "bert", "encoder.layer.{}", "attention.self.query", "attention.self.key", "attention.self.value",
    "attention.output.dense", "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm",
    ("bert.pooler.dense", "tanh", "classifier"),
)  # fmt: skip
FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "roberta": replace(
        _BERT, bare="RobertaModel", prefix="roberta", head=("classifier.dense", "tanh", "classifier.out_proj"),
        counts_padding=False,
    ),
    "electra": replace(
        _BERT, bare="ElectraModel", prefix="electra", head=("classifier.dense", "gelu", "classifier.out_proj"),
    ),
    "distilbert": Family(
        "DistilBertModel", "distilbert", "transformer.layer.{}", "attention.q_lin", "attention.k_lin", "attention.v_lin",
        "attention.out_lin", "sa_layer_norm", "ffn.lin1", "ffn.lin2", "output_layer_norm",
        ("pre_classifier", "relu", "classifier"), keys=("n_layers", "n_heads", "activation", "dim"), segments=False,
    ),
}  # fmt: skip
"""By `model_type`."""


def encoder(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Program:
    """The program of an encoder that classifies or scores texts, or, without a head, gives a vector for each token.

    Args:
        config: of `config.json`.
        shapes: of every layer's weight, by the layer's name; heads that were pruned away are missing there.

    Raises:
        ArtifactError: the family, its head or its activation is not one of those that are known here.
    """
    kind = config["model_type"]
    family = FAMILIES.get(kind)
    if family is None:
        raise _unknown(f"an encoder of {', '.join(FAMILIES)}", kind, "model_type")
    classes = config.get("architectures") or ()
    bare = family.bare in classes
    if not bare and not any(name.endswith("ForSequenceClassification") for name in classes):
        raise _unknown(f"a model for sequence classification, or a {family.bare}", str(classes), "architectures")
    prefix = "" if bare else f"{family.prefix}."
    layers, heads, act, width = (config[key] for key in family.keys)
    if not all(type(number) is int and number > 0 for number in (layers, heads, width)) or width % heads:
        raise _unknown("heads that divide the width", f"{heads} heads, {width}, {layers} layers", family.keys[1])
    if act not in _FUNCTIONS:
        raise _unknown(f"an activation of {', '.join(_FUNCTIONS)}", act, family.keys[2])
    texts: tuple[int | str, ...] = ("batch", "length")
    names = ("input_ids", "attention_mask", *(("token_type_ids",) if family.segments else ()))
    program = Program(tuple(Input(name, "int64", texts) for name in names), "last_hidden_state" if bare else "logits")
    rules = _operands(config)
    value = _embedded(program, family, prefix, config, shapes)
    for index in range(layers):
        value = _block(program, family, f"{prefix}{family.block.format(index)}", value, config, width // heads, shapes, rules)
    if rules:
        raise _unknown("attention layers of this network", ", ".join(rules), ATTENTION)
    if bare:
        program.do(ByText(), value)
        return program
    value = program.do(FirstToken(), value)
    for part in family.head:
        value = program.do(Activation(_FUNCTIONS[part]) if part in _FUNCTIONS else Linear(part), value)
    return program


def _embedded(
    program: Program, family: Family, prefix: str, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> str:
    tables, padding = f"{prefix}embeddings", config.get("pad_token_id") or 0
    places = Positions(f"{tables}.position_embeddings")
    if not family.counts_padding:
        places = Positions(places.layer, first=padding + 1, padding=padding)
    value = program.do(Embedding(f"{tables}.word_embeddings"), "input_ids")
    if family.segments:
        kinds = program.do(Embedding(f"{tables}.token_type_embeddings"), "token_type_ids")
        value = program.do(Add(), value, kinds)
    value = program.do(Add(), value, program.do(places, "input_ids"))
    value = program.do(LayerNorm(f"{tables}.LayerNorm", _epsilon(config)), value)
    projection = f"{prefix}embeddings_project"
    return program.do(Linear(projection), value) if projection in shapes else value


def _block(
    program: Program,
    family: Family,
    here: str,
    value: str,
    config: Mapping[str, Any],
    head_width: int,
    shapes: Mapping[str, tuple[int, ...]],
    rules: dict[str, Mapping[str, Any]],
) -> str:
    operands = [program.do(Linear(f"{here}.{name}"), value) for name in (family.query, family.key, family.value)]
    heads = shapes[f"{here}.{family.query}"][0] // head_width
    attention, layer = Attention(heads, head_width), f"{here}.{family.query}".rpartition(".")[0]
    if layer in rules:
        rule, own = rules.pop(layer), f"{layer}.attention_transform"
        hows = [Transform(f"{own}.{name}", rule["products"]) for name in ("query", "key", "value")]
        operands = [program.do(Quantize(how, head_width), each) for how, each in zip(hows, operands, strict=True)]
        attention = replace(attention, probabilities=Transform(f"{own}.probabilities", rule["probabilities"]))
    attended = program.do(attention, *operands)
    attended = program.do(Linear(f"{here}.{family.attended}"), attended)
    value = program.do(LayerNorm(f"{here}.{family.attention_norm}", _epsilon(config)), program.do(Add(), attended, value))
    inner = program.do(Activation(_FUNCTIONS[config[family.keys[2]]]), program.do(Linear(f"{here}.{family.inner}"), value))
    outer = program.do(Linear(f"{here}.{family.outer}"), inner)
    return program.do(LayerNorm(f"{here}.{family.norm}", _epsilon(config)), program.do(Add(), outer, value))


def _operands(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """How attention layers quantize the operands of their products, by the layer's name.

    Raises:
        ArtifactError: a rule that means nothing.
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


def _epsilon(config: Mapping[str, Any]) -> float:
    return float(config.get("layer_norm_eps", 1e-12))


def _unknown(wanted: str, given: str, key: str) -> ArtifactError:
    fix = "Run it in torch (bitstill.load), or deliver one of these."
    return ArtifactError(wanted, given=given, where=f"config.json: {key}", fix=fix)
