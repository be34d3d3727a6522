"""Timing networks side by side: every kind that can take part, and what is refused. No timing is asserted here."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import bitstill
from bitstill.data.networks import build
from bitstill.deliver.bench import bench
from bitstill.errors import ArtifactError, SpecError
from bitstill.quant.rules import Binary, Compression
from tests.hf import tiny


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    model = tiny.model("bert", initializer_range=0.02).eval()
    model.save_pretrained(folder / "teacher")
    bitstill.prepare(model, Compression(weight=Binary(), targets=("*.layer.*",)))
    bitstill.save(model, folder / "student")
    bitstill.export(folder / "student", folder / "onnx")
    picture = build("digits-student")
    bitstill.prepare(picture, Compression(weight=Binary()))
    bitstill.save(picture.eval(), folder / "digits")
    return folder


@pytest.mark.slow
def test_float_networks_artifacts_and_exports_are_timed_in_turns(networks):
    names = ["teacher", "student", "onnx"]
    found = bench([networks / name for name in names], batch=(1, 2), length=(6,), threads=1, turns=3, progress=False)
    assert (
        [row["name"] for row in found["rows"]] == ["teacher", "student", "student", "student", "onnx"]
        and found["threads"] == 1
        and found["turns"] == 3
    )
    assert [row["kind"] for row in found["rows"]] == [
        "torch",
        "bitstill.runtime",
        "torch, kernels",
        "torch, packed",
        "ONNX Runtime",
    ]
    for row in found["rows"]:
        assert list(row["points"]) == ["1 x 6", "2 x 6"] and row["load_seconds"] > 0
        for point in row["points"].values():
            assert 0 < point["ms_10"] <= point["ms"] <= point["ms_90"] and point["ratio"] > 0
        assert row["points"]["2 x 6"]["per_second"] == pytest.approx(2000 / row["points"]["2 x 6"]["ms"])
    assert found["rows"][0]["points"]["1 x 6"]["ratio"] == 1.0
    assert found["rows"][4]["file_bytes"] == (networks / "onnx" / "model.onnx").stat().st_size
    json.dumps(found)


def test_pictures_have_no_length(networks):
    rows = bench([networks / "digits"], batch=(3,), threads=1, turns=1, progress=False)["rows"]
    assert [list(row["points"]) for row in rows] == [["3"]] * 3


def test_what_cannot_be_timed(networks, tmp_path):
    for options, message in (
        ({"turns": 0}, "turns of at least 1"),
        ({"batch": ()}, "batch of at least 1"),
        ({"length": (0,)}, "length of at least 1"),
        ({"folders": [networks / "student", networks / "digits"]}, "networks with the same inputs.*Time them in separate"),
    ):
        with pytest.raises(SpecError, match=message):
            bench(**{"folders": [networks / "student"], "progress": False, **options})
    with pytest.raises(ArtifactError, match="the folder of a network, got no known kind"):
        bench([tmp_path])
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("config.json", "model.safetensors"):
        (broken / name).write_bytes((networks / "student" / name).read_bytes())
    (broken / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match=r"a network that loads.*Nothing was timed"):
        bench([broken], turns=1, threads=1, progress=False)


def test_a_script_without_a_main_guard_is_not_run_again(networks, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nprint('begun', file=sys.stderr)\nimport bitstill\n"
        f"found = bitstill.bench([{str(networks / 'digits')!r}], batch=(1,), threads=1, turns=1, progress=False)\n"
        "print(len(found['rows']))\n"
    )
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout, run.stderr) == (0, "3\n", "begun\n")
