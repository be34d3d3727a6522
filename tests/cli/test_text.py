"""Text tasks from the command line: options for a user's own files, and a one-line error for each bad input."""

from __future__ import annotations

import json
import re
import shutil

import datasets
import huggingface_hub.constants
import pytest
import yaml
from transformers.utils import logging

from bitstill.artifact import files
from tests.hf import tiny

from .test_bad_input import contents

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:datasets.*")
QUIET = ("--set", "settings.progress=false", "--set", "settings.device=cpu")
LENGTH = ("--max-length", tiny.LIMIT)
XTC = ("compress", "--recipe", "xtc", "--task", "text", "--steps", 1, *QUIET, "--set", "validations=1")
POST = ("compress", "--recipe", "post-training", "--task", "text", *QUIET)
TUNE = ("finetune", "--task", "text", "--steps", 2, "--batch-size", 8)


@pytest.fixture(autouse=True, scope="module")
def _offline(tmp_path_factory):
    logging.disable_progress_bar()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield
    logging.enable_progress_bar()


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return tiny.saved(tmp_path_factory.mktemp("models") / "bert", "bert")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """CSV files with columns "review" and "mood"."""
    folder = tiny.write_csv(tmp_path_factory.mktemp("data") / "csv", labels=("negative", "positive"))
    for path in folder.iterdir():
        path.write_text(path.read_text().replace("text,label", "review,mood", 1))
    return folder


COLUMNS = ("--text-column", "review", "--label-column", "mood")


def refused(run, message):
    assert run.status == 1 and run.out == "", run
    assert run.err.startswith("error: ") and run.err.count("\n") == 1, "one line and nothing else"
    assert re.search(message, run.err), run.err


@pytest.fixture
def never_trains(monkeypatch):
    monkeypatch.setattr("bitstill.run.driver.train", lambda *_, **__: pytest.fail("it trained"))


def test_compress_then_evaluate(cli, bert, data, tmp_path):
    out = tmp_path / "out"
    run = cli(*XTC, "--model", bert, "--data", data, *COLUMNS, *LENGTH, "--out", out)
    report = json.loads((out / "report.json").read_text())
    lines = run.err.splitlines()
    assert run.status == 0 and all(line.startswith("warning: ") for line in lines), run.err
    assert {f"warning: {message}" for message in report["warnings"]} <= set(lines)
    assert report["task"] == "text" and [path.name for path in tmp_path.iterdir()] == ["out"]
    config = json.loads((out / "config.json").read_text())
    assert config["task_options"] == {
        "text": ["review"], "label": "mood", "objective": "classification", "max_length": 32, "truncate": False,
        "classes": ["negative", "positive"], "separator": ";", "drop_empty": False,
    }  # fmt: skip
    assert report["data"] == {
        part: {"files": [f"{part}.csv"], "rows": rows, "dropped": 0}
        for part, rows in (("train", 24), ("validation", 6), ("test", 10))
    }
    assert "Read train.csv (24 rows), validation.csv (6 rows), test.csv (10 rows)." in " ".join(run.out.split())
    for split, samples in (("test", 10), ("validation", 6)):
        run = cli("evaluate", out, "--data", data, "--split", split, "--json")
        found = json.loads(run.out)
        assert run.status == 0 and run.err == "" and found["samples"] == samples and found["metric"] == "accuracy"
        assert split == "validation" or found["value"] == report["delivered"]["test"]
    shown = cli("evaluate", out, "--data", data)
    assert f"{report['delivered']['test']:.2f}" in shown.out and "10 text test samples" in shown.out


