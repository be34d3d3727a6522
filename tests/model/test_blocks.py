"""Repeated blocks of a network: found by structure, chosen by rule, copied exactly."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bitstill.errors import MatchError, SpecError
from bitstill.model.blocks import Blocks, blocks, check_choice, choose, reduced
from bitstill.model.lifecycle import prepare
from bitstill.model.select import word_embeddings
from bitstill.quant.rules import Binary, Compression


class Tower(nn.Module):
    """Blocks that know their index, between an embedding and a head: ids (N, T) -> (N, 3)."""

    def __init__(self, depth: int = 6) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.body = nn.ModuleDict({"layers": nn.ModuleList(self.block(i) for i in range(depth))})
        self.extra = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.head = nn.Linear(8, 3)

    @staticmethod
    def block(index: int) -> nn.Module:
        made = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.BatchNorm1d(16), nn.Linear(16, 8))
        made.layer_idx = index
        return made

    def forward(self, ids):
        x = self.words(ids).mean(1)
        for block in self.body["layers"]:
            x = x + block(x)
        return self.head(x)


TABLE = [
    (12, 6, "skip", (1, 3, 5, 7, 9, 11)),
    (6, 3, "skip", (1, 3, 5)),
    (12, 5, "skip", (1, 3, 6, 8, 11)),
    (12, 4, "skip", (2, 5, 8, 11)),
    (12, 1, "skip", (11,)),
    (4, 3, "skip", (0, 1, 3)),
    (5, 2, "skip", (1, 4)),
    (3, 3, "skip", (0, 1, 2)),
    (1, 1, "skip", (0,)),
    (12, 5, "paper", (2, 4, 6, 8, 10)),
    (12, 6, "paper", (1, 3, 5, 7, 9, 11)),
    (6, 3, "paper", (1, 3, 5)),
    (5, 2, "paper", (1, 3)),
    (12, 3, "top", (9, 10, 11)),
    (12, 3, "bottom", (0, 1, 2)),
    (4, 4, "top", (0, 1, 2, 3)),
    (4, 4, "bottom", (0, 1, 2, 3)),
    (4, 1, "top", (3,)),
    (4, 1, "bottom", (0,)),
]


@pytest.mark.parametrize(("depth", "keep", "choice", "wanted"), TABLE)
def test_each_choice_takes_the_layers_of_a_table_written_by_hand(depth, keep, choice, wanted):
    assert choose(depth, keep, choice) == wanted


def test_every_choice_of_every_number_is_one_that_can_be_made():
    for depth in range(1, 25):
        for keep in range(1, depth + 1):
            for choice in ("skip", "paper", "top", "bottom"):
                layers = choose(depth, keep, choice)
                assert len(layers) == keep
                check_choice(layers, depth)
            assert choose(depth, keep, "skip")[-1] == depth - 1, "the last layer is always kept"


@pytest.mark.parametrize("keep", [0, -1, 5])
def test_more_layers_than_there_are_or_none_cannot_be_chosen(keep):
    with pytest.raises(SpecError, match=rf"layers to keep: wanted 1 to 4 layers, got {keep}"):
        choose(4, keep, "skip")


@pytest.mark.parametrize("layers", [(), (0, 4), (-1, 2), (2, 1), (1, 1, 2), (5,)])
def test_layers_out_of_range_repeated_out_of_order_or_none_are_refused(layers):
    with pytest.raises(SpecError, match="different layers from 0 to 3 in ascending order"):
        check_choice(layers, 4)
    with pytest.raises(SpecError, match="different layers from 0 to 3 in ascending order"):
        reduced(Tower(4), layers)


def test_blocks_are_the_list_of_equal_modules_with_most_parameters():
    model = Tower()
    found = blocks(model)
    assert isinstance(found, Blocks) and found.name == "body.layers" and len(found) == 6
    assert all(ours is theirs for ours, theirs in zip(found.modules, model.body["layers"], strict=True))


def test_lists_of_different_modules_are_no_blocks():
    mixed = nn.Sequential(nn.ModuleList([nn.Linear(99, 99), nn.ReLU()]), nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]))
    assert blocks(mixed).name == "1"
    for model in (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.ModuleDict({"a": nn.ModuleList()}), nn.ReLU()):
        with pytest.raises(MatchError, match=r"a list of equal blocks \(nn.ModuleList\), got none"):
            blocks(model)
        with pytest.raises(MatchError, match="equal blocks"):
            reduced(model, (0,))


def test_an_encoder_beside_a_decoder_has_no_common_depth():
    small = {"vocab_size": 20, "d_model": 8, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    layers = {"encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    transformers = pytest.importorskip("transformers")
    model = transformers.BartForSequenceClassification(transformers.BartConfig(**small, **layers, max_position_embeddings=16))
    with pytest.raises(MatchError, match=r"got two, 'model\.encoder\.layers' and 'model\.decoder\.layers'.*logits only"):
        blocks(model)


def test_one_block_in_several_places_has_no_layers_to_choose_or_match():
    model = Tower()
    model.body["layers"] = nn.ModuleList([Tower.block(0)] * 6)
    with pytest.raises(MatchError, match="runs several times"):
        blocks(model)


def test_blocks_are_found_in_a_compressed_model_too():
    model = Tower()
    prepare(model, Compression(weight=Binary(), targets=("body.*",)))
    assert blocks(model).name == "body.layers" and len(blocks(model)) == 6


@pytest.mark.parametrize("layers", [(1, 3, 5), (0,), (0, 1, 2, 3, 4, 5), (2, 4)])
def test_reducing_copies_the_chosen_blocks_and_all_else_exactly_and_leaves_the_source_alone(layers):
    source = Tower().train()
    source(torch.arange(8).reshape(4, 2))  # so that running statistics differ
    before = copy.deepcopy(source.state_dict())
    student = reduced(source, layers)
    ours = student.state_dict()
    wanted = {}
    for name, tensor in before.items():
        if name.startswith("body.layers."):
            index, rest = name.removeprefix("body.layers.").split(".", 1)
            if int(index) in layers:
                wanted[f"body.layers.{layers.index(int(index))}.{rest}"] = tensor
        else:
            wanted[name] = tensor
    assert ours.keys() == wanted.keys() and all(torch.equal(ours[name], wanted[name]) for name in wanted)
    assert [block.layer_idx for block in student.body["layers"]] == list(range(len(layers)))
    after = source.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert [block.layer_idx for block in source.body["layers"]] == list(range(6))
    shared = {id(p) for p in source.parameters()} & {id(p) for p in student.parameters()}
    assert not shared and student.training


def test_a_reduced_network_runs_its_blocks_in_order():
    source, ids = Tower().eval(), torch.arange(8).reshape(4, 2)
    student = reduced(source, (1, 4))
    x = source.words(ids).mean(1)
    for layer in (1, 4):
        x = x + source.body["layers"][layer](x)
    assert torch.equal(student(ids), source.head(x))


def test_a_list_known_by_two_names_is_reduced_at_both():
    class Aliased(Tower):
        def __init__(self) -> None:
            super().__init__()
            self.layers = self.body["layers"]

        def forward(self, ids):
            x = self.words(ids).mean(1)
            for block in self.layers:
                x = x + block(x)
            return self.head(x)

    source, ids = Aliased().eval(), torch.arange(8).reshape(4, 2)
    student, wanted = reduced(source, (1, 4)), Tower().eval()
    wanted.load_state_dict({name: t for name, t in source.state_dict().items() if not name.startswith("layers.")})
    assert student.layers is student.body["layers"] and len(student.layers) == 2
    assert torch.equal(student(ids), reduced(wanted, (1, 4))(ids))


def test_a_config_is_rewritten_in_the_copy_alone_with_what_it_says_of_each_layer():
    source = Tower(4)
    source.config = SimpleNamespace(num_hidden_layers=4, layer_types=["full", "slide", "slide", "full"], other=4)
    source.body.config = source.config
    student = reduced(source, (0, 2, 3))
    assert student.config is student.body.config
    assert vars(student.config) == {"num_hidden_layers": 3, "layer_types": ["full", "slide", "full"], "other": 4}
    assert vars(source.config) == {"num_hidden_layers": 4, "layer_types": ["full", "slide", "slide", "full"], "other": 4}


def test_word_embeddings_are_the_table_the_model_names():
    model = Tower()
    assert word_embeddings(model) is None, "it does not say"
    for value, wanted in ((model.words, "words"), (nn.Embedding(2, 2), None), (model.head, None), (None, None)):
        model.get_input_embeddings = lambda value=value: value
        assert word_embeddings(model) == wanted

    def unknown():
        raise NotImplementedError

    model.get_input_embeddings = unknown
    assert word_embeddings(model) is None
    model.get_input_embeddings = lambda: model.words
    prepare(model, Compression(weight=Binary(), targets=("words",)))
    assert word_embeddings(model) == "words", "also where it is compressed"


# With transformers.


def tiny(family: str):
    """A classifier of the family with four layers, ten or so parameters each, and inputs for it."""
    transformers = pytest.importorskip("transformers")
    text = {"vocab_size": 40, "num_labels": 3, "pad_token_id": 0, "max_position_embeddings": 16}
    bert = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24, **text}
    settings = {
        "Bert": bert,
        "Roberta": bert,
        "Electra": bert | {"embedding_size": 16},
        "DebertaV2": bert | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
        "DistilBert": {"dim": 16, "n_layers": 4, "n_heads": 2, "hidden_dim": 24, **text},
        "GPT2": {"n_embd": 16, "n_layer": 4, "n_head": 2, "n_positions": 16, **text},
        "ModernBert": bert | {"global_attn_every_n_layers": 2, "local_attention": 4, "cls_token_id": 1, "sep_token_id": 2},
        "ViT": {k: v for k, v in bert.items() if k not in text} | {"image_size": 8, "patch_size": 4, "num_labels": 3},
    }[family]
    kind = "ImageClassification" if family == "ViT" else "SequenceClassification"
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(initializer_range=0.3, **settings)
    model = getattr(transformers, f"{family}For{kind}")(config).eval()
    inputs = {"pixel_values": torch.randn(2, 3, 8, 8)} if family == "ViT" else {"input_ids": torch.randint(3, 40, (2, 9))}
    return model, inputs


FAMILIES = {
    "Bert": "bert.encoder.layer",
    "Roberta": "roberta.encoder.layer",
    "Electra": "electra.encoder.layer",
    "DebertaV2": "deberta.encoder.layer",
    "DistilBert": "distilbert.transformer.layer",
    "GPT2": "transformer.h",
    "ModernBert": "model.layers",
    "ViT": "vit.encoder.layer",
}


def test_layers_that_are_built_unlike_those_whose_place_they_take_are_refused():
    """ModernBERT's first layer has no norm of its own: `from_pretrained` would build one for it, or drop an existing one."""
    model, inputs = tiny("ModernBert")
    with pytest.raises(MatchError, match="attn_norm"):
        reduced(model, (1, 3))
    with torch.no_grad():
        assert reduced(model, (0, 3))(**inputs).logits.shape == (2, 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_reduced_transformer_is_an_ordinary_one_with_fewer_layers(family, tmp_path):
    """Its blocks are the source's; `from_pretrained` reads what `save_pretrained` writes, with nothing missing."""
    model, inputs = tiny(family)
    found = blocks(model)
    assert found.name == FAMILIES[family] or family == "ViT"
    first = 0 if family == "ModernBert" else 1  # ModernBERT must keep its first layer
    student = reduced(model, (first, 3))
    for ours, theirs in zip(blocks(student).modules, (found.modules[first], found.modules[3]), strict=True):
        one, other = ours.state_dict(), theirs.state_dict()
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert (student.config.num_hidden_layers, model.config.num_hidden_layers) == (2, 4)
    numbers = {
        m.layer_idx for b in blocks(student).modules for m in b.modules() if isinstance(getattr(m, "layer_idx", None), int)
    }
    assert numbers in (set(), {0, 1})
    student.save_pretrained(tmp_path)
    read, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    with torch.no_grad():
        wanted = student(**inputs).logits
        assert torch.equal(read.eval()(**inputs).logits, wanted)
        assert not torch.equal(model(**inputs).logits, wanted)


def test_the_number_of_layers_is_rewritten_under_the_name_that_the_family_uses():
    model, _ = tiny("DistilBert")
    student = reduced(model, (0, 1, 3))
    assert student.config.to_dict()["n_layers"] == student.config.n_layers == 3
    assert "num_hidden_layers" not in student.config.to_dict() and model.config.n_layers == 4


def test_kept_layers_of_modernbert_keep_their_kind_of_attention():
    model, _ = tiny("ModernBert")
    kinds = model.config.layer_types
    assert len(set(kinds)) == 2
    assert reduced(model, (0, 2, 3)).config.layer_types == [kinds[0], *kinds[2:]]


def test_reducing_does_not_change_how_a_kept_layer_of_gpt2_computes():
    """Its score scaling may depend on the layer index."""
    transformers = pytest.importorskip("transformers")
    model, _ = tiny("GPT2")
    scaled = transformers.GPT2ForSequenceClassification(
        transformers.GPT2Config(**{**model.config.to_dict(), "scale_attn_by_inverse_layer_idx": True})
    ).eval()
    hidden = torch.randn(2, 5, 16)
    with torch.no_grad():
        wanted = blocks(scaled).modules[3](hidden)
        found = blocks(reduced(scaled, (1, 3))).modules[1](hidden)
    one, other = (value[0] if isinstance(value, tuple) else value for value in (found, wanted))
    assert torch.equal(one, other)


def test_layers_that_albert_shares_cannot_be_reduced():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "embedding_size": 8, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 40}
    model = transformers.AlbertForSequenceClassification(transformers.AlbertConfig(num_hidden_layers=4, **sizes))
    for refuse in (blocks, lambda network: reduced(network, (0,))):
        with pytest.raises(MatchError, match=r"4 different blocks, got 1 .*ALBERT.*logits only"):
            refuse(model)
