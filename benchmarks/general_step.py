"""Throughput of a general distillation step in tokens per second, interleaved with the unavoidable work.

    python benchmarks/general_step.py                     # writes benchmarks/results/general_step.json and .md

all-MiniLM-L6-v2 teaches a student of three of its layers on sequences of 128 tokens. `unavoidable` is the teacher's forward
pass plus the student's forward and backward pass, with fused attention and a trivial loss; bitstill's step adds attention
scores, hidden states and their losses. Both run alternately in one float32 process; the reported ratio is the median of the
ratios within a turn. The optimizer's step, the same for both, is left out. Memory is the peak of the process, including
tokenizing and mapping a corpus of 40 million characters.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from bitstill.data.corpus import Corpus, pack_corpus
from bitstill.data.task import Batch
from bitstill.deliver.deliver import environment
from bitstill.hf.corpus_task import corpus_task, encoder_of
from bitstill.hf.pretrained import load_encoder
from bitstill.hf.tokenize import load_tokenizer
from bitstill.model.blocks import choose, reduced
from bitstill.recipes.general_distillation import GeneralDistillation
from bitstill.train.step import TrainingStep
from bitstill.train.teachers import Teachers

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from rows import data, minilm  # noqa: E402

CORPUS = data() / "corpus" / "wikipedia_en"
CPU = torch.device("cpu")


def main() -> None:
    """Run the benchmark and write both result files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--result", type=Path, default=HERE / "results" / "general_step.json")
    arguments = parser.parse_args()
    tokenizer, teacher = load_tokenizer(minilm()), load_encoder(minilm(), "teacher").model
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        sequences = pack_corpus(Corpus(str(CORPUS)), encoder_of(tokenizer), Path(folder))
        reading = sequences.numel() / (time.perf_counter() - started)
        task = corpus_task(sequences, tokenizer, teacher, 0.0)
        kept = choose(6, 3, "skip")
        models = {"teacher": teacher, "student": reduced(teacher, kept)}
        stage = GeneralDistillation(layers=3, steps=1).stage(kept, 6, (384, 384))
        step = TrainingStep(stage, models, task).train()
        teachers = Teachers(stage, models, task, CPU, bf16=False)
        frozen, plain = copy.deepcopy(teacher).eval(), copy.deepcopy(models["student"]).train()

        def unavoidable(batch: Batch) -> None:
            with torch.inference_mode():
                task.outputs(frozen, batch)
            task.outputs(plain, batch).square().mean().backward()
            plain.zero_grad(set_to_none=True)

        def ours(batch: Batch) -> None:
            step(batch, teachers(batch), 0.0, False)[0].backward()
            step.zero_grad(set_to_none=True)

        seconds: dict[str, list[float]] = {"unavoidable": [], "general distillation": []}
        for turn in range(arguments.turns + 2):
            batch = task.train.take(torch.arange(turn * arguments.batch_size, (turn + 1) * arguments.batch_size))
            for name, function in zip(seconds, (unavoidable, ours), strict=True):
                started = time.perf_counter()
                function(batch)
                if turn >= 2:
                    seconds[name].append(time.perf_counter() - started)
    tokens = arguments.batch_size * sequences.shape[1]
    base = seconds["unavoidable"]
    rows = {
        name: {
            "tokens_per_second": tokens / statistics.median(values),
            "ratio": statistics.median(a / b for a, b in zip(values, base, strict=True)),
        }
        for name, values in seconds.items()
    }
    result = {
        "command": "python benchmarks/general_step.py",
        "batch_size": arguments.batch_size,
        "length": sequences.shape[1],
        "sequences": len(sequences),
        "tokenized_tokens_per_second": reading,
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
        "rows": rows,
    }
    arguments.result.parent.mkdir(parents=True, exist_ok=True)
    arguments.result.write_text(json.dumps({**result, **environment()}, indent=1) + "\n")
    lines = ["| step | tokens per second | time against unavoidable |", "|---|---|---|"]
    lines += [f"| {name} | {row['tokens_per_second']:,.0f} | {row['ratio']:.2f} |" for name, row in rows.items()]
    arguments.result.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    print(f"tokenizing {reading:,.0f} tokens per second; peak memory {result['peak_megabytes']:,.0f} MB")


if __name__ == "__main__":
    main()
