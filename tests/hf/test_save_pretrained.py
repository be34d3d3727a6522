"""transformers' own `save_pretrained` on compressed models: refused, or never read back as a float model."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
)

import bitstill
from bitstill.errors import ArtifactError, SpecError
from bitstill.model.lifecycle import uncompressed
from bitstill.quant import Binary, Compression

from . import tiny
from .test_trainer import trainer

RULE = Compression(weight=Binary(), targets=("bert.encoder.layer.*",))


def prepared(seed=0):
    model = tiny.model("bert", "sdpa", seed)
    bitstill.prepare(model, RULE)
    return model


def logits(model):
    with torch.no_grad():
        return model.eval()(**tiny.batch()).logits


FORMS = {
    "prepared": lambda folder: prepared(),
    "frozen": lambda folder: bitstill.freeze(prepared()),
    "packed": lambda folder: bitstill.pack(bitstill.freeze(prepared())),
    "loaded": lambda folder: bitstill.save(prepared(), folder) and bitstill.load(folder),
}


@pytest.mark.parametrize("part", ["whole", "base model"])
@pytest.mark.parametrize("form", FORMS)
def test_it_is_refused_and_a_checkpoint_is_refused_by_from_pretrained(form, part, tmp_path):
    model = FORMS[form](tmp_path / "artifact")
    for owner in (model, copy.deepcopy(model)):
        saved = owner if part == "whole" else owner.bert
        with pytest.raises(SpecError, match=r"save_pretrained: wanted a float model, .* Use bitstill.save\(model, folder\)"):
            saved.save_pretrained(tmp_path / "saved")
        assert not (tmp_path / "saved").exists()
    saved.save_pretrained(tmp_path / "saved", state_dict=saved.state_dict())
    with pytest.raises(ValueError, match="has no `quant_method` attribute"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert "bitstill.save(model, folder)" in (tmp_path / "saved" / "config.json").read_text()


def test_a_pickled_model_is_guarded_as_well(tmp_path):
    torch.save(prepared(), tmp_path / "model.pt")
    model = torch.load(tmp_path / "model.pt", weights_only=False)
    with pytest.raises(SpecError):
        model.save_pretrained(tmp_path / "saved")
    model.save_pretrained(tmp_path / "saved", state_dict={"marker": torch.zeros(1)})
    assert torch.equal(logits(model), logits(prepared()))


@pytest.mark.parametrize("form", ["unpacked", "uncompressed"])
def test_ordinary_layers_are_saved_and_loaded_as_ever(form, tmp_path):
    model = prepared()
    plain = uncompressed(model) if form == "uncompressed" else bitstill.unpack(bitstill.pack(bitstill.freeze(model)))
    plain.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForSequenceClassification.from_pretrained(tmp_path)), logits(plain))


def test_a_model_built_from_the_same_config_object_is_not_concerned(tmp_path):
    config = tiny.config("bert")
    student, teacher = BertForSequenceClassification(config), BertForSequenceClassification(config)
    bitstill.prepare(student, RULE)
    assert student.config is student.bert.config is student.bert.encoder.layer[0].attention.self.config
    teacher.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForSequenceClassification.from_pretrained(tmp_path)), logits(teacher))


def test_delivering_is_not_concerned(tmp_path):
    model = prepared()
    bitstill.save(model, tmp_path)
    assert torch.equal(logits(bitstill.load(tmp_path)), logits(model))
    assert torch.equal(logits(AutoModelForSequenceClassification.from_pretrained(tmp_path)), logits(model))


def test_trainer_resumes_a_prepared_model_from_its_own_checkpoint(tmp_path):
    whole = prepared()
    start = copy.deepcopy(whole)
    trainer(tmp_path / "whole", whole, max_steps=4, save_strategy="steps", save_steps=2).train()
    trainer(tmp_path / "resumed", start, max_steps=4).train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert torch.equal(logits(start), logits(whole)) and not torch.equal(logits(whole), logits(prepared()))


def test_a_head_that_artifacts_do_not_describe_is_delivered_for_whoever_has_the_network(tmp_path):
    def network() -> BertForTokenClassification:
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        return BertForTokenClassification(BertConfig(vocab_size=30, **sizes)).eval()

    model, ids = network(), torch.tensor([[1, 2, 3]])
    bitstill.prepare(model, bitstill.quant.Compression(targets=("*layer.*",), weight=bitstill.quant.Binary()))
    bitstill.save(model, tmp_path / "out")
    assert torch.equal(bitstill.load(tmp_path / "out", model=network())(ids).logits, model(ids).logits)
    with pytest.raises(ArtifactError, match=r"BertForTokenClassification.*bitstill.load\(folder, model=network\)"):
        bitstill.load(tmp_path / "out")
