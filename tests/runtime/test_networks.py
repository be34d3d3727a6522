"""Whole networks on every engine: each encoder family, and each bitstill network, against the artifact in torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

import bitstill
import bitstill.runtime
from bitstill import runtime as kernels
from bitstill.artifact.reader import read_config
from bitstill.errors import ArtifactError, DataError, SpecError
from bitstill.program.from_artifact import program_of
from bitstill.program.samples import random_inputs
from bitstill.quant.granularity import PerTensor
from bitstill.quant.rules import Binary, Compression, QuantizeInput, Ternary, Uniform
from bitstill.runtime import engine as runtime_engine
from bitstill.runtime import model as runtime_model
from bitstill.runtime.library import tiers, use_tier
from tests.exporters.test_networks import BYTES, FAMILIES, NETWORKS, encoder_artifact, network_artifact
from tests.hf import tiny

PER_TENSOR = QuantizeInput(symmetric=False, per="tensor")


def in_torch(folder, values):
    model = bitstill.load(folder)
    with torch.inference_mode():
        found = model(**{name: torch.from_numpy(value) for name, value in values.items()})
    return found.logits.numpy()


@pytest.mark.parametrize("input", [None, BYTES, PER_TENSOR], ids=["float", "tokens", "tensor"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_an_encoder_says_the_same(kind, input, engine, tmp_path):
    encoder_artifact(kind, tmp_path / "a", input)
    values = random_inputs(read_config(tmp_path / "a"), 5, 11, shortest=1)
    found = bitstill.runtime.load(tmp_path / "a")(**values)
    wanted = in_torch(tmp_path / "a", values)
    # The last bit of a float may round an early code the other way, which moves everything after it.
    close = (1e-4 if input is None else 0.05) * np.abs(wanted).max()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=close)
    assert found.dtype == np.float32


@pytest.mark.parametrize("input", [None, BYTES], ids=["float", "tokens"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_padding_changes_nothing(kind, input, engine, tmp_path):
    encoder_artifact(kind, tmp_path / "a", input)
    model = bitstill.runtime.load(tmp_path / "a")
    padding = read_config(tmp_path / "a")["pad_token_id"]
    ids = np.random.default_rng(0).integers(5, 50, (2, 7))
    alone = model(input_ids=ids)
    wide = np.pad(ids, ((0, 0), (0, 4)), constant_values=padding)
    mask = np.pad(np.ones_like(ids), ((0, 0), (0, 4)))
    np.testing.assert_allclose(model(input_ids=wide, attention_mask=mask), alone, rtol=1e-5, atol=1e-5)
    one = np.concatenate([model(input_ids=ids[:1]), model(input_ids=ids[1:])])
    np.testing.assert_allclose(one, alone, rtol=1e-5, atol=1e-5)


def test_behind_the_first_token_a_sample_is_a_row(engine, tmp_path):
    model = tiny.model("bert").eval()
    rule = Compression(weight=Binary(), targets=("*pooler.dense",), input=QuantizeInput(per="sample"))
    bitstill.prepare(model, rule)
    bitstill.save(model, tmp_path / "a")
    values = random_inputs(read_config(tmp_path / "a"), 5, 11, shortest=1)
    wanted = in_torch(tmp_path / "a", values)
    np.testing.assert_allclose(bitstill.runtime.load(tmp_path / "a")(**values), wanted, rtol=0, atol=0.01)


def test_tokens_may_be_hidden_anywhere(engine, tmp_path):
    encoder_artifact("bert", tmp_path / "a", None)
    values = random_inputs(read_config(tmp_path / "a"), 3, 9)
    for hidden in ((slice(None), 0), (slice(None), 4), (1, slice(2, 8))):
        values["attention_mask"][:] = 1
        values["attention_mask"][hidden] = 0
        found = bitstill.runtime.load(tmp_path / "a")(**values)
        np.testing.assert_allclose(found, in_torch(tmp_path / "a", values), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_convolutional_network_says_the_same(name, bits, engine, tmp_path):
    network_artifact(name, bits, tmp_path / "a")
    (picture,) = random_inputs(read_config(tmp_path / "a"), 2, 1).values()
    found = bitstill.runtime.load(tmp_path / "a")(picture)
    with torch.inference_mode():
        wanted = bitstill.load(tmp_path / "a")(torch.from_numpy(picture)).numpy()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


def test_what_has_no_operation_is_refused(engine, tmp_path):
    network = torch.nn.Sequential(torch.nn.Linear(4, 2))
    bitstill.prepare(network, bitstill.quant.Compression(weight=bitstill.quant.Binary()))
    bitstill.save(network, tmp_path / "a")
    with pytest.raises(ArtifactError, match="wanted an encoder of transformers, or one of conv-net, resnet, res8, got"):
        bitstill.runtime.load(tmp_path / "a")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": None}, "inputs: wanted an input input_ids, got attention_mask"),
        ({"words": np.ones((2, 3), int)}, "wanted inputs input_ids, attention_mask, token_type_ids, got words"),
        ({"input_ids": np.ones((2, 3))}, "input_ids: wanted whole numbers, got float64"),
        ({"input_ids": np.ones(3, int)}, r"input_ids: wanted shape \(texts, length\), got \(3,\)"),
        ({"input_ids": np.ones((2, 0), int)}, r"wanted shape \(texts, length\), got \(2, 0\)"),
        ({"attention_mask": np.ones((2, 4), int)}, r"attention_mask: wanted shape \(2, 3\), got \(2, 4\)"),
        ({"attention_mask": np.array([[1, 1, 1], [0, 0, 0]])}, r"attention_mask\[1\]: wanted a token in every text, got none"),
        ({"input_ids": np.full((2, 3), 10**6)}, "input_ids: wanted numbers from 0 to .*, got 1000000"),
        ({"input_ids": np.full((2, 3), -1)}, "input_ids: wanted numbers from 0 to .*, got -1"),
        ({"token_type_ids": np.full((2, 3), 2)}, "token_type_ids: wanted numbers from 0 to 1, got 2"),
        (
            {"input_ids": np.full((2, 999), 5), "attention_mask": None},
            r"input_ids \(its length\): wanted numbers from 0 to .*Cut the text",
        ),
    ],
)
def test_bad_texts_are_refused(change, message, engine, tmp_path):
    encoder_artifact("bert", tmp_path / "a")
    values = {"input_ids": np.full((2, 3), 5), "attention_mask": np.ones((2, 3), int)} | change
    with pytest.raises(DataError, match=message):
        bitstill.runtime.load(tmp_path / "a")(**{name: value for name, value in values.items() if value is not None})


def test_bad_images_are_refused(engine, tmp_path):
    network_artifact("resnet-20", 1, tmp_path / "a")
    model = bitstill.runtime.load(tmp_path / "a")
    for given in (np.zeros((1, 3, 32)), np.zeros((1, 1, 32, 32)), np.zeros((1, 3, 0, 32))):
        with pytest.raises(DataError, match=r"image: wanted shape \(batch, 3, height, width\), got"):
            model(given)
    with pytest.raises(DataError, match="image: wanted numbers, got <U1"):
        model(np.full((1, 3, 32, 32), "a"))
    with pytest.raises(DataError, match="wanted inputs image, got one twice"):
        model(np.zeros((1, 3, 8, 8)), image=np.zeros((1, 3, 8, 8)))
    with pytest.raises(SpecError, match="threads: wanted at least one thread, got 0"):
        bitstill.runtime.load(tmp_path / "a", threads=0)


def test_a_picture_that_is_too_small(engine, tmp_path):
    network_artifact("res8-narrow", 1, tmp_path / "a")
    with pytest.raises(ArtifactError, match="wanted at least 4 x 3 to pool, got 2 x 40"):
        bitstill.runtime.load(tmp_path / "a")(np.zeros((1, 1, 2, 40), np.float32))


def test_many_threads_may_call_at_once(engine, tmp_path):
    encoder_artifact("bert", tmp_path / "a")
    model = bitstill.runtime.load(tmp_path / "a", threads=3)
    asked = [random_inputs(read_config(tmp_path / "a"), batch, 5 + batch, seed=batch) for batch in range(1, 7)]
    wanted, wrong = [model(**values) for values in asked], []

    def ask(number):
        wrong.extend(number for _ in range(20) if not np.array_equal(model(**asked[number]), wanted[number]))

    threads = [threading.Thread(target=ask, args=(number % len(asked),)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_that_was_forked_after_loading_answers(tmp_path):
    encoder_artifact("bert", tmp_path / "a")
    script = f"""
