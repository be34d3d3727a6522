"""Recipes on digits: what changes, what must not, and that the figures match the documentation."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bitstill
from bitstill.data.metrics import accuracy
from bitstill.data.objectives import Classification
from bitstill.errors import MatchError, SpecError
from bitstill.losses.features import Pair
from bitstill.model.lifecycle import freeze, pack, prepare
from bitstill.model.packed_layers import is_packed
from bitstill.model.weight_transform import WeightTransform
from bitstill.quant.binary import binary
from bitstill.quant.granularity import PerGroup, PerTensor
from bitstill.quant.rules import Compression, QuantizeInput, Uniform
from bitstill.quant.ternary import ternary
from bitstill.quant.uniform import uniform_affine
from bitstill.recipes import DifferentiableQuantization, PostTraining, QuantizedDistillation
from bitstill.recipes.recipe import RunContext

from .digits import QUIET, compressed_layers, conv_net, same, small_resnet, state, task

CLASSES = Classification(10)
DISTIL = {"steps": 3, "batch_size": 64, "augment": False}
TEACHER = "digits-teacher"


def compress(recipe, student=None, teacher=None, settings=QUIET, on=None):
    models = {"student": student or conv_net()}
    if recipe.needs_teacher:
        models["teacher"] = teacher or conv_net(TEACHER, "teacher")
    return bitstill.compress(recipe, on or task(), models, settings=settings)


def split_state(model):
    """State dict split into (learned by quantizers, running statistics of norms, the rest)."""
    learned, running, rest = {}, {}, {}
    for name, tensor in state(model).items():
        kind = learned if "weight_transform" in name else running if "running_" in name or "num_batches" in name else rest
        kind[name] = tensor
    return learned, running, rest


@pytest.mark.parametrize(
    ("bits", "quantize"),
    [
        (2, lambda w: uniform_affine(w, bits=2, granularity=PerTensor(), scale_dtype=torch.float16)),
        (1, lambda w: binary(w, granularity=PerTensor(), scale_dtype=torch.float16)),
        ("ternary", lambda w: ternary(w, granularity=PerTensor(), scale_dtype=torch.float16)),
    ],
)
def test_quantized_distillation_computes_its_loss_at_the_quantized_weights(bits, quantize):
    """First loss, against ordinary layers that hold the quantized weights; batch = all samples."""
    student, teacher, data = conv_net(), conv_net(TEACHER, "teacher"), task()
    recipe = QuantizedDistillation(bits, PerTensor(), steps=1, batch_size=len(data.train), augment=False, skip="none")
    result = compress(recipe, student, teacher)
    quantized = copy.deepcopy(student).train()
    for module in quantized.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.weight.data = quantize(module.weight.data).dequantize()
    batch = data.train.take(torch.arange(len(data.train)))
    with torch.no_grad():
        ours, theirs = data.forward(quantized, batch), data.forward(teacher.eval(), batch)
    kl = F.kl_div(F.log_softmax(ours / 2, -1), F.softmax(theirs / 2, -1), reduction="batchmean") * 4
    wanted = 0.7 * float(kl) + 0.3 * float(F.cross_entropy(ours, batch["labels"]))
    assert result.report["history"][0]["loss"] == pytest.approx(wanted, rel=1e-4)


def test_quantized_distillation_trains_at_quantized_weights_and_keeps_latent_ones(monkeypatch):
    """Every matrix passed to F.linear while the student trains or rehearses has at most four distinct values."""
    seen = []
    real = F.linear
    monkeypatch.setattr(F, "linear", lambda x, w, b=None: seen.append((x.requires_grad, w.unique().numel())) or real(x, w, b))
    recipe = QuantizedDistillation(2, PerTensor(), skip="none", lr=0.1, **DISTIL)
    result = compress(recipe, conv_net())
    in_training = [count for trained, count in seen if trained]
    assert len(in_training) == 2 * (DISTIL["steps"] + 1) and max(in_training) <= 4
    latent = result.models["student"]
    for name in compressed_layers(latent):
        layer = latent.get_submodule(name)
        assert layer.weight.unique().numel() > 0.9 * layer.weight.numel(), "the latent weights stay spread out"
        assert not torch.equal(layer.weight, conv_net().get_submodule(name).weight), "and they learn"
        delivered = result.model.get_submodule(name).packed()
        wanted = uniform_affine(layer.weight.detach(), bits=2, granularity=PerTensor(), scale_dtype=torch.float16)
        assert torch.equal(delivered, wanted.dequantize()), "Q(w) of the final latent weights is what is delivered"


@pytest.mark.parametrize("student", [conv_net, small_resnet], ids=["conv-net", "resnet"])
def test_the_delivered_model_is_what_the_report_says(student):
    result = compress(QuantizedDistillation(2, **DISTIL), student())
    data = task()
    with torch.no_grad():
        logits = data.forward(result.model, data.test.take(torch.arange(64)))
    assert accuracy(logits, data.test.labels) == result.report["delivered"]["test"]
    assert result.report["delivered"]["samples"] == 64
    packed = {name for name, module in result.model.named_modules() if is_packed(module)}
    assert packed == compressed_layers(result.models["student"]) == {layer["name"] for layer in result.report["size"]["layers"]}
    assert not result.model.training and not any(p.requires_grad for p in result.model.parameters())


@pytest.mark.parametrize("augment", [False, True], ids=["cached logits", "augmented"])
def test_a_given_teacher_is_in_eval_mode_and_unchanged_to_the_last_bit(augment):
    teacher = conv_net(TEACHER, "teacher").train()
    before = state(teacher)
    recipe = QuantizedDistillation(2, steps=3, batch_size=64, augment=augment, pairs=(Pair("features.3", "features.3"),))
    result = compress(recipe, teacher=teacher)
    after = result.models["teacher"]
    assert same(state(after), before) and not any(module.training for module in after.modules())
    assert all(p.grad is None for p in after.parameters())
    assert same(state(teacher), before) and teacher.training, "the caller's own object least of all"


def test_a_teacher_by_name_learns_the_labels_first():
    recipe = QuantizedDistillation(2, teacher_epochs=4, teacher_lr=0.05, steps=2, batch_size=32)
    models = {"teacher": TEACHER, "student": "digits-student"}
    result = bitstill.compress(recipe, task(), models, settings=QUIET)
    stages = [entry["stage"] for entry in result.report["history"]]
    assert stages[0] == "teacher" and stages[-1] == "quantized distillation"
    assert result.report["teacher"]["test"] > 30, "ten classes: chance is 10"


def test_pairs_of_real_modules_add_attention_transfer_whatever_their_widths():
    """16 channels of the student against 32 of the teacher; the logged value of the first step matches the formula."""
    student, teacher, data = conv_net(), conv_net(TEACHER, "teacher"), task()
    recipe = QuantizedDistillation(
        None, pairs=(Pair("features.5", "features.5"),), pair_weight=10.0, steps=1, batch_size=len(data.train), augment=False
    )
    result = compress(recipe, student, teacher)
    entry = result.report["history"][0]
    batch = data.train.take(torch.arange(len(data.train)))
    with torch.no_grad():
        x = data.forward(lambda image: image, batch)
        maps = [net.features[:6](x).square().sum(1).flatten(1) for net in (student.train(), teacher.eval())]
    ours, theirs = (m / m.norm(dim=1, keepdim=True) for m in maps)
    wanted = float((ours - theirs).square().sum(1).mean())
    assert entry["student/AttentionTransfer<-teacher"] == pytest.approx(wanted, rel=1e-4) and wanted > 0
    parts = 0.7 * entry["student/KL<-teacher"] + 0.3 * entry["student/CrossEntropy"] + 10 * wanted
    assert entry["loss"] == pytest.approx(parts, rel=1e-4)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (Pair("features.99", "features.3"), r"a module to tap, got 'features\.99'.*Did you mean 'features\.\d'"),
        (Pair("features.3", "feature.3"), r"got 'feature\.3'"),
    ],
)
def test_a_pair_that_names_nothing_is_refused_before_the_teacher_trains(pair, message, monkeypatch):
    monkeypatch.setattr("bitstill.run.driver.train", lambda *_, **__: pytest.fail("training began"))
    recipe = QuantizedDistillation(2, pairs=(pair,), teacher_epochs=1000)
    with pytest.raises(MatchError, match=message):
        bitstill.compress(recipe, task(), {"teacher": TEACHER, "student": "digits-student"}, settings=QUIET)


@pytest.mark.parametrize("teacher", ["self", "teacher"])
@pytest.mark.parametrize("student", [conv_net, small_resnet], ids=["conv-net", "resnet"])
def test_differentiable_quantization_moves_points_and_running_statistics_and_nothing_else(student, teacher):
    recipe = DifferentiableQuantization(
        2, teacher=teacher, float_epochs=0, point_lr=0.01, steps=3, batch_size=64, share_points=True
    )
    before = student()
    result = compress(recipe, before)
    trained = result.models["student"]
    learned, running, rest = split_state(trained)
    _, running_before, rest_before = split_state(before)
    assert same(rest, rest_before), "weights, biases and norms to the last bit"
    assert running.keys() == running_before.keys() and not same(running, running_before)
    start = copy.deepcopy(before)
    recipe.stages(RunContext(CLASSES))[0].begin[-2].apply({"student": start}, task(), 0)
    initial = split_state(start)[0]
    assert learned.keys() == initial.keys() and learned
    assert all(not torch.equal(points, initial[name]) for name, points in learned.items())
    assert all(torch.equal(points, points.sort().values) for points in learned.values())
    if teacher == "self":
        assert same(state(result.models["self"]), state(before)), "its own teacher is the student before it was quantized"


def test_sharing_points_keeps_their_total_and_gives_more_to_larger_gradients():
    recipe = DifferentiableQuantization(3, float_epochs=0, steps=1, batch_size=64, skip="none", share_points=True)
    result = compress(recipe)
    transforms = {n: m for n, m in result.models["student"].named_modules() if isinstance(m, WeightTransform)}
    counts = {name.removesuffix(".weight_transform"): t.learned["points"].numel() for name, t in transforms.items()}
    assert sum(counts.values()) == 8 * len(counts) and len(set(counts.values())) > 1 and min(counts.values()) >= 4
    stored = {layer["name"]: layer["bytes"]["levels"] for layer in result.report["size"]["layers"]}
    assert stored == {name: 4 * count for name, count in counts.items()}, "and the file holds as many"
    equal = compress(DifferentiableQuantization(3, float_epochs=0, steps=1, batch_size=64, skip="none", share_points=False))
    assert {layer["bytes"]["levels"] for layer in equal.report["size"]["layers"]} == {32}


def test_alternation_moves_only_the_weights_in_its_last_turn():
    recipe = DifferentiableQuantization(2, float_epochs=0, alternate=True, epochs=2, point_lr=0.01, batch_size=64)
    result = compress(recipe)
    stages = list(dict.fromkeys(entry["stage"] for entry in result.report["history"]))
    assert stages == ["points 1", "weights 1", "points 2", "weights 2"]
    assert not same(split_state(result.models["student"])[2], split_state(conv_net())[2]), "the weights learn too"


@pytest.mark.parametrize("student", [conv_net, small_resnet], ids=["conv-net", "resnet"])
@pytest.mark.parametrize("inputs", [None, QuantizeInput(8, per="sample")], ids=["float inputs", "8-bit inputs"])
def test_post_training_is_prepare_and_freeze_by_hand(student, inputs):
    result = compress(PostTraining(3, skip="none", input=inputs), student())
    by_hand = student()
    weight = Uniform(3, granularity=PerGroup(128), scale_dtype="float16", fit="least-squares")
    rule = Compression(weight=weight, input=inputs)
    prepare(by_hand, rule)
    wanted, found = pack(freeze(by_hand)), result.model
    assert same(state(found), state(wanted))
    data = task()
    batch = data.test.take(torch.arange(64))
    with torch.no_grad():
        assert torch.equal(data.forward(found, batch), data.forward(wanted, batch))
    assert result.report["history"] == [] and "teacher" not in result.report


@pytest.fixture(scope="module")
def quantized_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantized") / "artifact"
    bitstill.compress(PostTraining(4), task(), {"student": conv_net(TEACHER)}, out=folder, settings=QUIET)
    return folder


def test_a_quantized_artifact_can_teach(quantized_folder):
    recipe = QuantizedDistillation(1, **DISTIL)
    models = {"teacher": quantized_folder, "student": "digits-student"}
    result = bitstill.compress(recipe, task(), models, settings=QUIET)
    as_delivered = bitstill.load(quantized_folder)
    data = task()
    with torch.no_grad():
        logits = data.forward(as_delivered, data.test.take(torch.arange(64)))
    assert result.report["teacher"]["test"] == accuracy(logits, data.test.labels)
    written = (quantized_folder / "model.safetensors").stat().st_size
    assert result.report["teacher"]["file_bytes"] == written


@pytest.mark.parametrize("recipe", [PostTraining(), QuantizedDistillation(teacher_epochs=1000)])
def test_a_quantized_artifact_cannot_be_the_student(quantized_folder, recipe, monkeypatch):
    monkeypatch.setattr("bitstill.run.driver.train", lambda *_, **__: pytest.fail("training began"))
    models = {"student": str(quantized_folder), "teacher": TEACHER}
    with pytest.raises(SpecError, match=r"student: wanted a float student, got an artifact that is already compressed"):
        bitstill.compress(recipe, task(), models, settings=QUIET)


def test_a_float_artifact_can_be_student_and_teacher(tmp_path):
    first = QuantizedDistillation(None, kd_weight=0, **DISTIL)
    bitstill.compress(first, task(), {"student": "digits-student"}, out=tmp_path / "float", settings=QUIET)
    models = {"student": tmp_path / "float", "teacher": str(tmp_path / "float")}
    result = bitstill.compress(QuantizedDistillation(8, lr=1e-6, **DISTIL), task(), models, settings=QUIET)
    start = dict(bitstill.load(tmp_path / "float").named_parameters())
    for name, tensor in result.models["student"].named_parameters():
        assert torch.allclose(tensor, start[name], atol=1e-4) and tensor.requires_grad, name
