"""A small report as written by `compress`, and its model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from bitstill.decode import encode
from bitstill.model.lifecycle import prepare, report
from bitstill.quant.rules import Compression, Uniform
from bitstill.report.tables import Row

TERMS = ("student/CrossEntropy", "student/KL<-teacher")


@pytest.fixture
def latent() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    prepare(model, Compression(targets=("0",), weight=Uniform(bits=2)))
    return model


@pytest.fixture
def run_report(latent: nn.Module) -> dict[str, Any]:
    layer = {
        "name": "0", "quantizer": "2-bit affine", "weights": 2048, "bytes": {"codes": 512, "scales": 128},
        "bits_per_weight": 2.5, "entropy_bits": 1.61,
    }  # fmt: skip
    return {
        "recipe": {
            "kind": "QuantizedDistillation", "bits": 2, "augment": True, "granularity": {"kind": "PerGroup", "size": 64},
        },
        "task": "digits",
        "settings": {"kind": "Settings", "seed": 0, "trackers": []},
        "storage": {"kind": "Storage", "leftovers": "float32"},
        "delivered": {"metric": "accuracy", "test": 96.3782, "samples": 1497},
        "teacher": {"metric": "accuracy", "test": 97.5855, "file_bytes": 2555600},
        "size": {
            "file_bytes": 2640,
            "by_kind": {"codes": 512, "scales": 128, "levels": 0, "masks": 0, "leftovers": 1448, "header": 552},
            "arithmetic_bytes": 2700, "row_padding_bytes": 0, "nominal_bits": 2.0, "stored_bits": 2.5, "float_bytes": 9640,
            "paper_bytes": 1.0, "paper_huffman_bytes": 1.0, "layers": [layer], "largest_leftover": ["2.weight", 1280],
            "ratio": 3.6515,
        },
        "parameters": [encode(row) for row in report(latent).rows],
        "history": [
            {"stage": stage, "step": step, "loss": 2.0 / step, **dict.fromkeys(TERMS, 1.0 / step)}
            | ({"validation": 30.0 + step} if step % 5 == 0 else {})
            for stage in ("teacher", "student")
            for step in range(1, 61)
        ],
        "versions": {"bitstill": "0.1.0", "torch": "2.8.0"},
        "hardware": {"cores": 2, "gpu": None},
        "wall_seconds": 252.0,
    }  # fmt: skip


@pytest.fixture
def rows() -> list[Row]:
    made = [Row("teacher", "float", "32", 97.6, 2_555_600, None, 1.0)]
    for bits, metric in ((4, 96.1), (2, 60.2), (1, 14.5)):
        made.append(Row(f"post-training, {bits} bits", "post-training", str(bits), metric, 3000 * bits, bits + 0.2, 32 / bits))
        made.append(Row(f"distilled, {bits} bits", "distilled", str(bits), 95.0 + bits / 4, 3010 * bits, bits + 0.2, 32 / bits))
    return made


@pytest.fixture
def reports(rows: list[Row], run_report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row.name: copy.deepcopy(run_report) for row in rows if row.method == "distilled"}
