"""From texts to a task: the tokenizer's own ids, padded, and never truncated unless asked."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import asdict, replace

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertTokenizerFast, DistilBertTokenizerFast

import bitstill
from bitstill.data.text import TextOptions, TextSplit
from bitstill.deliver.load_task import task_for, text_task
from bitstill.errors import DataError, SpecError
from bitstill.hf.tokenize import PROBES, check_same_tokens, load_tokenizer, tokenize

from . import tiny

PARTS = ("train", "validation", "test")


@pytest.mark.parametrize("pair", [False, True])
def test_inputs_are_what_the_tokenizer_says(pair):
    found, tokenizer = tiny.text_task(pair=pair), tiny.tokenizer()
    task = tokenize(found, tokenizer)
    for part in PARTS:
        texts, split = getattr(found, part), getattr(task, part)
        wanted = tokenizer(*texts.texts, padding=True, return_tensors="pt")
        assert set(split.inputs) == set(wanted) == {"input_ids", "token_type_ids", "attention_mask"}
        for name, tensor in wanted.items():
            assert split.inputs[name].dtype == torch.int32 and torch.equal(split.inputs[name], tensor.int()), name
        assert torch.equal(split.lengths, wanted["attention_mask"].sum(1)) and torch.equal(split.labels, texts.labels)


def test_pairs_have_two_segments_and_single_texts_one():
    pairs, single = (tokenize(tiny.text_task(pair=pair), tiny.tokenizer()).train.inputs for pair in (True, False))
    assert not single["token_type_ids"].any()
    ids, kinds = pairs["input_ids"][0], pairs["token_type_ids"][0]
    first = int((ids == 3).nonzero()[0])  # [SEP]
    assert not kinds[: first + 1].any() and int(kinds.sum()) == int(pairs["attention_mask"][0].sum()) - first - 1


def test_what_a_task_is_called_and_judged_by_stays_with_it():
    found = tiny.text_task()
    task = tokenize(found, tiny.tokenizer())
    assert task.name == "tiny" and task.objective is found.objective and task.options == asdict(found.options)
    values = tokenize(tiny.text_task(names=None), tiny.tokenizer())
    assert values.train.labels.dtype == torch.float32


def test_batches_are_cut_to_their_longest_text_and_lose_nothing():
    split = tokenize(tiny.text_task(), tiny.tokenizer()).train
    order = list(split.batches(5))
    assert sorted(torch.cat(order).tolist()) == list(range(len(split)))
    widths = []
    for indices in order:
        batch = split.take(indices)
        widths.append(batch["input_ids"].shape[1])
        assert widths[-1] == int(split.lengths[indices].max()) == int(batch["attention_mask"].sum(1).max())
        for name, tensor in split.inputs.items():
            assert torch.equal(batch[name], tensor[indices, : widths[-1]])
            assert name == "token_type_ids" or not tensor[indices, widths[-1] :].any(), "what was cut off is padding"
    assert widths == sorted(widths) and widths[0] < widths[-1], "texts of similar length go together"


def test_the_padding_is_the_tokenizers_own_and_at_the_right():
    words = [*tiny.VOCABULARY[1:], "[PAD]"]
    tokenizer = tiny.tokenizer(words)
    tokenizer.padding_side = "left"
    split = tokenize(tiny.text_task(), tokenizer).train
    padding = split.inputs["attention_mask"] == 0
    assert padding.any() and (split.inputs["input_ids"][padding] == len(words) - 1).all()
    assert not padding[:, 0].any() and (split.inputs["input_ids"][~padding] != len(words) - 1).all()


def with_long_text(row: int, words: int, **settings):
    found = tiny.text_task(**settings)
    texts = list(found.validation.texts[0])
    texts[row] = " ".join(["film"] * words)
    return replace(found, validation=TextSplit((texts,), found.validation.labels))


def test_a_text_that_is_too_long_is_an_error_that_names_its_row():
    message = r"tiny validation: wanted texts of at most 20 tokens, got 1 longer ones, row 4 with 21 tokens.*--truncate"
    with pytest.raises(DataError, match=message):
        tokenize(with_long_text(4, 19, max_length=20), tiny.tokenizer())
    tokenize(with_long_text(4, 18, max_length=20), tiny.tokenizer())


def test_a_text_longer_than_its_model_can_read_is_refused_without_a_warning(caplog):
    with pytest.raises(DataError, match=r"row 2 with 42 tokens"):
        tokenize(with_long_text(2, 40), tiny.tokenizer())
    assert not caplog.records, "the tokenizer's own remark about its limit would be said twice"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside datasets
def test_the_row_that_is_named_is_the_row_in_the_users_file(tmp_path):
    folder = tiny.write_csv(tmp_path / "data", {"train": 20, "test": 4})
    with open(folder / "train.csv", "a", encoding="utf-8") as file:
        file.write(" ".join(["film"] * 30) + ",0\n")
    with pytest.raises(DataError, match=r"row 20 with 32 tokens"):
        text_task("text", tiny.tokenizer(), data=folder, text=TextOptions(max_length=20))


def test_texts_are_cut_where_that_is_asked_for():
    found, tokenizer = with_long_text(4, 40, max_length=10, truncate=True), tiny.tokenizer()
    task = tokenize(found, tokenizer)
    for part in PARTS:
        wanted = tokenizer(*getattr(found, part).texts, truncation=True, max_length=10, padding=True, return_tensors="pt")
        assert torch.equal(getattr(task, part).inputs["input_ids"], wanted["input_ids"].int())
    assert int(task.validation.lengths[4]) == 10 and int(task.validation.inputs["input_ids"][4, 9]) == 3  # [SEP] is kept


def test_more_tokens_than_the_model_can_read_are_refused():
    with pytest.raises(SpecError, match=r"tiny: max_length: wanted at most 32 tokens, got 33. Set --max-length to at most 32"):
        tokenize(tiny.text_task(max_length=33), tiny.tokenizer())


def test_many_texts_are_tokenized_in_chunks_alike(monkeypatch):
    whole = tokenize(tiny.text_task(), tiny.tokenizer())
    monkeypatch.setattr("bitstill.hf.tokenize.CHUNK", 5)
    parts = tokenize(tiny.text_task(), tiny.tokenizer(), progress=False)
    assert all(getattr(whole, part).digest() == getattr(parts, part).digest() for part in PARTS)


def test_the_tokenizer_is_saved_so_that_transformers_reads_it_back(tmp_path):
    tokenizer = tiny.tokenizer()
    tokenize(tiny.text_task(), tokenizer).preprocessor.save(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    texts = tiny.sentences(4)[0]
    assert again(texts)["input_ids"] == tokenizer(texts)["input_ids"] and again.model_max_length == tiny.LIMIT


def test_a_folder_gives_its_tokenizer(saved):
    tokenizer = load_tokenizer(saved("bert"))
    assert tokenizer.get_vocab() == tiny.tokenizer().get_vocab() and tokenizer.model_max_length == tiny.LIMIT


def test_a_folder_with_a_model_and_no_tokenizer_is_refused(tmp_path):
    """transformers makes up a tokenizer of special tokens only, which reads every word as unknown."""
    tiny.model("bert").save_pretrained(tmp_path)
    with pytest.raises(DataError, match="a model with a tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("file", "content"), [("tokenizer.json", "{"), ("tokenizer.json", "{}"), ("tokenizer_config.json", "[1,")]
)
def test_a_damaged_tokenizer_is_refused(tmp_path, saved, file, content):
    shutil.copytree(saved("bert"), tmp_path / "model")
    (tmp_path / "model" / file).write_text(content)
    with pytest.raises(DataError, match=r"model: wanted a model with a tokenizer, got \w+: .*Check the path"):
        load_tokenizer(tmp_path / "model")


def test_a_tokenizer_that_cannot_pad_is_refused(tmp_path, saved):
    shutil.copytree(saved("bert"), tmp_path / "model")
    path = tmp_path / "model" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token": None}))
    with pytest.raises(DataError, match="a tokenizer with a padding token, got none"):
        load_tokenizer(tmp_path / "model")


def test_code_of_a_repository_is_never_run_for_its_tokenizer(tmp_path, saved, capfd, monkeypatch):
    """At a terminal, transformers would ask whether to run it, and run it on a y."""
    folder = tmp_path / "model"
    shutil.copytree(saved("bert"), folder)
    for name, changes in (
        ("config.json", {"model_type": "brand-new"}),
        ("tokenizer_config.json", {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "code.Own"]}}),
    ):
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    (folder / "code.py").write_text("print('EXECUTED')\nimport transformers\nclass Own(transformers.BertTokenizerFast): pass\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with contextlib.suppress(DataError):
        load_tokenizer(folder)
    printed = capfd.readouterr()
    assert "EXECUTED" not in printed.out and "Do you wish" not in printed.out + printed.err


def test_nowhere_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: wanted a model with a tokenizer"):
        load_tokenizer(tmp_path / "nowhere")


def accented(**settings: bool) -> BertTokenizerFast:
    words = [*tiny.VOCABULARY, "café", "cafe"]
    return BertTokenizerFast(vocab={word: index for index, word in enumerate(words)}, model_max_length=tiny.LIMIT, **settings)


def cased() -> BertTokenizerFast:
    return accented(do_lower_case=False)


def test_tokenizers_of_other_vocabularies_are_refused():
    swapped = [*tiny.VOCABULARY[:6], tiny.VOCABULARY[7], tiny.VOCABULARY[6], *tiny.VOCABULARY[8:]]
    for words, message in (
        (swapped, r"wanted one vocabulary, got 68 and 68 tokens; ('a' is 6 and 7|'an' is 7 and 6).*Choose a teacher"),
        (tiny.VOCABULARY[:-1], "teacher: wanted one vocabulary, got 68 and 67 tokens; 'often' is 67 and None"),
    ):
        with pytest.raises(DataError, match=message):
            check_same_tokens(tiny.tokenizer(), tiny.tokenizer(words), PROBES, "teacher")


def test_tokenizers_of_one_vocabulary_that_read_texts_in_another_way_are_refused():
    check_same_tokens(accented(), accented(), PROBES, "teacher")
    check_same_tokens(accented(), cased(), (["a good film", "cafe"],), "teacher")
    message = r"teacher: wanted tokenizers that encode texts alike, got 'a Film' as \['film'.*\['\[UNK\]'.* from token 2 on"
    with pytest.raises(DataError, match=message):
        check_same_tokens(accented(), cased(), (["a film", "a Film"],), "teacher")
    for tokenizer in (cased(), accented()):
        tokenizer.add_tokens(["film story"])
        with pytest.raises(DataError, match=r"wanted (one vocabulary|tokenizers that encode texts alike)"):
            check_same_tokens(accented(), tokenizer, (["a film story"],), "teacher")


ROADS = ("folder", "object", "a task and a folder", "a task and an object")


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside datasets
def test_every_road_compares_tokenizers_on_the_texts_of_the_task(tmp_path, road):
    """The teacher is case-sensitive; only one text has a capital letter."""
    folders = {}
    for role, tokenizer in (("student", accented()), ("teacher", cased())):
        folders[role] = tmp_path / role
        tiny.model("bert", vocab_size=len(tokenizer)).save_pretrained(folders[role])
        tokenizer.save_pretrained(folders[role])
    data = tiny.write_csv(tmp_path / "data")
    with open(data / "train.csv", "a", encoding="utf-8") as file:
        file.write("the CAFÉ was good,1\n")
    options = TextOptions(max_length=32)
    models = dict(folders)
    if road.endswith("object"):
        models["teacher"] = AutoModelForSequenceClassification.from_pretrained(folders["teacher"])
    task = "text" if road in ("folder", "object") else text_task("text", accented(), data=data, text=options)
    settings = {"data": data, "text": options} if isinstance(task, str) else {}
    with pytest.raises(
        DataError, match=r"teacher .*teacher: wanted tokenizers that encode texts alike, got 'the CAFÉ was good'"
    ):
        bitstill.compress("xtc", task, models, out=tmp_path / "out", settings=tiny.QUIET, **settings)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside datasets
def test_one_source_by_two_names_or_two_of_one_vocabulary_are_read_alike(saved, data):
    options = TextOptions(max_length=32)
    one = task_for("text", {"student": saved("bert"), "teacher": str(saved("bert"))}, data, options)
    two = task_for("text", {"student": saved("electra"), "teacher": saved("bert")}, data, options)
    made = bitstill.text_task("text", tiny.tokenizer(), data=data, text=options)
    named = bitstill.text_task("text", saved("bert"), data=data, text=options)
    assert len({task.train.digest() for task in (one, two, made, named)}) == 1
    assert one.objective.label_names == ("negative", "positive")


def test_a_teacher_that_needs_segments_gets_them_whoever_comes_first(tmp_path):
    """DistilBERT reads no segments; its BERT teacher must still get them."""
    teacher, student = tiny.saved(tmp_path / "bert", "bert"), tiny.saved(tmp_path / "distilbert", "distilbert")
    words = {word: index for index, word in enumerate(tiny.VOCABULARY)}
    DistilBertTokenizerFast(vocab=words, model_max_length=tiny.LIMIT).save_pretrained(student)
    folder, options = tmp_path / "data", TextOptions(("q", "a"), max_length=32)
    folder.mkdir()
    for part in ("train", "test"):
        rows = [{"q": f"film {n}", "a": "story plot", "label": n % 2} for n in range(6)]
        (folder / f"{part}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = task_for("text", {"student": student, "teacher": teacher}, folder, options)
    network = tiny.model("bert")
    batch = task.test.take(torch.arange(4))
    pairs = [f"film {n}" for n in range(4)], ["story plot"] * 4
    with torch.no_grad():
        wanted = network(**tiny.tokenizer()(*pairs, padding=True, return_tensors="pt")).logits
        torch.testing.assert_close(task.outputs(network, batch), wanted)


def test_networks_alone_bring_no_tokenizer(data):
    with pytest.raises(SpecError, match=r"a tokenizer for a text task, got networks only.*bitstill.text_task"):
        task_for("text", {"student": tiny.model("bert")}, data, TextOptions(max_length=32))


def test_tasks_of_pictures_need_no_tokenizer():
    assert task_for("digits", {"student": "nowhere"}).name == "digits"