def test_the_resolved_run_is_one_that_can_be_run_again(cli, bert, data, tmp_path):
    flags = ("--model", bert, "--data", data, *COLUMNS, "--max-length", 10, "--truncate")
    assert cli(*POST, *flags, "--out", tmp_path / "one").status == 0
    again = cli("compress", tmp_path / "one" / "recipe.yaml", *QUIET, "--out", tmp_path / "two")
    assert again.status == 0, again.err
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_a_pair_is_two_columns(cli, bert, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [{"q": f"film {word}", "a": "the plot", "label": n % 2} for n, word in enumerate(tiny.POSITIVE)]
    for part in ("train", "test"):
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pair = ("--text-column", "q", "--text-column", "a")
    assert cli(*POST, "--model", bert, "--data", folder, *pair, *LENGTH, "--out", tmp_path / "out").status == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["task_options"]["text"] == ["q", "a"]


def test_a_run_file_has_a_section_for_text(cli, bert, data, tmp_path):
    (tmp_path / "run.yaml").write_text(
        f"{{recipe: post-training, task: text, model: {bert}, data: {data}, "
        "text: {text: [review], label: mood, max_length: 8}, settings: {progress: false}}"
    )
    refused(cli("compress", tmp_path / "run.yaml", "--out", tmp_path / "out"), "texts of at most 8 tokens.*--truncate")
    assert cli("compress", tmp_path / "run.yaml", "--truncate", "--out", tmp_path / "out").status == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["task_options"]["max_length"] == 8


def test_a_dry_run_writes_nothing(cli, bert, data, tmp_path, never_trains):
    flags = ("--model", bert, "--data", data, *COLUMNS, *LENGTH)
    run = cli(*XTC, *flags, "--dry-run", "--json", "--out", tmp_path / "out")
    planned = json.loads(run.out)
    assert run.status == 0 and not list(tmp_path.iterdir())
    layers = {row["parameter"]: row["action"] for row in planned["parameters"]}
    assert layers["bert.encoder.layer.0.attention.self.query.weight"] != "float" == layers["classifier.weight"]


def test_finetune_then_compress(cli, data, tmp_path):
    body = tiny.saved(tmp_path / "body", "distilbert", body=True)
    out = tmp_path / "teacher"
    run = cli(*TUNE, "--model", body, "--data", data, *COLUMNS, *LENGTH, "--seed", 3, "--out", out, "--json")
    assert run.status == 0, run.err
    report = json.loads(run.out)
    assert report == json.loads((out / "report.json").read_text()) and report["settings"]["seed"] == 3
    assert (report["recipe"]["steps"], report["recipe"]["batch_size"]) == (2, 8)
    run = cli(*XTC, "--teacher", out, "--data", data, *COLUMNS, *LENGTH, "--out", tmp_path / "student", "--json")
    assert run.status == 0 and json.loads(run.out)["teacher"]["test"] == report["delivered"]["test"]


BAD = {
    "no data": ((), "task text: wanted a folder with your files, got none. Add --data FOLDER"),
    "no such folder": (("--data", "nowhere"), "nowhere: wanted train.parquet, .csv, .json or .jsonl, got no such file"),
    "no such column": (("--text-column", "revue", "--label-column", "mood"), "'revue'.*Did you mean 'review'.*--text-column"),
    "no such label": (("--text-column", "review", "--label-column", "mod"), "wanted a column 'mod'.*Did you mean 'mood'"),
    "default columns": (("--label-column", "mood"), r"wanted a column 'text', got \['review', 'mood'\]"),
    "three columns": ((*("--text-column", "review") * 3, "--label-column", "mood"), "one or two text columns"),
    "too long": ((*COLUMNS, "--max-length", 5), r"texts of at most 5 tokens, got \d+ longer ones, row \d+.*--truncate"),
    "too short": ((*COLUMNS, "--max-length", 3), "max_length from 4 to .*, got 3"),
    "beyond the model": ((*COLUMNS, "--max-length", 33), "wanted at most 32 tokens, got 33. Set --max-length to at most 32"),
    "default length": (COLUMNS, "wanted at most 32 tokens, got 128. Set --max-length to at most 32"),
    "regression": ((*COLUMNS, *LENGTH, "--set", "text.objective=regression"), "wanted numbers as labels, got 'negative'"),
    "unknown option": ((*COLUMNS, "--set", "text.maxlength=8"), r"got 'maxlength'. Did you mean 'max_length'\?"),
    "another task": ((*COLUMNS, "--task", "sst2"), "the task 'text' with text options, got 'sst2'"),
    "an unknown task": (("--task", "sst-2"), "wanted a known task, got 'sst-2'. Did you mean 'sst2'"),
    "no such model": ((*COLUMNS, *LENGTH, "--model", "nowhere/at/all"), "nowhere/at/all.*wanted a model with a tokenizer"),
    "a network's name": ((*COLUMNS, *LENGTH, "--model", "digits-student"), "digits-student"),
}


WITHOUT_SET = [name for name, (flags, _) in BAD.items() if "--set" not in flags]  # finetune has no --set


@pytest.mark.parametrize(
    ("command", "name"), [*(("compress", name) for name in BAD), *(("finetune", name) for name in WITHOUT_SET)]
)
def test_bad_flags_are_one_line_and_write_nothing(cli, bert, data, tmp_path, monkeypatch, never_trains, name, command):
    flags, message = BAD[name]
    monkeypatch.chdir(tmp_path)
    given = {"--model": bert, **({} if name in ("no data", "another task") else {"--data": data})}
    defaults = [item for flag, value in given.items() if flag not in flags for item in (flag, value)]
    run = cli(*(POST if command == "compress" else TUNE), *defaults, *flags, "--out", tmp_path / "out")
    refused(run, message)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def own(data, tmp_path):
    """A copy of the files for a test to damage."""
    folder = tmp_path / "own"
    shutil.copytree(data, folder)
    return folder


def test_rows_without_text_are_dropped_and_counted_in_training_and_in_evaluation(cli, bert, own, tmp_path):
    for part in ("train", "test"):
        with open(own / f"{part}.csv", "a", encoding="utf-8") as file:
            file.write(",positive\n")
    flags = (*POST, "--model", bert, "--data", own, *COLUMNS, *LENGTH)
    run = cli(*flags, "--drop-empty", "--out", tmp_path / "out")
    assert run.status == 0 and "train.csv (24 rows, 1 empty ones dropped)" in " ".join(run.out.split()), run
    assert json.loads(cli("evaluate", tmp_path / "out", "--json").out)["samples"] == 10


FILES = {
    "an unknown label": ("test", "film,neutral\n", "text test: mood: wanted labels 'negative', 'positive', got 'neutral'"),
    "an empty text": ("train", ",positive\n", "text train: review: wanted a text in every row"),
    "a missing label": ("train", "film,\n", "text train: mood: wanted"),
    "too many cells": ("train", "film,positive,1,2,3\n", "train.csv: wanted 2 cells a row, as in the header, got 5 in line 26"),
    "an open quote": ("train", '"film,positive\n', "train.csv: wanted a readable file, got csv.Error in line 26"),
}


@pytest.mark.parametrize("name", FILES)
def test_bad_files_are_one_line_and_write_nothing(cli, bert, own, tmp_path, never_trains, name):
    part, line, message = FILES[name]
    with open(own / f"{part}.csv", "a", encoding="utf-8") as file:
        file.write(line)
    refused(cli(*POST, "--model", bert, "--data", own, *COLUMNS, *LENGTH, "--out", tmp_path / "out"), message)
    assert {path.name for path in tmp_path.iterdir()} == {"own"}


def test_files_without_a_test_part_or_of_two_kinds(cli, bert, own, tmp_path):
    flags = (*POST, "--model", bert, "--data", own, *COLUMNS, *LENGTH, "--out", tmp_path / "out")
    (own / "train.json").write_text("{}\n")
    refused(cli(*flags), "several kinds: train.csv, train.json")
    (own / "train.json").unlink()
    (own / "test.csv").unlink()
    refused(cli(*flags), "own: wanted test.parquet, .csv, .json or .jsonl, got no such file")
    assert {path.name for path in tmp_path.iterdir()} == {"own"}


@pytest.fixture
def spoiled(bert, tmp_path):
    folder = tmp_path / "spoiled"
    shutil.copytree(bert, folder)
    return folder


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def swap_labels(folder):
    path = folder / "config.json"
    labels = {"id2label": {0: "positive", 1: "negative"}, "label2id": {"positive": 0, "negative": 1}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **labels}))


