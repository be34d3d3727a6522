"""Artifacts loaded by transformers itself: the same outputs as `bitstill.load`, and never a wrong model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING

import bitstill
from bitstill.artifact.config_keys import TRANSFORMERS_WEIGHTS
from bitstill.errors import ArtifactError, BitstillError, SpecError
from bitstill.hf.quantizer import BitstillConfig, BitstillQuantizer
from bitstill.model.packed_layers import is_packed
from tests.signing import edit_config, edit_signed

from . import tiny

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:datasets.*")
TEXT = bitstill.data.TextOptions(max_length=tiny.LIMIT)
SMALL = bitstill.Storage(leftovers="float16", entropy_coding=True)
POST = bitstill.recipes.PostTraining
RUNS = {
    "xtc": ("bert", bitstill.recipes.XTC(steps=2, validations=1, batch_size=4), bitstill.Storage()),
    "xtc small": ("bert", bitstill.recipes.XTC("ternary", layers=2, steps=2, validations=1, batch_size=4), SMALL),
    "4 bits small": ("bert", POST(4), SMALL),
    "8-bit inputs": ("bert", POST(2, input=bitstill.quant.QuantizeInput()), bitstill.Storage()),
    "roberta": ("roberta", POST("ternary", granularity=bitstill.quant.PerChannel()), bitstill.Storage()),
    "distilbert": ("distilbert", POST(1, skip="none"), bitstill.Storage()),
    "electra": ("electra", POST(3), SMALL),
    "deberta-v3": ("deberta-v3", POST(5, granularity=bitstill.quant.PerTensor()), bitstill.Storage()),
    "albert": ("albert", POST(4), bitstill.Storage()),
    "gpt2": ("gpt2", POST(4), bitstill.Storage()),
    "vit": ("vit", POST(4), bitstill.Storage(leftovers="float16")),
}


@pytest.fixture(scope="session")
def artifact(tmp_path_factory, saved, data) -> Callable[[str], Path]:
    """The artifact of one of `RUNS`, made once; read-only."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            model, recipe, storage = RUNS[name]
            made[name] = tmp_path_factory.mktemp("artifact") / "artifact"
            sources = {"teacher" if recipe.needs_teacher else "student": str(saved(model))}
            task, where = (tiny.image_task(), {}) if model == "vit" else ("text", {"data": data, "text": TEXT})
            bitstill.compress(recipe, task, sources, out=made[name], settings=tiny.QUIET, storage=storage, **where)
        return made[name]

    return make


@pytest.fixture
def damaged(tmp_path, artifact):
    folder = tmp_path / "damaged"
    shutil.copytree(artifact("xtc"), folder)
    return folder


def auto(name):
    return AutoModelForImageClassification if RUNS[name][0] == "vit" else AutoModelForSequenceClassification


def inputs_of(name):
    return {"pixel_values": tiny.image_task().train.inputs["pixel_values"]} if RUNS[name][0] == "vit" else tiny.batch()


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize("name", RUNS)
def test_it_is_the_model_that_bitstill_loads(artifact, name, caplog, capfd):
    folder = artifact(name)
    caplog.clear()
    capfd.readouterr()
    model, info = auto(name).from_pretrained(folder, output_loading_info=True)
    assert not caplog.records and capfd.readouterr() == ("", ""), "nothing to warn of"
    assert not any(info.values()), info
    ours = bitstill.load(folder)
    assert type(model) is type(ours) and torch.equal(logits(model, inputs_of(name)), logits(ours, inputs_of(name)))
    packed = {path for path, module in model.named_modules() if is_packed(module)}
    assert packed == {path for path, module in ours.named_modules() if is_packed(module)} == set(bitstill.read(folder).layers)
    assert model.state_dict().keys() == ours.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in ours.state_dict().items())


def test_it_is_ready_to_run_and_does_not_train(artifact):
    model = AutoModelForSequenceClassification.from_pretrained(artifact("xtc"))
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {t.dtype for t in model.parameters()} == {torch.float32} and model.device.type == "cpu"
    assert model.is_quantized and model.quantization_method == "bitstill"


