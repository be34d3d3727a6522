"""Families of BERT-shaped encoders: names of layers, counting of positions, and the head.

Another family of the same shape is one more entry in `FAMILIES`, here or in user code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bitstill.program.operations import Function

ACTIVATIONS: dict[str, Function] = {
    "relu": "relu", "gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "tanh": "tanh",
}  # fmt: skip
"""Activations by their name in transformers."""


@dataclass(frozen=True)
class ConfigKeys:
    """Names of the numbers in `config.json`; None where a family has no such key, and the usual value is computed."""

    layers: str = "num_hidden_layers"
    heads: str = "num_attention_heads"
    activation: str = "hidden_act"
    width: str = "hidden_size"
    epsilon: str | None = "layer_norm_eps"

    @property
    def read(self) -> frozenset[str]:
        """All of them."""
        names = (self.layers, self.heads, self.activation, self.width, self.epsilon)
        return frozenset(name for name in names if name is not None)


READ = frozenset({"model_type", "architectures", "pad_token_id", "problem_type", "id2label"})
"""Keys that programs and heads read, beside `ConfigKeys`."""
IN_SHAPES = frozenset({
    "vocab_size", "max_position_embeddings", "type_vocab_size", "intermediate_size", "hidden_dim", "embedding_size",
})  # fmt: skip
"""Sizes that a program takes from the shapes of the weights."""
COMPUTED: Mapping[str, tuple[Any, ...]] = {
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "chunk_size_feed_forward": (0,),
    "position_embedding_type": ("absolute",),
    "pruned_heads": ({}, []),
    "sliding_window": (),
    "attention_chunk_size": (),
    "layer_types": (),
    "per_layer_config": (),
}
"""Keys that change what transformers computes, each with the values under which it computes what a program says. None and a
missing key are the usual. Chunks of a feed-forward layer have each a range of inputs; older releases pruned heads by
`pruned_heads`."""
IRRELEVANT = frozenset({
    # of training and initialisation
    "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "initializer_range", "dropout",
    "attention_dropout", "qa_dropout", "seq_classif_dropout", "summary_last_dropout", "sinusoidal_pos_embds",
    # of other heads than a classifier
    "summary_type", "summary_use_proj", "summary_activation", "summary_first_dropout", "summary_proj_to_labels",
    "tie_word_embeddings",
    # of generation
    "use_cache", "bos_token_id", "eos_token_id",
    # of what is returned beside logits, and of files
    "output_hidden_states", "output_attentions", "return_dict", "dtype", "transformers_version", "label2id", "_name_or_path",
})  # fmt: skip
"""Keys that change nothing of what a classifier or a bare encoder computes."""


@dataclass(frozen=True)
class Family:
    """Names of the parts of a family.

    Args:
        bare: class without a head, whose layers have no prefix.
        prefix: prefix of everything but the head.
        block: name of each block; `{}` is its index.
        query, key, value, attended, attention_norm, inner, outer, norm: layers of a block.
        head: layers and activations after the last block, applied to the first token.
        keys: names of numbers in the config.
        segments: whether there are segment embeddings.
        counts_padding: False if positions are counted over unpadded tokens, starting after the padding id (RoBERTa).
        padding: id of the padding token, where a config has none.
        computed: keys of this family alone that change what is computed, as `COMPUTED`.
        irrelevant: keys of this family alone that change nothing, as `IRRELEVANT`.
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
    padding: int = 0
    computed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    irrelevant: frozenset[str] = frozenset()

    def unknown(self, keys: Iterable[str]) -> list[str]:
        """Those of the keys of a config that are neither read nor known to change nothing or to have one value."""
        known = READ | IN_SHAPES | IRRELEVANT | self.keys.read | self.irrelevant | COMPUTED.keys() | self.computed.keys()
        return sorted(set(keys) - known)


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
    padding=1,
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
    keys=ConfigKeys("n_layers", "n_heads", "activation", "dim", epsilon=None),
    segments=False,
)
FAMILIES: dict[str, Family] = {"bert": BERT, "roberta": ROBERTA, "electra": ELECTRA, "distilbert": DISTILBERT}
"""Families by `model_type`."""
