"""Families of BERT-shaped encoders: what each calls its layers, how it counts positions, and what follows the last block.

A family of the same shape is one more entry in `FAMILIES`, here or in a program's own code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bitstill.program.operations import Function

ACTIVATIONS: dict[str, Function] = {
    "relu": "relu", "gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "tanh": "tanh",
}  # fmt: skip
"""By the names that transformers uses."""


@dataclass(frozen=True)
class ConfigKeys:
    """Names of the numbers in `config.json`."""

    layers: str = "num_hidden_layers"
    heads: str = "num_attention_heads"
    activation: str = "hidden_act"
    width: str = "hidden_size"


@dataclass(frozen=True)
class Family:
    """Names of a family's parts.

    Args:
        bare: the class without a head, whose layers have no prefix.
        prefix: of everything but the head.
        block: of each block; `{}` is its number.
        query, key, value, attended, attention_norm, inner, outer, norm: layers of a block.
        head: layers and activations after the last block, which see the first token.
        keys: of the config.
        segments: whether there is a table of segments.
        counts_padding: False where positions are counted over real tokens, from the padding id on (RoBERTa).
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
    keys: ConfigKeys = ConfigKeys()
    segments: bool = True
    counts_padding: bool = True


BERT = Family(
    bare="BertModel",
    prefix="bert",
    block="encoder.layer.{}",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    attended="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    inner="intermediate.dense",
    outer="output.dense",
    norm="output.LayerNorm",
    head=("bert.pooler.dense", "tanh", "classifier"),
)
ROBERTA = replace(
    BERT,
    bare="RobertaModel",
    prefix="roberta",
    head=("classifier.dense", "tanh", "classifier.out_proj"),
    counts_padding=False,
)
ELECTRA = replace(BERT, bare="ElectraModel", prefix="electra", head=("classifier.dense", "gelu", "classifier.out_proj"))
DISTILBERT = Family(
    bare="DistilBertModel",
    prefix="distilbert",
    block="transformer.layer.{}",
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    attended="attention.out_lin",
    attention_norm="sa_layer_norm",
    inner="ffn.lin1",
    outer="ffn.lin2",
    norm="output_layer_norm",
    head=("pre_classifier", "relu", "classifier"),
    keys=ConfigKeys("n_layers", "n_heads", "activation", "dim"),
    segments=False,
)
FAMILIES: dict[str, Family] = {"bert": BERT, "roberta": ROBERTA, "electra": ELECTRA, "distilbert": DISTILBERT}
"""By `model_type`."""