def test_small_leftovers_are_read_as_float32(artifact):
    model = AutoModelForSequenceClassification.from_pretrained(artifact("4 bits small"))
    assert {t.dtype for t in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["xtc", "xtc small", "4 bits small"])
def test_a_pipeline_says_what_bitstill_says(artifact, name):
    texts = tiny.sentences(12, seed=7)[0]
    said = pipeline("text-classification", model=str(artifact(name)))(texts)
    tokenizer, model = AutoTokenizer.from_pretrained(artifact(name)), bitstill.load(artifact(name))
    for text, answer in zip(texts, said, strict=True):
        shares = logits(model, tokenizer(text, return_tensors="pt")).softmax(-1)[0]
        assert answer["label"] == ("negative", "positive")[int(shares.argmax())]
        assert answer["score"] == pytest.approx(float(shares.max()), abs=1e-5)


def test_the_report_is_what_transformers_would_measure(artifact):
    folder = artifact("xtc")
    said = pipeline("text-classification", model=str(folder), batch_size=4)(tiny.sentences(10, seed=2)[0])
    right = [answer["label"] == ("negative", "positive")[n % 2] for n, answer in enumerate(said)]
    report = json.loads((folder / "report.json").read_text())
    assert report["delivered"]["test"] == pytest.approx(100 * sum(right) / len(right))


def test_config_and_tokenizer_of_the_folder_are_ordinary_ones(artifact):
    config = AutoConfig.from_pretrained(artifact("xtc"))
    assert config.id2label == {0: "negative", 1: "positive"} and config.model_type == "bert"
    assert config.quantization_config["quant_method"] == "bitstill"
    loaded = AutoModelForSequenceClassification.from_pretrained(artifact("xtc")).config
    assert json.loads(loaded.to_json_string())["quantization_config"]["quant_method"] == "bitstill" and repr(loaded)
    assert AutoTokenizer.from_pretrained(artifact("xtc")).get_vocab() == tiny.tokenizer().get_vocab()


@pytest.mark.parametrize("settings", [{"dtype": "auto"}, {"dtype": torch.float32}, {"dtype": "float32"}, {"device_map": "cpu"}])
def test_settings_that_change_nothing(artifact, settings):
    model = AutoModelForSequenceClassification.from_pretrained(artifact("xtc"), **settings)
    assert torch.equal(logits(model, tiny.batch()), logits(bitstill.load(artifact("xtc")), tiny.batch()))


def test_another_attention_may_be_chosen(artifact):
    model = AutoModelForSequenceClassification.from_pretrained(artifact("xtc"), attn_implementation="eager")
    wanted = logits(bitstill.load(artifact("xtc")), tiny.batch())
    torch.testing.assert_close(logits(model, tiny.batch()), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16", torch.float16])
def test_another_dtype_is_a_clear_error(artifact, dtype):
    with pytest.raises(SpecError, match=r"from_pretrained: wanted dtype float32, got torch\.b?float16. Leave dtype out"):
        AutoModelForSequenceClassification.from_pretrained(artifact("xtc"), dtype=dtype)


def test_a_flipped_bit_is_noticed(damaged):
    path = damaged / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"model.safetensors: wanted the weights that config.json describes"):
        AutoModelForSequenceClassification.from_pretrained(damaged)


@pytest.mark.parametrize("keep", [-10, 100, 4, 0])
def test_a_truncated_file_is_noticed(damaged, keep):
    path = damaged / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match=r"model.safetensors: wanted an intact safetensors file"):
        AutoModelForSequenceClassification.from_pretrained(damaged)


def test_an_edited_record_is_noticed(damaged):
    def change(config):
        record = next(iter(config["quantization_config"]["layers"].values()))
        record["planes"][0]["step"] = 3

    edit_config(damaged, change)
    with pytest.raises(ArtifactError, match=r"the config\.json that was delivered"):
        AutoModelForSequenceClassification.from_pretrained(damaged)


@pytest.mark.parametrize("version", [4, "1", None])
def test_another_version_is_refused(damaged, version):
    edit_signed(damaged, config=lambda config: config["quantization_config"].update(version=version))
    with pytest.raises(ArtifactError, match=r"config.json: quantization_config: wanted artifact version 1 or 2 or 3, got"):
        AutoModelForSequenceClassification.from_pretrained(damaged)