def drop_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


MODELS = {
    "truncated": (truncate, "wanted a pretrained model, got SafetensorError"),
    "labels in another order": (swap_labels, "labels in the order negative, positive, got positive, negative"),
    "no tokenizer": (drop_tokenizer, "wanted a model with a tokenizer"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "wanted a pretrained model, got OSError"),
    "no config": (lambda folder: (folder / "config.json").write_text("{"), "wanted an? .*spoiled|spoiled.*: wanted"),
}


@pytest.mark.parametrize("name", MODELS)
def test_bad_models_are_one_line_and_write_nothing(cli, spoiled, data, tmp_path, never_trains, name):
    spoil, message = MODELS[name]
    spoil(spoiled)
    refused(cli(*POST, "--model", spoiled, "--data", data, *COLUMNS, *LENGTH, "--out", tmp_path / "out"), message)
    assert {path.name for path in tmp_path.iterdir()} == {"spoiled"}


def test_a_new_classifier_is_not_quantized_untrained(cli, data, tmp_path):
    body = tiny.saved(tmp_path / "body", "bert", body=True)
    run = cli(*POST, "--model", body, "--data", data, *COLUMNS, *LENGTH, "--out", tmp_path / "out")
    refused(run, "wanted a trained student, got one whose weights, or whose classifier's, are random")
    assert {path.name for path in tmp_path.iterdir()} == {"body"}


