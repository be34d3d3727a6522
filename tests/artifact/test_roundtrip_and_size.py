"""File contents and size: every byte is accounted for."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

import bitstill
from bitstill.artifact import coding
from bitstill.artifact.entropy import huffman_bits
from bitstill.artifact.format import CONFIG, WEIGHTS, LayerRecord
from bitstill.artifact.size import check_size, size_report, to_json
from bitstill.artifact.writer import Storage, encode
from bitstill.errors import ArtifactError, SpecError
from bitstill.model.contents import contents_of
from bitstill.model.lifecycle import freeze, pack, prepare
from bitstill.model.restore import load_into
from bitstill.quant.granularity import Bucket, PerChannel, PerGroup
from bitstill.quant.rules import Binary, Compression, LearnedStep, Points, Prune, QuantizeInput, Quantizer, Ternary, Uniform


def _mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 100))


MLP_WEIGHTS, MLP_BIASES = 2 * 512 * 512 + 512 * 100, 512 + 512 + 100


@pytest.mark.parametrize(
    ("spec", "bits", "floats_per_group"),
    [
        (Uniform(2, granularity=PerGroup(128)), 2, 2),
        (Uniform(4, granularity=Bucket(256)), 4, 2),
        (Uniform(8, granularity=PerGroup(128)), 8, 2),
        (Uniform(3, granularity=PerGroup(64), symmetric=True), 3, 1),
        (Binary(PerGroup(128)), 1, 1),
        (Ternary(PerGroup(128)), 1.6, 1),
        (Points(4), 2, 2),
        (Uniform(2, granularity=PerGroup(128), scale_dtype="float16"), 2, 1),
    ],
)
def test_file_is_within_five_percent_of_the_arithmetic(spec: Quantizer, bits, floats_per_group, tmp_path, write_artifact):
    """bits x weights / 8, plus scales, plus four bytes per bias: what a user computes on paper."""
    model = _mlp()
    prepare(model, Compression(weight=spec))
    folder = write_artifact(tmp_path, model)
    paper = bits * MLP_WEIGHTS / 8 + 4 * floats_per_group * MLP_WEIGHTS / spec.granularity.size + 4 * MLP_BIASES
    size = os.path.getsize(folder / WEIGHTS)
    assert paper <= size <= 1.05 * paper
    report = size_report(bitstill.read(folder))
    check_size(report, folder)
    assert report.nominal_bits == (2 if bits == 1.6 else bits)
    assert report.stored_bits == pytest.approx(8 * (size - 4 * MLP_BIASES - report.by_kind["header"]) / MLP_WEIGHTS)
    assert report.ratio == pytest.approx(4 * (MLP_WEIGHTS + MLP_BIASES) / size)


@pytest.mark.parametrize("storage", [Storage(), Storage("float16"), Storage(entropy_coding=True)])
def test_every_byte_of_the_file_is_in_the_report(storage, zoo, tmp_path, write_artifact):
    rules = (
        Compression(targets=("emb",), weight=Points(5)),
        Compression(targets=("conv1",), weight=Binary(), prune=Prune(0.4)),
        Compression(targets=("conv2",), weight=Ternary()),
        Compression(targets=("head",), weight=Uniform(3, granularity=PerGroup(7)), input=QuantizeInput(8)),
    )
    prepare(zoo, rules)
    folder = write_artifact(tmp_path, zoo, storage)
    report = size_report(bitstill.read(folder))
    data = (folder / WEIGHTS).read_bytes()
    assert report.file_bytes == len(data) == sum(report.by_kind.values())
    assert report.by_kind["header"] == 8 + int.from_bytes(data[:8], "little")
    kinds = {"codes": "codes", "scale": "scales", "offset": "scales", "levels": "levels", "mask": "masks"}
    wanted = dict.fromkeys(("codes", "scales", "levels", "masks", "leftovers"), 0)
    for name, tensor in load_file(folder / WEIGHTS).items():
        wanted[kinds.get(name.rpartition(".")[2], "leftovers")] += tensor.nbytes
    assert {kind: n for kind, n in report.by_kind.items() if kind != "header"} == wanted
    assert report.by_kind["masks"] == 6 * 3, "six rows of 21 bits, each beginning at a byte"
    assert report.by_kind["levels"] == 4 * 5
    assert sum(layer.weights for layer in report.layers) == 77 + 126 + 72 + 300
    leftovers = {
        name: tensor.nbytes for name, tensor in load_file(folder / WEIGHTS).items() if name.endswith(("bias", "norm.weight"))
    }
    assert report.largest_leftover is not None
    assert report.largest_leftover[1] == max(leftovers.values())
    check_size(report, folder)
    assert json.loads(json.dumps(to_json(report)))["ratio"] == report.ratio


def test_a_file_larger_than_its_arithmetic_is_refused(zoo, tmp_path, write_artifact):
    prepare(zoo, Compression(weight=Uniform(2)))
    report = size_report(bitstill.read(write_artifact(tmp_path, zoo)))
    check_size(report, tmp_path)
    larger = dataclasses.replace(report, file_bytes=int(1.06 * (report.arithmetic_bytes + report.row_padding_bytes)))
    with pytest.raises(ArtifactError, match="defect of bitstill"):
        check_size(larger, tmp_path)


@pytest.mark.parametrize(("bits", "factor"), [(2, 14.22), (4, 7.53), (8, 3.88)])
def test_paper_bytes_give_the_published_compression_factors(bits, factor, tmp_path, write_artifact):
    """k f / (k b + 2 f) with buckets of 256 and 32-bit floats (Polino et al. 2018, section 3)."""
    model = nn.Sequential(nn.Linear(256, 64, bias=False))
    prepare(model, Compression(weight=Uniform(bits, granularity=Bucket(256))))
    report = size_report(bitstill.read(write_artifact(tmp_path, model)))
    assert report.float_bytes / report.paper_bytes == pytest.approx(factor, abs=0.005)
    assert report.float_bytes / report.paper_bytes == pytest.approx(256 * 32 / (256 * bits + 2 * 32))


def test_huffman_bytes_pool_all_layers_into_one_code(tmp_path, write_artifact):
    model = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 8))
    prepare(model, Compression(weight=Uniform(3, granularity=Bucket(256))))
    archive = bitstill.read(write_artifact(tmp_path, model))
    pooled = np.bincount(np.concatenate([archive.codes(layer).ravel() for layer in archive.layers.values()]), minlength=8)
    n = 64 * 32 + 32 * 8
    wanted = 4 * (32 + 8) + n * huffman_bits(pooled.tolist()) / 8 + 8 * n / 256
    assert size_report(archive).paper_huffman_bytes == pytest.approx(wanted)


def test_entropy_of_each_layer_is_that_of_its_codes(zoo, tmp_path, write_artifact):
    prepare(zoo, Compression(weight=Uniform(3)))
    archive = bitstill.read(write_artifact(tmp_path, zoo))
    for layer in size_report(archive).layers:
        frequencies = np.unique(archive.codes(archive.layers[layer.name]), return_counts=True)[1] / layer.weights
        assert layer.entropy_bits == pytest.approx(float(-(frequencies * np.log2(frequencies)).sum()))


@pytest.mark.parametrize(
    "spec",
    [
        Uniform(4, granularity=Bucket(4096)),
        Uniform(3, granularity=PerChannel()),
        Points(5, init="uniform"),
        Ternary(),
        Uniform(8),
    ],
)
def test_entropy_coding_changes_the_size_and_nothing_else(spec, tmp_path, write_artifact, exact):
    model = _mlp()
    prepare(model, Compression(weight=spec))
    plain, coded = (
        bitstill.read(write_artifact(tmp_path / str(how), model, Storage(entropy_coding=how))) for how in (False, True)
    )
    assert os.path.getsize(coded.folder / WEIGHTS) <= os.path.getsize(plain.folder / WEIGHTS)
    for name in plain.layers:
        assert exact(coded.weight(name)) == exact(plain.weight(name))
        assert exact(coded.codes(coded.layers[name])) == exact(plain.codes(plain.layers[name]))
    assert exact(load_into(_mlp(), coded)[4].packed()) == exact(plain.weight("4"))


def test_entropy_coding_comes_close_to_the_entropy_where_codes_are_skewed(tmp_path, write_artifact):
    model = nn.Sequential(nn.Linear(512, 512, bias=False))
    with torch.no_grad():
        model[0].weight.normal_()
    prepare(model, Compression(weight=Uniform(4, granularity=Bucket(4096))))
    plain, coded = (
        size_report(bitstill.read(write_artifact(tmp_path / str(how), model, Storage(entropy_coding=how))))
        for how in (False, True)
    )
    entropy = coded.layers[0].entropy_bits
    assert entropy < 3.3
    assert coded.by_kind["codes"] < 1.05 * entropy * 512 * 512 / 8
    assert coded.file_bytes < 0.85 * plain.file_bytes


def test_codes_that_cannot_shrink_are_stored_as_they_are(tmp_path, write_artifact):
    model = nn.Sequential(nn.Linear(300, 40))
    prepare(model, Compression(weight=Binary()))
    archive = bitstill.read(write_artifact(tmp_path, model, Storage(entropy_coding=True)))
    assert archive.layers["0"].planes[0].coding == "none"


def test_zstandard_round_trip_and_refusals():
    data = bytes(range(7)) * 100
    frame = coding.compress(data)
    assert len(frame) < len(data)
    assert coding.decompress(frame, len(data), "here") == data
    with pytest.raises(ArtifactError, match=r"here: .*a frame of 700 bytes instead of 699"):
        coding.decompress(frame, 699, "here")
    with pytest.raises(ArtifactError, match="here"):
        coding.decompress(b"no frame", 8, "here")


def test_a_damaged_frame_never_decodes_to_other_bytes():
    """Without a checksum, a flipped bit among the literals would go unnoticed."""
    data = np.random.default_rng(0).binomial(8, 0.5, 400).astype(np.uint8).tobytes()
    frame = coding.compress(data)
    for position in range(len(frame)):
        damaged = frame[:position] + bytes([frame[position] ^ 1]) + frame[position + 1 :]
        try:
            found = coding.decompress(damaged, len(data), "here")
        except ArtifactError:
            continue
        assert found == data


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("coding", [False, "pruned"])
def test_zeros_of_pruned_layers_are_stored_small_and_exactly(tmp_path, write_artifact, bits, coding):
    model = nn.Sequential(nn.Linear(301, 47))
    prepare(model, Compression(weight=LearnedStep(bits, dead_zone=False), prune=Prune(0.8)))
    archive = bitstill.read(write_artifact(tmp_path, model, Storage(entropy_coding=coding)))
    assert np.array_equal(archive.weight("0"), model[0].effective_weight().detach().numpy())
    assert np.count_nonzero(archive.weight("0")) == 301 * 47 - round(0.8 * 301 * 47)
    (layer,) = size_report(archive).layers
    how = archive.layers["0"].planes[0].coding
    assert layer.coding == how == ("zstd" if coding else "bitmap")
    assert layer.zeros == pytest.approx(0.8, abs=1e-4)
    # One bit per weight, plus the codes of nonzero weights: three levels without zero at 2 bits take 1.6 bits each.
    bitmap = 301 * 47 * (1 + 0.2 * (1.6 if bits == 2 else bits)) / 8
    assert layer.bytes["codes"] <= bitmap + 2
    if not coding:
        assert layer.bytes["codes"] == pytest.approx(bitmap, abs=2)


def test_few_zeros_are_not_worth_a_bitmap(tmp_path, write_artifact):
    model = nn.Sequential(nn.Linear(301, 47))
    prepare(model, Compression(weight=Ternary(), prune=Prune(0.01)))
    archive = bitstill.read(write_artifact(tmp_path, model, Storage(entropy_coding=False)))
    record = archive.layers["0"].planes[0]
    assert record.coding in ("none", "bitmap")
    assert archive.tensors["0.codes"].nbytes <= 47 * 61


def test_a_damaged_bitmap_is_refused(tmp_path, write_artifact):
    model = nn.Sequential(nn.Linear(64, 8))
    prepare(model, Compression(weight=LearnedStep(4, dead_zone=False), prune=Prune(0.7)))
    archive = bitstill.read(write_artifact(tmp_path, model, Storage(entropy_coding=False)))
    codes = archive.tensors["0.codes"].copy()
    codes[0] ^= 0xFF
    for damaged in (codes, codes[:10], codes.reshape(1, -1)):
        with pytest.raises(ArtifactError, match=r"0.codes: wanted (\d+ bytes of codes after the bitmap|a bitmap of 512 bits)"):
            dataclasses.replace(archive, tensors={**archive.tensors, "0.codes": damaged}).codes(archive.layers["0"])


def test_records_survive_json(zoo, tmp_path, write_artifact):
    prepare(zoo, Compression(weight=Points(5), prune=Prune(0.3), input=QuantizeInput(8, symmetric=False)))
    archive = bitstill.read(write_artifact(tmp_path, zoo))
    for name, layer in archive.layers.items():
        assert LayerRecord.from_json(name, json.loads(json.dumps(layer.to_json()))) == layer


@pytest.mark.parametrize(
    "change",
    [
        {"granularity": {"kind": "row"}}, {"granularity": {"kind": "bucket", "size": 0}},
        {"granularity": {"kind": "bucket", "k": 3}},
        {"granularity": "channel"},
        {"shape": ["a"]}, {"shape": 3}, {"planes": [{"levels": 3}]}, {"planes": 3}, {"unknown": 1},
    ],
)  # fmt: skip
def test_records_of_the_wrong_kind_are_refused(change, zoo, tmp_path, write_artifact):
    prepare(zoo, Compression(weight=Uniform(2)))
    record = bitstill.read(write_artifact(tmp_path, zoo)).layers["head"].to_json()
    with pytest.raises(ArtifactError, match=r"layers\['head'\]"):
        LayerRecord.from_json("head", {**record, **change})
    for field in record:
        with pytest.raises(ArtifactError, match=r"layers\['head'\]"):
            LayerRecord.from_json("head", {key: value for key, value in record.items() if key != field})


def test_nothing_executable_and_no_latent_weight_is_in_the_file(zoo, tmp_path, write_artifact):
    prepare(zoo, Compression(weight=Uniform(2)))
    folder = write_artifact(tmp_path, zoo)
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG, WEIGHTS]
    names = set(load_file(folder / WEIGHTS))
    assert not {"emb.weight", "conv1.weight", "conv2.weight", "head.weight"} & names
    assert b"pickle" not in (folder / WEIGHTS).read_bytes()


def test_the_same_model_gives_the_same_bytes(zoo, tmp_path, write_artifact):
    prepare(zoo, Compression(weight=Points(5), prune=Prune(0.3)))
    for storage in (Storage(), Storage("float16", entropy_coding=True)):
        one, two = (write_artifact(tmp_path / f"{storage.leftovers}-{i}", zoo, storage) for i in range(2))
        for name in (WEIGHTS, CONFIG):
            assert (one / name).read_bytes() == (two / name).read_bytes()


def test_latent_weights_are_not_written(zoo):
    prepare(zoo, Compression(weight=Uniform(2)))
    with pytest.raises(SpecError, match=r"emb: wanted a frozen model.*freeze\(model\)"):
        contents_of(zoo)


@pytest.mark.parametrize("storage", [Storage(), Storage(entropy_coding=True)])
@pytest.mark.parametrize("weight", [Ternary(), Points(5), Binary()], ids=repr)
def test_frozen_and_packed_models_give_the_same_tensors(weight, storage, zoo):
    prepare(zoo, Compression(weight=weight, prune=Prune(0.4)))
    frozen = freeze(zoo)
    ours, theirs = (encode(contents_of(model), storage) for model in (frozen, pack(frozen)))
    assert ours[1] == theirs[1] and ours[0].keys() == theirs[0].keys()
    for name, tensor in ours[0].items():
        np.testing.assert_array_equal(tensor, theirs[0][name], strict=True)


def test_a_float_model_is_stored_whole(zoo, ids, tmp_path, write_artifact, make_zoo, exact):
    archive = bitstill.read(write_artifact(tmp_path, zoo))
    assert not archive.layers
    assert exact(load_into(make_zoo(), archive)(ids)) == exact(zoo.eval()(ids))
    assert size_report(archive).by_kind["codes"] == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_network_of_another_precision_is_loaded_as_it_was_delivered(
    dtype, zoo, ids, tmp_path, write_artifact, make_zoo, exact
):
    prepare(zoo, Compression(weight=Uniform(4)))
    zoo(ids)
    reloaded = load_into(make_zoo().to(dtype), bitstill.read(write_artifact(tmp_path, zoo)))
    assert exact(reloaded(ids)) == exact(zoo.eval()(ids))


def test_loaded_models_are_ready_to_run(zoo, ids, tmp_path, write_artifact, make_zoo):
    prepare(zoo, Compression(weight=Uniform(4)))
    reloaded = load_into(make_zoo().train(), bitstill.read(write_artifact(tmp_path, zoo)))
    assert not any(module.training for module in reloaded.modules())
    assert not any(parameter.requires_grad for parameter in reloaded.parameters())


READ_WITHOUT_TORCH = """
import importlib.abc, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] == "torch":
            raise ImportError("torch is blocked")