@pytest.mark.parametrize("change", [{"num_hidden_layers": 2}, {"hidden_size": 32}])
def test_another_architecture_is_refused(damaged, change):
    edit_signed(damaged, config=lambda config: config.update(change))
    with pytest.raises(BitstillError, match="against the model"):
        AutoModelForSequenceClassification.from_pretrained(damaged)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("xtc", AutoModel),
        ("4 bits small", AutoModel),
        ("4 bits small", AutoModelForMaskedLM),
        ("xtc", AutoModelForMaskedLM),
    ],
)
def test_another_head_is_refused_and_never_half_loaded(artifact, name, other):
    with pytest.raises(
        ArtifactError, match=r"architectures: wanted BertForSequenceClassification, got Bert(Model|ForMaskedLM)"
    ):
        other.from_pretrained(artifact(name))


def test_it_is_not_written_again(artifact, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(artifact("xtc"))
    with pytest.raises(ValueError, match="not serializable"):
        model.save_pretrained(tmp_path / "copy")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_float_model_cannot_be_quantized_by_loading_it(saved):
    with pytest.raises(ValueError, match="require the model to be pre-quantized"):
        AutoModelForSequenceClassification.from_pretrained(saved("bert"), quantization_config=BitstillConfig(version=1))


def test_it_is_registered_under_its_name():
    assert AUTO_QUANTIZER_MAPPING["bitstill"] is BitstillQuantizer
    assert AUTO_QUANTIZATION_CONFIG_MAPPING["bitstill"] is BitstillConfig


def run_child(code: str, *arguments: object) -> str:
    """Output of a new process; `code` gets the arguments as `sys.argv[1:]`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "error::UserWarning", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


LOADS = """
import json, torch
from transformers import AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1])
print(json.dumps(model(input_ids=torch.arange(5, 15)[None]).logits.tolist()))
"""


@pytest.mark.parametrize("first", ["import sys, bitstill.hf", "import sys, bitstill; bitstill.load(sys.argv[1])"])
def test_bitstill_may_be_imported_before_transformers(artifact, first):
    """test_finetune.py covers the other order."""
    answer = torch.tensor(json.loads(run_child(first + LOADS, artifact("xtc"))))
    torch.testing.assert_close(answer, logits(bitstill.load(artifact("xtc")), {"input_ids": torch.arange(5, 15)[None]}))


REFUSED = """
import json, sys
from transformers import AutoModel, AutoModelForSequenceClassification, pipeline
messages, folder = [], sys.argv[1]
for load in (
    AutoModel.from_pretrained,
    AutoModelForSequenceClassification.from_pretrained,
    lambda folder: AutoModelForSequenceClassification.from_pretrained(folder, ignore_mismatched_sizes=True),
    lambda folder: pipeline("text-classification", model=folder),
):
    try:
        load(folder)
    except (OSError, ValueError) as error:
        messages.append(str(error))
    else:
        messages.append("loaded")
assert not any(name.partition(".")[0] == "bitstill" for name in sys.modules)
print(json.dumps(messages))
"""


def test_a_process_without_bitstill_is_told_what_to_import(artifact):
    """transformers skips an unknown quantization method, and would compute from random weights."""
    messages = json.loads(run_child(REFUSED, artifact("xtc")))
    assert len(messages) == 4
    for message in messages:
        assert "run `import bitstill.hf` before loading" in message


def test_an_artifact_without_the_refusal_still_loads(damaged):
    """Older versions wrote such artifacts."""
    edit_signed(damaged, config=lambda config: config.pop(TRANSFORMERS_WEIGHTS))
    model = AutoModelForSequenceClassification.from_pretrained(damaged)
    assert torch.equal(logits(model, tiny.batch()), logits(bitstill.load(damaged), tiny.batch()))


def test_importing_bitstill_alone_imports_no_transformers():
    code = "import sys, bitstill; dir(bitstill); print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    assert run_child(code).strip() == "[]"
