"""Actions at the start of a stage: making students, compressing them, and undoing compression."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bitstill.errors import MatchError, SpecError
from bitstill.model.compressed_layers import CompressedLinear, is_compressed
from bitstill.model.lifecycle import freeze, prepare, report, uncompressed
from bitstill.quant.granularity import PerChannel, PerTensor
from bitstill.quant.rules import Binary, Compression, Points, Prune, QuantizeInput, Ternary, Uniform
from bitstill.train.actions import Compress, Copy, ReduceLayers, ReduceWidth, SetDropout, Uncompress
from bitstill.train.stage import replay
from tests.recipes.encoders import bert, encoder, forward, task

DATA = task()


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def classes(model: nn.Module) -> dict[str, type]:
    return {name: type(module) for name, module in model.named_modules()}


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return forward(model.eval(), DATA.sample(6))


# Undoing compression.

EVERYTHING = [
    Compression(weight=Binary()),
    Compression(weight=Uniform(4, granularity=PerTensor()), input=QuantizeInput(8)),
    Compression(weight=Points(5), prune=Prune(0.3)),
    Compression(weight=Ternary(granularity=PerChannel()), input=QuantizeInput(range="step", per="tensor"), prune=Prune(0.5)),
]


class Mixed(nn.Module):
    """One layer of every kind, including Hugging Face's Conv1D."""

    def __init__(self) -> None:
        super().__init__()
        from transformers.pytorch_utils import Conv1D

        self.words, self.conv1 = nn.Embedding(50, 6, padding_idx=3), nn.Conv1d(6, 4, 3, padding=1, groups=2)
        self.conv2 = nn.Conv2d(1, 3, (4, 1), stride=(1, 2), padding=0, bias=False)
        self.turned, self.norm, self.head = Conv1D(7, 18), nn.BatchNorm1d(7), nn.Linear(7, 2)

    def forward(self, ids):
        x = torch.relu(self.conv1(self.words(ids).transpose(1, 2)))
        x = self.conv2(x.unsqueeze(1)).flatten(1)
        return self.head(torch.relu(self.norm(self.turned(x))))


@pytest.mark.parametrize("rule", EVERYTHING, ids=["binary", "4 bits, inputs", "points, pruned", "ternary, learned ranges"])
def test_uncompressed_is_the_float_model_with_the_latent_weights(rule):
    pytest.importorskip("transformers")
    model, ids = Mixed(), torch.randint(50, (5, 12))
    before, plain = classes(model), copy.deepcopy(model)
    prepare(model, rule)
    assert sum(is_compressed(module) for module in model.modules()) == 5
    with torch.no_grad():
        for parameter, other in zip(
            (model.get_parameter(name) for name, _ in plain.named_parameters()), plain.parameters(), strict=True
        ):
            other.add_(1)
            parameter.copy_(other)  # as training changes the latent weights
    compressed = copy.deepcopy(model)
    found = uncompressed(model)
    assert classes(found) == before, "of the very same classes, and without the quantizers' modules"
    assert same(state(found), state(plain)) and list(found.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in found.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert all(p.requires_grad for p in found.parameters()) and found.training
    assert torch.equal(found.eval()(ids), plain.eval()(ids)), "computing the same, at the latent weights"
    assert str(found) == str(plain)
    for ours, theirs in zip(found.modules(), plain.modules(), strict=True):
        assert ours.__dict__.keys() == theirs.__dict__.keys(), type(ours)
    assert classes(model) == classes(compressed) and same(state(model), state(compressed)), "the compressed one stays as it was"
    assert not {id(p) for p in model.parameters()} & {id(p) for p in found.parameters()}, "it is a copy"


def test_what_was_uncompressed_can_be_compressed_otherwise():
    model = encoder()
    prepare(model, Compression(weight=Uniform(8)))
    again = uncompressed(model)
    made = prepare(again, Compression(weight=Binary(), ignore=("classifier",)))
    direct = encoder()
    assert prepare(direct, Compression(weight=Binary(), ignore=("classifier",))) == made
    assert torch.equal(logits(again), logits(direct))


def test_uncompressed_keeps_ties_hooks_and_buffers():
    model = encoder()
    model.decoder = nn.Linear(16, 50, bias=False)
    model.decoder.weight = model.words.weight
    seen = []
    model.words.register_forward_hook(lambda *_: seen.append(1))
    model.classifier.register_buffer("mine", torch.arange(3))
    prepare(model, Compression(weight=Binary()))
    found = uncompressed(model)
    assert found.decoder.weight is found.words.weight and type(found.words) is nn.Embedding
    assert torch.equal(found.classifier.mine, torch.arange(3))
    logits(found)
    assert seen


def test_a_shared_layer_is_uncompressed_at_every_name():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model.append(model[0])
    prepare(model, Compression(weight=Binary()))
    found = uncompressed(model)
    assert found[0] is found[2] and type(found[0]) is nn.Linear


def test_a_float_model_has_nothing_to_take_back():
    model = encoder()
    assert same(state(uncompressed(model)), state(model)) and classes(uncompressed(model)) == classes(model)


def test_a_transformer_is_uncompressed_to_one_that_can_be_saved(tmp_path):
    model = bert()
    wanted = logits(model)
    prepare(model, Compression(weight=Binary(), targets=("bert.encoder.layer.*",), input=QuantizeInput()))
    found = uncompressed(model)
    assert torch.equal(logits(found), wanted) and not torch.equal(logits(model), wanted)
    found.save_pretrained(tmp_path)
    read, loaded = type(found).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loaded.values()) and torch.equal(logits(read), wanted)