def test_a_teacher_of_another_vocabulary(cli, bert, data, tmp_path):
    other = tiny.saved(tmp_path / "other", "bert", words=tuple(reversed(tiny.VOCABULARY)))
    run = cli(*XTC, "--teacher", other, "--student", bert, "--data", data, *COLUMNS, *LENGTH, "--out", tmp_path / "out")
    refused(run, "wanted one vocabulary, got .* Choose a teacher with the student's tokenizer")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--precision", "float16"), "precision: wanted one of 'float32', 'bf16'"),
        (("--batch-size", 0), "options.batch_size: wanted batch_size from 1 to .*, got 0"),
        (("--lr", -1), "options.lr: wanted lr above 0, got -1"),
        (("--epochs", 1), "one of --epochs and --steps, got both"),
    ],
)
def test_finetune_refuses_settings_that_cannot_be(cli, bert, data, tmp_path, never_trains, flags, message):
    refused(cli(*TUNE, "--model", bert, "--data", data, *COLUMNS, *LENGTH, *flags, "--out", tmp_path / "out"), message)
    assert not list(tmp_path.iterdir())


def test_finetune_looks_where_it_will_write_before_it_trains(cli, bert, data, tmp_path, monkeypatch, never_trains):
    flags = (*TUNE, "--model", bert, "--data", data, *COLUMNS, *LENGTH)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    refused(cli(*flags, "--out", tmp_path / "mine"), "wanted a new or an empty folder, got something else")
    refused(cli(*flags, "--out", tmp_path / "mine" / "config.json" / "below"), "wanted a folder that can be written")
    real = files.os.access  # root may write anywhere
    monkeypatch.setattr(files.os, "access", lambda path, mode: str(path) != str(tmp_path) and real(path, mode))
    refused(cli(*flags, "--out", tmp_path / "out"), "wanted a folder that can be written, got Permission denied")
    assert contents(tmp_path) == {"mine/config.json": b"{}"}


def test_evaluate_reads_the_files_of_the_recipe_or_others_with_their_columns(cli, bert, own, tmp_path):
    out = tmp_path / "out"
    assert cli(*POST, "--model", bert, "--data", own, *COLUMNS, *LENGTH, "--out", out).status == 0
    value = json.loads((out / "report.json").read_text())["delivered"]["test"]
    assert json.loads(cli("evaluate", out, "--json").out)["value"] == value, "the folder is in recipe.yaml"
    own.rename(tmp_path / "moved")
    refused(cli("evaluate", out), "task text: wanted a folder with your files, got none. Add --data FOLDER")
    refused(cli("evaluate", out, "--data", tmp_path / "nowhere"), "nowhere: wanted train.parquet")
    other = tiny.write_csv(tmp_path / "other", labels=("negative", "positive"))
    refused(cli("evaluate", out, "--data", other), r"wanted a column 'review', got \['text', 'label'\]")


def test_evaluate_knows_the_classes_of_the_artifact_not_those_of_the_files(cli, bert, data, tmp_path):
    """Files with other classes, or with one missing, would be scored against the wrong outputs."""
    out, other = tmp_path / "out", tmp_path / "other"
    assert cli(*POST, "--model", bert, "--data", data, *COLUMNS, *LENGTH, "--out", out).status == 0
    shutil.copytree(data, other)
    for path in other.iterdir():
        path.write_text(path.read_text().replace("positive", "above").replace("negative", "below"))
    refused(cli("evaluate", out, "--data", other), "mood: wanted labels 'negative', 'positive', got 'below'")
    shares = []
    for label in ("negative", "positive"):
        for path in other.iterdir():
            lines = (data / path.name).read_text().splitlines()
            path.write_text("\n".join([lines[0], *(line for line in lines if line.endswith(label))]) + "\n")
        shares.append(json.loads(cli("evaluate", out, "--data", other, "--json").out)["value"])
    assert sum(shares) / 2 == json.loads((out / "report.json").read_text())["delivered"]["test"]


def test_variants_are_made_and_trained_on(cli, bert, data, tmp_path):
    """Variants from a model's own embeddings; the delivered run file records which variants were used."""
    out, student = tmp_path / "variants", tmp_path / "student"
    made = cli("augment", "--task", "text", "--model", bert, "--method", "neighbours", "--variants", 3, "--out", out,
               "--data", data, *COLUMNS, "--json")  # fmt: skip
    found = json.loads(made.out)
    assert made.status == 0 and found["texts"] == 24 and found["variants"] > 24 and len(found["examples"]) == 3
    table = cli("augment", "--task", "text", "--model", bert, "--method", "neighbours", "--variants", 3, "--out", out,
                "--data", data, *COLUMNS)  # fmt: skip
    assert f"{found['variants']} variants of 24 training texts" in table.out and found["examples"][0][1] in table.out
    run = cli(*XTC, *LENGTH, "--data", data, *COLUMNS, "--model", bert, "--augmented", out, "--out", student)
    assert run.status == 0, run
    assert f"augmented: {out}" in (student / "recipe.yaml").read_text()
    refused(
        cli(*XTC, *LENGTH, "--data", data, *COLUMNS, "--model", bert, "--augmented", bert, "--out", tmp_path / "other"),
        "of variants",
    )