import os, sys
import numpy as np
import bitstill.runtime
model = bitstill.runtime.load({str(tmp_path / "a")!r}, threads=2)
ids = np.full((4, 9), 7)
wanted = model(input_ids=ids)
child = os.fork()
same = all(np.array_equal(model(input_ids=ids), wanted) for _ in range(50))
if child == 0:
    os._exit(0 if same else 1)
_, status = os.waitpid(child, 0)
assert "torch" not in sys.modules and "transformers" not in sys.modules
sys.exit(0 if same and status == 0 else 1)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=120).returncode == 0


def test_engines_are_named(engine, tmp_path):
    encoder_artifact("bert", tmp_path / "a")
    model = bitstill.runtime.load(tmp_path / "a")
    assert model.engine == engine and model.weight_bytes > 0 and model.labels == ()
    assert isinstance(model, runtime_model.Model) and model.longest == 40
    ids = np.full((1, 40), 7)
    assert model(input_ids=ids).shape == (1, 2)


@pytest.mark.skipif(not tiers(), reason="installed without a C compiler: there is no native library")
def test_a_model_keeps_the_instruction_set_that_it_was_loaded_for(tmp_path):
    """Its weights are packed for that one; another would misread them."""
    encoder_artifact("bert", tmp_path / "a")
    values = random_inputs(read_config(tmp_path / "a"), 5, 11, shortest=1)
    models, wanted = {}, {}
    try:
        for name in tiers():
            use_tier(name)
            models[name] = bitstill.runtime.load(tmp_path / "a")
            wanted[name] = models[name](**values)
        for other in tiers():
            use_tier(other)
            for name, model in models.items():
                assert model.engine == name
                np.testing.assert_array_equal(model(**values), wanted[name])
    finally:
        use_tier(tiers()[0])


