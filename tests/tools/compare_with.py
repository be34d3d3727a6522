"""Runs every recipe briefly at another commit and in this tree, and compares the delivered bytes.

    .venv/bin/python tests/tools/compare_with.py COMMIT [CASE ...]

Both sides run the same commands with the same interpreter on the same files: digits, and a tiny BERT with a few sentences. For
each case the tool prints which delivered `model.safetensors` and `config.json` are equal. The exit status is 1 if weights
differ or a side fails. After a command or option is renamed, the cases below keep to what both commits understand.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
STEPS = ["--steps", "6"]
DIGITS = ["--task", "digits", "--model", "digits-student"]
TAUGHT = ["--task", "digits", "--teacher", "digits-teacher", "--student", "digits-student", "--set", "teacher_epochs=1"]
TEXT = ["--task", "text", "--model", "BERT", "--data", "DATA", "--text-column", "text", "--max-length", "32"]
SHORT = [*TEXT, "--steps", "3", "--set", "batch_size=8", "--set", "validations=1"]


def compress(recipe: str, *options: str) -> list[str]:
    return ["compress", "--recipe", recipe, *options, "--out", "OUT"]


CASES: dict[str, list[list[str]]] = {
    "post-training": [
        ["compress", "--recipe", "quantized-distillation", *DIGITS, *STEPS, "--bits", "none", "--set", "kd_weight=0",
         "--out", "OUT-float"],
        compress("post-training", "--task", "digits", "--model", "OUT-float", "--bits", "4"),
    ],
    "quantized-distillation": [compress("quantized-distillation", *TAUGHT, *STEPS, "--bits", "2")],
    "quantized-distillation, ternary": [compress("quantized-distillation", *TAUGHT, *STEPS, "--bits", "ternary")],
    "differentiable-quantization": [compress("differentiable-quantization", *TAUGHT, *STEPS, "--bits", "2")],
    "pqk": [
        compress("pqk", *DIGITS, "--epochs", "1", "--set", "warmup_epochs=0.5", "--set", "mutual_epochs=0.5",
                 "--set", "every=2"),
    ],
    "fine-tuning": [compress("fine-tuning", *SHORT)],
    "xtc": [compress("xtc", *SHORT)],
    "xtc, fewer layers, progressive": [compress("xtc", *SHORT, "--set", "layers=2", "--set", "progressive=[8]")],
    "xtc, ternary, learned scales": [compress("xtc", *SHORT, "--bits", "ternary", "--set", "learned_scales=true")],
    "binarybert": [compress("binarybert", *SHORT)],
    "binarybert, relations": [compress("binarybert", *SHORT, "--set", "relation_heads=2", "--set", "pooler=true")],
    "binarybert, loss-aware, all heads": [
        compress("binarybert", *SHORT, "--set", "width=1.0", "--set", "ternary_iterations=3", "--set", "loss_aware=true")
    ],
    "distil": [
        ["distill", "--model", "BERT", "--corpus", "CORPUS", "--layers", "2", "--length", "16", "--steps", "4", "--out", "OUT"],
    ],
    "finetune": [["finetune", *TEXT, "--steps", "4", "--out", "OUT"]],
    "augment": [
        ["augment", "--task", "text", "--model", "BERT", "--data", "DATA", "--text-column", "text", "--method", "neighbours",
         "--variants", "2", "--out", "OUT-variants"],
        compress("xtc", *SHORT, "--augmented", "OUT-variants"),
    ],
}  # fmt: skip
"""Command lines; BERT, DATA, CORPUS and OUT stand for the shared input files and the output folder."""

CHILD = """
import json, os, sys, traceback
source, cases, files, out = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__]
sys.path.insert(0, source)
import bitstill
assert bitstill.__file__.startswith(source), bitstill.__file__
from bitstill.cli.main import app
for number, (name, commands) in enumerate(cases.items()):
    places = {**files, "OUT": f"{out}/{number}"}
    for command in commands:
        line = [part.replace("OUT", places["OUT"]) if part.startswith("OUT") else places.get(part, part) for part in command]
        if line[0] == "compress":
            line += ["--set", "settings.progress=false", "--set", "settings.device=cpu"]
        try:
            app(line, standalone_mode=False)
        except BaseException:
            with open(places["OUT"] + ".error", "w") as file:
                file.write(traceback.format_exc())
            break
"""


def inputs(folder: Path) -> dict[str, str]:
    """A tiny BERT with its tokenizer, CSV files of two classes, and a corpus."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    words = [f"{first}{second}" for first in "bdfgklmnprst" for second in ("a", "e", "i", "o", "u")]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=40, initializer_range=0.2,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder / "bert")
    tokenizer = BertTokenizerFast(vocab={word: index for index, word in enumerate(vocabulary)}, model_max_length=32)
    tokenizer.save_pretrained(folder / "bert")
    draw = random.Random(0)
    sentences = [" ".join(draw.choices(words, k=draw.randint(3, 12))) for _ in range(160)]
    (folder / "corpus.txt").write_text("\n\n".join(sentences))
    (folder / "data").mkdir()
    for part, start, end in (("train", 0, 48), ("validation", 48, 64), ("test", 64, 80)):
        with open(folder / "data" / f"{part}.csv", "w", newline="") as file:
            rows = ([text, "ab"[text[0] > "k"]] for text in sentences[start:end])
            csv.writer(file).writerows([["text", "label"], *rows])
    return {"BERT": str(folder / "bert"), "DATA": str(folder / "data"), "CORPUS": str(folder / "corpus.txt")}


def run(source: Path, cases: dict[str, list[list[str]]], files: dict[str, str], out: Path) -> dict[str, dict[str, Any]]:
    """Run the cases with the library in `source`: digests and parsed JSON of the delivered files by case, or the error."""
    out.mkdir()
    command = [sys.executable, "-c", CHILD, str(source), json.dumps(cases), json.dumps(files), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(out / "cache")}
    done = subprocess.run(command, env=environment, cwd=out, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{source}: {done.stderr[-2000:]}")
    results: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(cases):
        error, folder = out / f"{number}.error", out / str(number)
        if error.exists():
            results[name] = {"error": error.read_text().strip().splitlines()[-1]}
            continue
        weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        results[name] = {"weights": weights, "config": json.loads((folder / "config.json").read_text())}
    return results


def difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Difference between two results of one case; empty if there is none."""
    errors = [f"fails {when}: {side['error']}" for when, side in (("there", before), ("here", after)) if "error" in side]
    if errors:
        return "; ".join(errors)
    if before["weights"] != after["weights"]:
        return "weights differ"
    one, two = before["config"], after["config"]
    keys = [key for key in {**one, **two} if one.get(key) != two.get(key)]
    return f"same weights, config.json differs in {', '.join(sorted(keys))}" if keys else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit")
    parser.add_argument("case", nargs="*", choices=[[], *CASES], help="default: all")
    options = parser.parse_args()
    cases = {name: CASES[name] for name in options.case or CASES}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        other = folder / "other"
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "--quiet", "--detach", other, options.commit], check=True)
        try:
            files = inputs(folder)
            before = run(other / "src", cases, files, folder / "there")
            after = run(ROOT / "src", cases, files, folder / "here")
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", other], check=True)
    failed = False
    for name in cases:
        told = difference(before[name], after[name])
        failed |= bool(told) and not told.startswith("same weights")
        print(f"{name}: {told or 'equal'}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
