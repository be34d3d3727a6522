"""Compressed layers keep everything of the layers that they replace; packed ones are small and complete."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import bitstill
from bitstill.errors import DataError, SpecError
from bitstill.model.compressed_layers import COMPRESSED_KINDS, is_compressed, kind_of
from bitstill.model.lifecycle import freeze, pack, prepare, unpack
from bitstill.model.packed_layers import is_packed
from bitstill.model.weight_transform import WeightTransform, check_finite
from bitstill.quant.granularity import Bucket, PerChannel, PerGroup, PerTensor
from bitstill.quant.rules import Binary, Compression, ExactScale, LearnedStep, Points, Prune, QuantizeInput, Ternary, Uniform
from bitstill.train.optimizer_step import after_optimizer_step
from tests.pairwise import pairwise

W4 = Compression(weight=Uniform(4))


def test_parameters_are_the_same_objects_under_the_same_names(zoo):
    before = dict(zoo.named_parameters())
    keys = list(zoo.state_dict())
    optimizer = torch.optim.SGD(zoo.parameters(), lr=0.1)
    prepare(zoo, W4)
    after = dict(zoo.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    assert list(zoo.state_dict()) == keys
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in zoo.parameters()}


def test_masks_and_points_are_in_the_state_dict_beside_the_old_keys(zoo):
    keys = set(zoo.state_dict())
    prepare(zoo, Compression(weight=Points(4), prune=Prune(0.5)))
    new = set(zoo.state_dict()) - keys
    layers = ("emb", "conv1", "conv2", "head")
    assert keys <= set(zoo.state_dict())
    assert new == {f"{n}.weight_transform.{t}" for n in layers for t in ("mask", "learned.points")}


def test_a_compressed_layer_is_still_one_of_its_kind(zoo):
    prepare(zoo, W4)
    assert isinstance(zoo.head, nn.Linear)
    assert isinstance(zoo.conv2, nn.Conv2d)
    assert isinstance(zoo.emb, nn.Embedding)
    assert zoo.emb.padding_idx == 3
    assert "4-bit affine" in repr(zoo)


def test_hooks_survive_and_can_be_removed(zoo, ids):
    seen = []
    handle = zoo.head.register_forward_hook(lambda module, args, output: seen.append(type(module).__name__))
    zoo.head.register_forward_pre_hook(lambda module, args: seen.append("before"))
    prepare(zoo, W4)
    zoo(ids)
    assert seen == ["before", "CompressedLinear"]
    handle.remove()
    zoo(ids)
    assert seen == ["before", "CompressedLinear", "before"]


def test_training_flag_and_unknown_attributes_survive(zoo):
    zoo.head.eval()
    zoo.head.note = "mine"
    zoo.head.register_buffer("extra", torch.ones(2))
    prepare(zoo, W4)
    assert not zoo.head.training
    assert not zoo.head.weight_transform.training
    assert zoo.conv1.training
    assert zoo.head.note == "mine"
    assert "head.extra" in zoo.state_dict()


@pytest.mark.parametrize("stage", ["prepared", "frozen", "packed"])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_compute_the_same_and_share_nothing(stage, duplicate, zoo, ids, exact):
    prepare(zoo, Compression(weight=Points(5), prune=Prune(0.3), input=QuantizeInput(range="step", per="tensor")))
    zoo(ids)
    model = {"prepared": lambda: zoo.eval(), "frozen": lambda: freeze(zoo), "packed": lambda: pack(freeze(zoo))}[stage]()
    twin = duplicate(model)
    with torch.no_grad():
        assert exact(twin(ids)) == exact(model(ids))
        before = exact(model(ids))
        for tensor in (*twin.parameters(), *twin.buffers()):
            if tensor.is_floating_point():
                tensor.fill_(7.0)
        assert exact(model(ids)) == before


def test_state_dict_loads_into_another_prepared_model(zoo, make_zoo, ids, exact):
    compression = Compression(weight=Points(5), prune=Prune(0.3))
    prepare(zoo, compression)
    zoo(ids)
    other = make_zoo()
    prepare(other, compression)
    other.load_state_dict(zoo.state_dict())
    assert exact(other.eval()(ids)) == exact(zoo.eval()(ids))


def test_float_checkpoint_loads_into_a_prepared_model(zoo, make_zoo):
    state = make_zoo().state_dict()
    prepare(zoo, W4)
    zoo.load_state_dict(state)
    assert torch.equal(zoo.head.weight, state["head.weight"])


def test_training_moves_the_latent_weight_while_forward_uses_the_effective_one(zoo, ids):
    prepare(zoo, Compression(weight=Binary(PerTensor())))
    optimizer = torch.optim.SGD(zoo.parameters(), lr=0.1)
    before = zoo.head.weight.detach().clone()
    zoo(ids).square().sum().backward()
    optimizer.step()
    assert not torch.equal(zoo.head.weight, before)
    assert zoo.head.effective_weight().unique().numel() == 2
    assert zoo.head.weight.unique().numel() > 2


@given(
    st.sampled_from(
        [
            Uniform(3, granularity=PerGroup(3)),
            Uniform(4, symmetric=True, granularity=PerChannel()),
            Uniform(2, granularity=PerChannel(), gradient=ExactScale()),
            Binary(),
            Ternary(),
            Ternary(granularity=PerGroup(2)),
        ]
    ),
    st.integers(0, 2**31),
    st.sampled_from([None, 0, 3]),
)
def test_embedding_by_row_equals_the_whole_table(spec, seed, padding):
    """Forward bit for bit, and the gradient: quantizing only the rows in use must make no difference."""
    torch.manual_seed(seed)
    table = nn.Embedding(10, 7, padding_idx=padding)
    model = nn.Sequential(table)
    prepare(model, Compression(weight=spec))
    ids = torch.randint(10, (4, 6))
    upstream = torch.randn(4, 6, 7)
    found = model(ids)
    found.backward(upstream)
    gradient = table.weight.grad.clone()
    table.weight.grad = None
    whole = nn.functional.embedding(ids, model[0].effective_weight(), padding)
    whole.backward(upstream)
    assert found.detach().numpy().tobytes() == whole.detach().numpy().tobytes()
    torch.testing.assert_close(gradient, table.weight.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("compression", [
    Compression(weight=Uniform(3, granularity=Bucket(5))),
    Compression(weight=Binary(PerTensor())),
    Compression(weight=Binary(), prune=Prune(0.4)),
    Compression(weight=Points(5)),
])  # fmt: skip
def test_embedding_with_a_scale_across_rows_uses_the_whole_table(compression, ids, zoo, exact):
    prepare(zoo, compression)
    assert exact(zoo.emb(ids)) == exact(zoo.emb.effective_weight()[ids])
    packed = pack(freeze(zoo))
    assert exact(packed.emb(ids)) == exact(packed.emb.weight[ids]) == exact(zoo.emb(ids))


@pytest.mark.parametrize(
    ("spec", "granularity", "prune"),
    pairwise(
        [Uniform(3), Uniform(5, symmetric=True), Binary(), Ternary(), Points(6)],
        [PerTensor(), PerChannel(), PerGroup(3), Bucket(4)],
        [None, Prune(0.4)],
    ),
)
def test_packed_rows_equal_rows_of_the_packed_table(spec, prune, granularity, zoo, exact):
    prepare(zoo, Compression(targets=("emb",), weight=type(spec)(**{**spec.__dict__, "granularity": granularity}), prune=prune))
    packed = pack(freeze(zoo)).emb.packed
    for rows in ([3], [0, 10, 10, 2], list(range(11))):
        assert exact(packed(torch.tensor(rows))) == exact(packed()[rows])


@pytest.mark.parametrize(
    ("weight", "levels"),
    [(Uniform(b), 2**b) for b in range(1, 9)]
    + [(Uniform(2, symmetric=True), 3), (Binary(), 2), (Ternary(), 3), (Points(5), 5)],
)
def test_packed_layers_hold_bits_and_nothing_else(weight, levels):
    """Bytes in memory: rows x ceil(bits x length / 8) for codes, plus scales, offsets, levels and the bias."""
    model = nn.Sequential(nn.Linear(100, 40))
    prepare(model, Compression(weight=type(weight)(**{**weight.__dict__, "granularity": PerChannel()})))
    packed = pack(freeze(model))
    row = 20 if levels == 3 else -(-100 * (levels - 1).bit_length() // 8)
    planes = 2 if isinstance(weight, Points) or not getattr(weight, "symmetric", True) else 1
    wanted = 40 * row + 4 * 40 * planes + 4 * levels + 4 * 40
    assert sum(t.nbytes for t in (*packed.parameters(), *packed.buffers())) == wanted
    assert [name for name, _ in packed.named_parameters()] == ["0.bias"]


def test_unpacked_layers_are_ordinary_torch_layers(zoo, ids, exact):
    prepare(zoo, W4)
    packed = pack(freeze(zoo))
    plain = unpack(packed)
    assert {type(m) for m in plain.children()} == {nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding, nn.BatchNorm1d}
    assert exact(plain(ids)) == exact(packed(ids))
    assert set(plain.state_dict()) == set(zoo.state_dict())
    assert "in_features=60, out_features=5" in repr(plain.head)


@pytest.mark.parametrize("stage", ["frozen", "packed"])
@pytest.mark.parametrize(
    ("weight", "inputs"),
    [
        (Uniform(4), QuantizeInput(8, symmetric=False, per="tensor")),
        (Binary(), None),
        (Ternary(), QuantizeInput(8)),
        (Points(5), None),
    ],
)
def test_delivered_models_export(stage, weight, inputs, zoo, ids):
    """torch.export captures the whole delivered model, and its graph computes the same."""
    prepare(zoo, Compression(weight=weight, input=inputs, prune=Prune(0.2)))
    model = freeze(zoo) if stage == "frozen" else pack(freeze(zoo))
    if stage == "packed":
        model.emb = freeze(zoo).emb  # looks up only the rows in use, a data-dependent number
    exported = torch.export.export(model, (ids,)).module()
    torch.testing.assert_close(exported(ids), model(ids), rtol=0, atol=0)


@pytest.mark.parametrize("inputs", [None, QuantizeInput(8, symmetric=False, per="tensor")])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by torch itself
def test_frozen_models_compile_to_one_graph(inputs, zoo, ids):
    prepare(zoo, Compression(weight=Uniform(4), input=inputs))
    frozen = freeze(zoo)
    torch._dynamo.reset()
    compiled = torch.compile(frozen, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(ids), frozen(ids), rtol=0, atol=0)


class Loud(nn.Linear):
    """A subclass with its own forward."""

    def forward(self, input):
        return super().forward(input) + 1


@pytest.mark.parametrize(
    "layer",
    [
        Loud(3, 3),
        nn.Embedding(3, 3, max_norm=1.0),
        nn.Embedding(3, 3, sparse=True),
        nn.Embedding(3, 3, scale_grad_by_freq=True),
        nn.ConvTranspose2d(3, 3, 1),
        nn.utils.spectral_norm(nn.Linear(3, 3)),
        nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
        nn.LazyLinear(3),
        nn.LSTM(3, 3),
    ],
)
def test_layers_with_a_forward_of_their_own_are_no_candidates(layer):
    assert kind_of(layer) is None


def test_kinds_of_the_ordinary_layers():
    layers = {
        "Linear": nn.Linear(2, 2),
        "Conv1d": nn.Conv1d(2, 2, 1),
        "Conv2d": nn.Conv2d(2, 2, 1),
        "Embedding": nn.Embedding(2, 2),
    }
    assert {kind: kind_of(layer) for kind, layer in layers.items()} == {kind: kind for kind in layers}
    assert set(COMPRESSED_KINDS) == {*layers, "TransposedLinear"}


def test_compressed_and_packed_are_told_apart(zoo):
    assert not any(is_compressed(m) or is_packed(m) for m in zoo.modules())
    prepare(zoo, W4)
    assert is_compressed(zoo.head)
    assert not is_packed(zoo.head)
    packed = pack(freeze(zoo))
    assert is_packed(packed.head)
    assert not is_compressed(packed.head)
    assert kind_of(packed.head) is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(bad, zoo):
    with torch.no_grad():
        zoo.conv1.weight[0, 0, 0] = bad
    with pytest.raises(DataError, match=r"conv1\.weight: wanted finite weights, got 1 of 126"):
        prepare(zoo, W4)
    assert not is_compressed(zoo.conv1)
    with pytest.raises(DataError, match="w: wanted finite"):
        check_finite(torch.tensor([bad]), "w")


def test_weights_that_diverged_are_refused_when_frozen(zoo):
    prepare(zoo, W4)
    with torch.no_grad():
        zoo.head.weight[0, 0] = float("nan")
    with pytest.raises(DataError, match=r"head\.weight"):
        freeze(zoo)


def test_bias_that_diverged_is_refused_when_frozen(zoo):
    prepare(zoo, W4)
    with torch.no_grad():
        zoo.head.bias[0] = float("inf")
    with pytest.raises(DataError, match=r"head\.bias"):
        freeze(zoo)


def test_a_transform_can_be_a_parametrization(exact):
    """For an unusual parameter that no layer covers."""
    cell = nn.GRUCell(4, 5)
    transform = WeightTransform(Uniform(4), cell.weight_hh)
    wanted = transform(cell.weight_hh)
    nn.utils.parametrize.register_parametrization(cell, "weight_hh", transform)
    assert exact(cell.weight_hh) == exact(wanted)
    cell(torch.randn(2, 4), torch.randn(2, 5)).sum().backward()
    assert cell.parametrizations.weight_hh.original.grad.abs().sum() > 0


def test_a_learned_step_starts_from_the_first_training_batch_only(zoo, ids):
    inputs = QuantizeInput(4, range="step", per="tensor")
    prepare(zoo, Compression(targets=("head",), weight=Binary(), input=inputs))
    transform = zoo.head.input_transform
    zoo.eval()(ids)
    assert float(transform.step.detach()) == 1.0
    x = torch.randn(3, 60)
    transform.train()(x)
    first = float(transform.step.detach())
    assert first == pytest.approx(2 * float(x.abs().mean()) / 7**0.5)
    transform(10 * x)
    assert float(transform.step.detach()) == first
    assert bool(zoo.state_dict()["head.input_transform.ready"])


@pytest.mark.parametrize("size", [1e-7, 1e30])
@pytest.mark.parametrize(
    "weight", [Uniform(4, scale_dtype="float16"), Binary(scale_dtype="float16"), Points(4, scale_dtype="float16")]
)
def test_weights_whose_scales_float16_cannot_hold_are_refused(weight, size):
    model = nn.Sequential(nn.Linear(64, 8))
    model[0].weight.data.mul_(size)
    with pytest.raises(
        DataError, match=r"0: wanted scales that float16 can hold, got weights up to .*Use scale_dtype='float32'"
    ):
        prepare(model, Compression(weight=weight))
    prepare(model, Compression(weight=replace(weight, scale_dtype="float32")))
    largest = [tensor.detach().abs().max() for tensor in (model[0].effective_weight(), model[0].weight)]
    assert 0.1 < largest[0] / largest[1] <= 1.01
    trained = nn.Sequential(nn.Linear(64, 8))
    prepare(trained, Compression(weight=weight))
    trained[0].weight.data.mul_(size)
    with pytest.raises(DataError, match="scales that float16 can hold"):
        freeze(trained)


def test_weights_made_in_inference_mode_are_refused():
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(6, 3))
    with pytest.raises(SpecError, match=r"0\.weight: wanted parameters that can train, got an inference tensor"):
        prepare(model, Compression(weight=Uniform(4)))


@pytest.mark.parametrize(
    "weight", [LearnedStep(4), Points(4), Binary(learned_scale=True), Ternary(iterations=2, loss_aware=True)]
)
def test_a_model_in_double_precision_delivers_the_weights_it_trains_with(weight, tmp_path):
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    blank = copy.deepcopy(model)
    prepare(model, Compression(weight=weight))
    model.double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    x = torch.randn(4, 16)
    model(x.double()).square().sum().backward()
    optimizer.step()
    after_optimizer_step(model, optimizer)
    bitstill.save(model, tmp_path / "out")
    torch.testing.assert_close(bitstill.load(tmp_path / "out", model=blank)(x), model.eval()(x.double()).float())