def test_uncompress_puts_the_float_model_in_the_place_of_the_compressed_one():
    models: dict[str, nn.Module] = {"student": encoder(), "teacher": encoder(1)}
    teacher = models["teacher"]
    for action in (Compress("student", Compression(weight=Uniform(8))), Uncompress("student")):
        action.apply(models, DATA, 0)
    assert same(state(models["student"]), state(encoder())) and models["teacher"] is teacher
    assert not any(is_compressed(module) for module in models["student"].modules())
    Compress("student", Compression(weight=Binary())).apply(models, DATA, 0)


# Compressing by several rules.


def test_several_rules_each_reach_their_own_layers():
    models: dict[str, nn.Module] = {"student": encoder()}
    rules = (
        Compression(weight=Binary(), targets=("blocks.*",), input=QuantizeInput()),
        Compression(weight=Uniform(4), targets=("words",)),
    )
    Compress("student", rules).apply(models, DATA, 0)
    rows = {row.parameter: row for row in report(models["student"]).rows}
    assert list(rows) == [name for name, _ in models["student"].named_parameters()]
    for name, row in rows.items():
        matrix = name.startswith("blocks.") and name.endswith(".weight") and ".norm." not in name
        assert row.detail == ("binary" if matrix else "4-bit affine") if matrix or name == "words.weight" else True, name
        assert row.action == ("quantized" if matrix or name == "words.weight" else "float"), name
    assert not isinstance(models["student"].words.input_transform, type(models["student"].blocks[0].query.input_transform))


def test_roles_are_left_out_of_every_rule():
    models: dict[str, nn.Module] = {"student": encoder()}
    rules = tuple(Compression(weight=Binary(), targets=(target,)) for target in ("words", "blocks.*", "classifier", "pooler"))
    with pytest.raises(MatchError, match="leave none"):
        Compress("student", rules, skip="roles").apply(models, DATA, 0)
    Compress("student", Compression(weight=Binary()), skip="roles").apply(models, DATA, 0)
    rows = {row.parameter: row.action for row in report(models["student"]).rows}
    assert (rows["words.weight"], rows["pooler.weight"], rows["classifier.weight"]) == ("float", "quantized", "float")


def test_two_rules_for_one_layer_are_refused_and_nothing_is_changed():
    models: dict[str, nn.Module] = {"student": encoder()}
    rules = (Compression(weight=Binary()), Compression(weight=Uniform(4), targets=("words",)))
    with pytest.raises(MatchError, match="words: wanted each layer in one rule only"):
        Compress("student", rules).apply(models, DATA, 0)
    assert not any(is_compressed(module) for module in models["student"].modules())


# Making students.


def test_layers_are_taken_into_a_new_model_and_the_source_stays():
    models: dict[str, nn.Module] = {"teacher": encoder()}
    before = state(models["teacher"])
    ReduceLayers("teacher", "student", (0, 3)).apply(models, DATA, 0)
    student = models["student"]
    assert len(student.blocks) == 2 and same(state(models["teacher"]), before)
    assert same(state(student.blocks[1]), state(models["teacher"].blocks[3]))
    assert not {id(p) for p in student.parameters()} & {id(p) for p in models["teacher"].parameters()}