def test_what_cannot_be_varied_says_so(cli, bert, data, tmp_path):
    refused(cli("augment", "--task", "digits", "--model", bert, "--out", tmp_path / "out"), "a task of texts")
    vary = ("augment", "--task", "text", "--model", bert, "--data", data, *COLUMNS, "--out", tmp_path / "out")
    refused(cli(*vary), "a masked language model, got one without")
    refused(cli(*vary, "--method", "mlm"), "a known method")
    refused(cli(*vary, "--variants", 0), "variants from 1 to")
    refused(cli(*vary, "--vectors", tmp_path / "nowhere"), "a table of word embeddings")
    assert not (tmp_path / "out").exists()
    unlike = ("compress", "--recipe", "post-training", "--task", "digits", "--model", "digits-student", "--augmented", bert)
    refused(cli(*unlike, "--out", tmp_path / "out"), "a text task for variants")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "train.txt"
    path.write_text("\n\n".join(tiny.sentences(120)[0]))
    return path


def test_variants_may_be_made_by_the_run_itself_as_what_its_student_learns_from(cli, bert, data, tmp_path):
    command = (*XTC, *LENGTH, "--data", data, *COLUMNS, "--model", bert)
    variants = f"{{model: {bert}, method: neighbours, options: {{variants: 3}}}}"
    run = cli(*command, "--set", f"variants={variants}", "--out", tmp_path / "itself")
    assert run.status == 0, run
    beside = tmp_path / "itself.variants"
    run = cli(*command, "--augmented", beside, "--out", tmp_path / "given")
    assert run.status == 0, run
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("itself", "given"))
    assert first == second
    both = cli(*command, "--augmented", beside, "--set", f"variants={variants}", "--out", tmp_path / "both")
    refused(both, "a task by name, whose texts can be varied")


def test_an_encoder_is_distilled_on_plain_text(cli, bert, corpus, tmp_path):
    small = ("distill", "--model", bert, "--corpus", corpus, "--length", 16, "--steps", 2, "--out", tmp_path / "small",
             "--set", "batch_size=8", "--set", "settings.progress=false", "--set", "settings.device=cpu")  # fmt: skip
    refused(cli(*small), "a smaller student")
    run = cli(*small, "--layers", 2)
    assert run.status == 0 and re.search(r"of the teacher's [\d,]+ parameters; linear CKA", run.out), run
    assert json.loads((tmp_path / "small" / "config.json").read_text())["num_hidden_layers"] == 2
    refused(cli(*small, "--layers", 2), "a new or an empty folder")
    refused(cli(*small, "--layers", 2, "--out", tmp_path / "other", "--set", "colour=1"), "colour")
    refused(cli(*small, "--layers", 2, "--out", tmp_path / "other", "--length", 128), "at most 40 tokens")


def test_one_command_runs_the_whole_chain_from_a_corpus_on(cli, bert, corpus, data, tmp_path):
    chain = ("compress", "--recipe", "binarybert", "--task", "text", "--model", bert, "--data", data, *COLUMNS, *LENGTH,
             "--corpus", corpus, "--set", "general.steps=1", "--set", "general.batch_size=2", "--set", "layers=2", "--steps", 1,
             "--set", "general.corpus.length=16",
             "--set", "validations=1", "--set", "batch_size=8", "--set", "teacher_epochs=0.4", *QUIET)  # fmt: skip
    run = cli(*chain, "--out", tmp_path / "out", "--each-stage")
    assert run.status == 0, run
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == 2
    history = json.loads((tmp_path / "out" / "report.json").read_text())["history"]
    in_two = [f"{form} {part}" for form in ("float", "ternary", "binary") for part in ("I", "II")]
    assert list(dict.fromkeys(entry["stage"] for entry in history)) == ["general distillation", *in_two]
    general = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())["options"]["general"]
    assert (general["corpus"]["source"], general["corpus"]["length"]) == (str(corpus), 16)
    assert (tmp_path / "out-ternary-II" / "model.safetensors").exists()
    refused(
        cli(*chain, "--set", "layers=null", "--student", bert, "--out", tmp_path / "other"),
        "no student, since one is built from the teacher",
    )
    unlike = ("compress", "--recipe", "post-training", "--task", "digits", "--model", "digits-student", "--corpus", corpus)
    refused(cli(*unlike, "--out", tmp_path / "other"), "a known setting, got 'general'")