sys.meta_path.insert(0, Blocker())
import bitstill
from bitstill.artifact.size import size_report
archive = bitstill.read(sys.argv[1])
assert "torch" not in sys.modules
for name in archive.layers:
    sys.stdout.buffer.write(archive.weight(name).tobytes())
sys.stderr.write(str(size_report(archive).file_bytes))
"""


@pytest.mark.parametrize("storage", [Storage(), Storage("float16", entropy_coding=True)])
def test_artifacts_are_read_where_torch_is_not(storage, zoo, tmp_path, write_artifact, exact):
    prepare(zoo, Compression(weight=Points(5), prune=Prune(0.3)))
    folder = write_artifact(tmp_path, zoo, storage)
    done = subprocess.run([sys.executable, "-c", READ_WITHOUT_TORCH, str(folder)], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    wanted = b"".join(exact(zoo.get_submodule(name).effective_weight()) for name in ("emb", "conv1", "conv2", "head"))
    assert done.stdout == wanted
    assert int(done.stderr) == os.path.getsize(folder / WEIGHTS)


def test_folder_may_be_text_or_path(zoo, tmp_path, write_artifact):
    folder = write_artifact(tmp_path, zoo)
    assert bitstill.read(str(folder)).folder == bitstill.read(folder).folder == Path(folder)
