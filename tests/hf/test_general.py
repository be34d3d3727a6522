"""General distillation: its plan, a smaller encoder that learns and loads anywhere, and a projection between widths."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import datasets
import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification, BertModel

import bitstill
import bitstill.train.loop as loop
from bitstill.data.corpus import Corpus
from bitstill.data.metrics import linear_cka
from bitstill.errors import DataError, SpecError
from bitstill.hf.corpus_task import corpus_task, encoder_of
from bitstill.hf.pretrained import load_encoder
from bitstill.losses.features import AttentionScoreMSE, FeatureMSE, Pair
from bitstill.losses.projection import Projection
from bitstill.losses.taps import Output
from bitstill.recipes.general_distillation import GeneralDistillation
from bitstill.train.actions import AddProjection
from bitstill.train.stage import Stage, Term
from bitstill.train.step import TrainingStep
from tests.hf import tiny

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:datasets.*")
SHORT = GeneralDistillation(layers=2, steps=4, batch_size=8, validations=2)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return str(tiny.saved(tmp_path_factory.mktemp("models") / "bert", "bert"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        datasets.Dataset.from_dict({"text": tiny.sentences(120)[0]}).to_parquet(str(folder / "train.parquet"))
        yield Corpus(str(folder), length=16)


def distil(teacher, corpus, out, **options):
    return bitstill.distill(teacher, corpus, out, **{"recipe": SHORT, "settings": tiny.QUIET, **options})


def test_the_stage_is_the_published_one():
    stage = GeneralDistillation(Corpus("text.txt"), layers=2).stage((0, 2), 3)
    pairs = (Pair("hidden:0", "hidden:0"), Pair("hidden:1", "hidden:1"), Pair("hidden:2", "hidden:3"))
    scores = (Pair("scores:0", "scores:0"), Pair("scores:1", "scores:2"))
    assert [(t.loss, t.teacher, t.weight, t.through) for t in stage.terms] == [
        (FeatureMSE(pairs), "teacher", 1.0, None), (AttentionScoreMSE(scores), "teacher", 1.0, None),
    ]  # fmt: skip
    assert stage.train == ("student",) and not stage.begin and stage.data == Corpus("text.txt")
    projection = AddProjection("projection", 8, 16)
    other = GeneralDistillation(Corpus("text.txt"), layers=2).stage((0, 2), 3, projection)
    assert other.train == ("student", "projection") and other.begin == (projection,)
    assert all(term.through == "projection" for term in other.terms)
    with pytest.raises(SpecError, match="a corpus"):
        GeneralDistillation(layers=2).stage((0, 2), 3)


def test_the_smaller_encoder_learns_and_loads_anywhere(teacher, corpus, tmp_path):
    recipe = replace(SHORT, steps=30, lr=3e-3)
    report = distil(teacher, corpus, tmp_path / "small", recipe=recipe)
    losses = [entry["loss"] for entry in report["history"] if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0]
    values = [entry["validation"] for entry in report["history"] if "validation" in entry]
    assert report["delivered"]["test"] == pytest.approx(values[-1], abs=1e-3) and values[-1] > values[0]
    model = AutoModel.from_pretrained(tmp_path / "small")
    assert model.config.num_hidden_layers == 2 and isinstance(model, BertModel)
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "small").config.num_labels == 2
    assert json.loads((tmp_path / "small" / "report.json").read_text()) == report
    assert (tmp_path / "small.tokens" / "tokens.bin").exists() and not list(tmp_path.glob(".*checkpoint*"))


def test_it_can_be_the_student_of_a_task(teacher, corpus, tmp_path):
    distil(teacher, corpus, tmp_path / "small")
    data = tiny.write_csv(tmp_path / "data")
    text = bitstill.data.TextOptions(max_length=tiny.LIMIT)
    recipe = bitstill.recipes.BinaryBERT(steps=1, validations=1, batch_size=8)
    models = {"teacher": teacher, "student": str(tmp_path / "small")}
    result = bitstill.compress(recipe, "text", models, data=data, text=text, settings=tiny.QUIET)
    assert result.model.config.num_hidden_layers == 2 and result.report["size"]["nominal_bits"] == 2.0


@pytest.mark.parametrize("place", ["corpus", 0, 2])
def test_a_run_killed_anywhere_and_resumed_delivers_the_same_bytes(teacher, corpus, tmp_path, monkeypatch, place):
    settings = replace(tiny.QUIET, checkpoint_every=1)
    whole = tmp_path / "whole"
    distil(teacher, corpus, whole, settings=settings)
    steps = 0
    real = loop._forward_backward

    def dying(*arguments):
        nonlocal steps
        steps += 1
        if steps == place + 1:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        if place == "corpus":
            patch.setattr("bitstill.data.corpus._note", _interrupted)
        else:
            patch.setattr(loop, "_forward_backward", dying)
        with pytest.raises(KeyboardInterrupt):
            distil(teacher, corpus, tmp_path / "killed", settings=settings)
    distil(teacher, corpus, tmp_path / "killed", settings=settings, resume=True)
    assert (tmp_path / "killed" / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def _interrupted(*_arguments, **_options):
    raise KeyboardInterrupt


def test_a_finished_run_is_taken_as_it_is_if_it_is_the_same(teacher, corpus, tmp_path):
    """Also if it was killed between delivery and exit."""
    out = tmp_path / "out"
    report = distil(teacher, corpus, out)
    checkpoint = tmp_path / ".out.checkpoint.safetensors"
    checkpoint.write_bytes(b"left over")
    assert distil(teacher, corpus, out, resume=True) == report and not checkpoint.exists()
    for change in (
        {"recipe": replace(SHORT, lr=1.0)},
        {"settings": replace(tiny.QUIET, seed=5)},
        {"recipe": replace(SHORT, layers=None), "student": teacher},
    ):
        with pytest.raises(SpecError, match="the result of this run"):
            distil(teacher, corpus, out, resume=True, **change)


def test_a_finished_run_is_another_one_once_teacher_or_corpus_have_changed(teacher, tmp_path):
    """Also at unchanged paths."""
    shutil.copytree(teacher, tmp_path / "teacher")
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(tiny.sentences(120)[0]))
    arguments = (str(tmp_path / "teacher"), Corpus(str(text), length=16), tmp_path / "out")
    report = distil(*arguments)
    assert distil(*arguments, resume=True) == report
    with pytest.raises(SpecError, match="the result of this run \\(precision bf16"):
        distil(*arguments, resume=True, settings=replace(tiny.QUIET, precision="bf16"))
    weights = (tmp_path / "teacher" / "model.safetensors").read_bytes()
    model = AutoModel.from_pretrained(tmp_path / "teacher")
    model.embeddings.word_embeddings.weight.data[0, 0] += 1
    model.save_pretrained(tmp_path / "teacher")
    with pytest.raises(SpecError, match="the result of this run \\(models"):
        distil(*arguments, resume=True)
    (tmp_path / "teacher" / "model.safetensors").write_bytes(weights)
    text.write_text("\n\n".join(reversed(tiny.sentences(120)[0])))
    with pytest.raises(DataError, match="tokens of files"):
        distil(*arguments, resume=True)
    text.unlink()
    assert distil(*arguments, resume=True) == report


def test_a_student_of_another_width_learns_through_a_projection(teacher, corpus, tmp_path):
    shape = tiny.config("bert", hidden_size=8, num_hidden_layers=1, intermediate_size=12)
    shape.save_pretrained(tmp_path / "shape")
    recipe = GeneralDistillation(steps=30, batch_size=8, lr=3e-3, validations=1)
    report = distil(teacher, corpus, tmp_path / "narrow", student=str(tmp_path / "shape"), recipe=recipe)
    losses = [entry["loss"] for entry in report["history"] if "loss" in entry]
    assert losses[-1] < losses[0]
    assert AutoModel.from_pretrained(tmp_path / "narrow").config.hidden_size == 8
    assert set(report["parameters"]) >= {"student", "teacher"}


def test_the_projection_learns_and_leaves_scores_alone():
    torch.manual_seed(0)
    projection = Projection(4, 6)
    states, scores = torch.randn(2, 3, 4), torch.randn(2, 2, 3, 3)
    assert torch.equal(projection(states), nn.functional.linear(states, projection.weight, projection.bias))
    assert projection(scores) is scores
    with pytest.raises(SpecError, match="hidden states of width 4"):
        projection(torch.randn(2, 3, 6))


def test_a_term_sees_the_student_through_its_projection():
    torch.manual_seed(0)
    models = {"student": nn.Sequential(nn.Linear(5, 4)), "projection": Projection(4, 6)}
    pair = (Pair("0", "0"),)
    term = Term(FeatureMSE(pair), teacher="teacher", through="projection")
    stage = Stage("general", train=("student", "projection"), terms=(term,), steps=1)
    batch = {"x": torch.randn(2, 3, 5), "labels": torch.zeros(2)}
    target = Output(torch.zeros(2, 6), {"0": torch.randn(2, 3, 6)})
    data = tiny.image_task()
    data = replace(data, forward=lambda model, batch: model(batch["x"]).mean(1))
    loss, _, norms = TrainingStep(stage, models, data)(batch, {"teacher": target}, 0.0, True)
    seen = models["projection"](models["student"](batch["x"]))
    assert torch.allclose(loss, (seen - target.features["0"]).square().mean()) and float(norms[term.name]) > 0
    loss.backward()
    assert bool((models["projection"].weight.grad != 0).any())


@pytest.mark.parametrize("seed", range(3))
def test_linear_cka_is_that_of_centred_kernels(seed):
    torch.manual_seed(seed)
    x, y = torch.randn(20, 5), torch.randn(20, 3)
    center = torch.eye(20) - 1 / 20
    kernels = [center.double() @ z.double() @ z.double().T @ center.double() for z in (x, y)]
    wanted = 100 * (kernels[0] * kernels[1]).sum() / (kernels[0].norm() * kernels[1].norm())
    assert linear_cka(x, y) == pytest.approx(float(wanted))
    rotation = torch.linalg.qr(torch.randn(5, 5))[0]
    assert linear_cka(x, 3 * x @ rotation + 1) == pytest.approx(100) and linear_cka(x, y) < 90


def test_masking_replaces_words_alone(teacher):
    tokenizer = tiny.tokenizer()
    sequences = torch.randint(5, len(tiny.VOCABULARY), (40, 12), dtype=torch.int32)
    sequences[:, 0], sequences[:, -1] = tokenizer.cls_token_id, tokenizer.sep_token_id
    task = corpus_task(sequences, tokenizer, load_encoder(teacher, "teacher").model, 0.5)
    batch = task.augment(task.train.take(torch.arange(30)), torch.rand(30, 12))
    changed = batch["input_ids"] != task.train.take(torch.arange(30))["input_ids"]
    assert bool((batch["input_ids"][changed] == tokenizer.mask_token_id).all())
    assert 0.4 < float(changed[:, 1:-1].float().mean()) < 0.6 and not bool(changed[:, [0, -1]].any())


def test_sequences_are_what_the_tokenizer_makes_of_a_text():
    tokenizer = tiny.tokenizer()
    encoder = encoder_of(tokenizer)
    (ids,) = encoder.encode(["good film"])
    assert [*encoder.prefix, *ids, *encoder.suffix] == tokenizer("good film")["input_ids"]
    assert encoder.separator == tokenizer.sep_token_id


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": GeneralDistillation(steps=1)}, "a smaller student"),
        ({"recipe": GeneralDistillation(layers=9, steps=1)}, "1 to 3 layers"),
        ({"corpus": Corpus("nowhere.txt", length=16)}, "a readable corpus"),
    ],
)
def test_plans_that_cannot_be_carried_out(teacher, corpus, tmp_path, monkeypatch, options, message):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises((SpecError, DataError), match=message):
        distil(teacher, options.pop("corpus", corpus), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_what_does_not_fit_is_refused(teacher, corpus, tmp_path):
    with pytest.raises(DataError, match="a pretrained encoder"):
        distil(str(tmp_path / "nowhere"), corpus, tmp_path / "out")
    with pytest.raises(DataError, match="at least 20 sequences"):
        distil(teacher, replace(corpus, limit=400), tmp_path / "out")
    tiny.tokenizer().save_pretrained(tmp_path / "words alone")
    with pytest.raises(DataError, match="a pretrained encoder"):
        distil(str(tmp_path / "words alone"), corpus, tmp_path / "out")
    model = tiny.model("bert")
    (tmp_path / "pickled").mkdir()
    model.config.save_pretrained(tmp_path / "pickled")
    tiny.tokenizer().save_pretrained(tmp_path / "pickled")
    with pytest.raises(DataError, match="without weights"):
        distil(str(tmp_path / "pickled"), corpus, tmp_path / "out")
    torch.save(model.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(DataError, match="a pretrained encoder"):
        distil(str(tmp_path / "pickled"), corpus, tmp_path / "out")
    few = tiny.config("bert", num_hidden_layers=1, vocab_size=20)
    few.save_pretrained(tmp_path / "few")
    with pytest.raises(DataError, match="a model that knows token"):
        distil(teacher, corpus, tmp_path / "out", student=str(tmp_path / "few"), recipe=replace(SHORT, layers=None))
    shape = tiny.config("bert", num_hidden_layers=1, num_attention_heads=4)
    shape.save_pretrained(tmp_path / "shape")
    with pytest.raises(DataError, match="equally many heads"):
        distil(teacher, corpus, tmp_path / "heads", student=str(tmp_path / "shape"), recipe=replace(SHORT, layers=None))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(SpecError, match="a new or an empty folder"):
        distil(teacher, corpus, tmp_path / "mine")
    with pytest.raises(SpecError, match="hidden states or attention to imitate"):
        GeneralDistillation(hidden_weight=0, attention_weight=0)