@pytest.mark.skipif(not hasattr(os, "fork") or not tiers(), reason="this system has no fork, or no native library")
def test_a_child_does_not_wait_for_a_lock_that_nobody_holds(tmp_path):
    """Here, the lock of a thread that was planning for another image size when its process forked."""
    network_artifact("resnet-20", 2, tmp_path / "a")
    model = bitstill.runtime.load(tmp_path / "a")
    with model._engine._lock:
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            answer = model(np.zeros((1, 3, 16, 16), np.float32))
            os._exit(0 if np.isfinite(answer).all() else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(not tiers(), reason="installed without a C compiler: there is no native library")
def test_sizes_of_images_do_not_pile_up(tmp_path):
    network_artifact("resnet-20", 2, tmp_path / "a")
    model = bitstill.runtime.load(tmp_path / "a")
    for size in range(12, 40):
        model(np.zeros((1, 3, size, 16), np.float32))
        if size == 12:
            first = model.weight_bytes
    assert model.weight_bytes == first and len(model._engine._plans) <= runtime_engine.MAX_PLANS


@pytest.mark.skipif(not tiers(), reason="installed without a C compiler: there is no native library")
@pytest.mark.parametrize(
    "quantizer",
    [Binary(PerTensor()), Ternary(PerTensor()), Uniform(8, symmetric=True, granularity=PerTensor())],
    ids=["1", "ternary", "8"],
)
def test_a_table_with_one_scale_stays_packed(quantizer, tmp_path):
    model = tiny.model("bert", hidden_size=40, num_attention_heads=4).eval()
    bitstill.prepare(model, Compression(weight=quantizer, targets=("*word_embeddings",)))
    bitstill.save(model, tmp_path / "a")
    values, loaded = random_inputs(read_config(tmp_path / "a"), 5, 11, shortest=1), bitstill.runtime.load(tmp_path / "a")
    np.testing.assert_allclose(loaded(**values), in_torch(tmp_path / "a", values), rtol=0, atol=1e-4)
    (table,) = (each for name, each in loaded._engine.layers._tables.items() if name.endswith("word_embeddings"))
    assert not table.struct.dense and table.held.bytes < 40 * len(tiny.VOCABULARY) * 1.3 + 1100


@pytest.mark.skipif(not tiers(), reason="installed without a C compiler: there is no native library")
def test_weights_that_are_packed_are_all_that_is_held(tmp_path):
    """An encoder needs no more planning once it is loaded."""
    encoder_artifact("bert", tmp_path / "a")
    assert not bitstill.runtime.load(tmp_path / "a")._engine.layers.archive.tensors


@pytest.mark.parametrize("shape", [("batch", 1, "x", "x"), ("batch", "batch", 8, 8), ("batch", 0, 8, 8), ("batch", 1, 8.0, 8)])
def test_an_input_whose_sizes_make_no_sense_is_refused(shape, engine, tmp_path):
    network_artifact("digits-student", 2, tmp_path / "a")
    archive = bitstill.read(tmp_path / "a")
    program = program_of(archive)
    program = replace(program, inputs=(replace(program.inputs[0], shape=shape),))
    with pytest.raises(ArtifactError, match="sizes of an input"):
        runtime_model.Model(archive, program, 1)


def test_threads_are_a_number_above_0(tmp_path):
    encoder_artifact("bert", tmp_path / "a")
    for threads in (0, -1, "2", 2.5, float("nan")):
        with pytest.raises(SpecError, match="at least one thread"):
            bitstill.runtime.load(tmp_path / "a", threads=threads)
    assert bitstill.runtime.load(tmp_path / "a", threads=10**9).threads == runtime_model.MAX_THREADS


def test_a_library_that_cannot_be_opened_is_gone_on_without(tmp_path, monkeypatch):
    (tmp_path / "libbitstill.so").write_bytes(b"cut off")
    with pytest.warns(UserWarning, match="without its compiled library"):
        assert kernels.library._opened(tmp_path / "libbitstill.so") is None