def test_layers_that_are_not_there_are_refused():
    with pytest.raises(SpecError, match="different layers from 0 to 3"):
        ReduceLayers("teacher", "student", (0, 4)).apply({"teacher": encoder()}, DATA, 0)


@pytest.mark.parametrize("make", [lambda p: encoder(dropout=p), lambda p: bert(dropout=p)], ids=["plain", "transformers"])
def test_dropout_is_set_in_every_layer_of_one_model(make):
    models: dict[str, nn.Module] = {"student": make(0.1), "teacher": make(0.1)}
    SetDropout("student", 0.5).apply(models, DATA, 0)
    found = {name: {m.p for m in model.modules() if isinstance(m, nn.Dropout)} for name, model in models.items()}
    assert found == {"student": {0.5}, "teacher": {0.1}}


def test_without_dropout_two_runs_in_training_are_the_same():
    """Also inside attention, where dropout is a number and not a layer."""
    models: dict[str, nn.Module] = {"student": bert(dropout=0.5).train()}
    batch = DATA.sample(4)

    def differ() -> bool:
        return not torch.equal(forward(models["student"], batch), forward(models["student"], batch))

    assert differ()
    SetDropout("student", 0.0).apply(models, DATA, 0)
    assert not differ()


def test_dropout_inside_attention_is_set_where_a_model_keeps_it_as_a_number():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(**sizes, image_size=8, patch_size=4, attention_probs_dropout_prob=0.5)
    models: dict[str, nn.Module] = {"student": transformers.ViTForImageClassification(config).train()}
    SetDropout("student", 0.0).apply(models, DATA, 0)
    pixels = torch.randn(2, 3, 8, 8)
    assert torch.equal(models["student"](pixels).logits, models["student"](pixels).logits)


# All of them.

ACTIONS = [
    Compress("student", Compression(weight=Binary())),
    Compress(
        "student", (Compression(weight=Binary(), targets=("words",)), Compression(weight=Points(4), targets=("blocks.*",)))
    ),
    Copy("student", "other"),
    ReduceLayers("student", "other", (1, 2)),
    ReduceLayers("student", "student", (1, 2)),
    SetDropout("student", 0.3),
]


@pytest.mark.parametrize("action", [*ACTIONS, Uncompress("student")], ids=lambda action: type(action).__name__)
def test_a_replay_makes_the_same_structure_and_an_unknown_model_is_named(action):
    def models() -> dict[str, nn.Module]:
        made: dict[str, nn.Module] = {"student": encoder(dropout=0.1)}
        if isinstance(action, Uncompress):
            prepare(made["student"], Compression(weight=Binary()))
        return made

    applied, replayed = models(), models()
    action.apply(applied, DATA, 0)
    replay(action, replayed, DATA)
    assert applied.keys() == replayed.keys()
    for name, model in applied.items():
        shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
        assert shapes == {key: tensor.shape for key, tensor in replayed[name].state_dict().items()}
        assert str(model) == str(replayed[name])
    with pytest.raises(SpecError, match=r"a known model, got 'student'.*teacher"):
        action.apply({"teacher": encoder()}, DATA, 0)


def test_freezing_after_uncompressing_is_a_float_model():
    model = encoder()
    prepare(model, Compression(weight=Binary()))
    frozen = freeze(uncompressed(model))
    assert torch.equal(logits(frozen), logits(encoder())) and not isinstance(frozen.pooler, CompressedLinear)


def test_widths_by_gradient_are_those_by_magnitude_and_depend_on_the_data():
    """The kept neurons differ, the shapes do not: a resumed run may restore the structure without the numbers."""
    found = {}
    for name in ("magnitude", "gradient", "replayed"):
        models = {"student": bert()}
        action = ReduceWidth("student", 0.5, importance="gradient" if name == "replayed" else name)
        action.replay(models, task()) if name == "replayed" else action.apply(models, task(), 0)
        found[name] = models["student"].state_dict()
    shapes = [{key: tensor.shape for key, tensor in state.items()} for state in found.values()]
    assert shapes[0] == shapes[1] == shapes[2]
    assert any(not torch.equal(found["gradient"][key], found["magnitude"][key]) for key in found["gradient"])
