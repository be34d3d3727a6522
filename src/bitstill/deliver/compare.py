"""Comparison of artifacts: metric, size and latency."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bitstill.artifact.format import REPORT
from bitstill.artifact.hub import resolve_folder
from bitstill.artifact.reader import read
from bitstill.artifact.size import size_report
from bitstill.deliver.bench import networks_in, race
from bitstill.errors import ArtifactError, SpecError
from bitstill.report.tables import Row


@dataclass(frozen=True)
class Comparison:
    """Comparison of several artifacts of one task.

    Args:
        metric: name of the metric.
        rows: one row per artifact, preceded by their teacher if all have the same.
        reports: contents of report.json by row.
        timed: description of the timing; empty without one.
    """

    metric: str
    rows: tuple[Row, ...]
    reports: dict[str, dict[str, Any]]
    timed: str = ""


def compare(
    folders: Sequence[str | Path],
    *,
    batch: int = 1,
    length: int = 128,
    threads: int | None = None,
    turns: int = 20,
    progress: bool = True,
) -> Comparison:
    """Compare artifacts of one task by their delivered metric, their size and their latency, timed in turns.

    Args:
        folders: artifacts, or their names on the hub.
        batch: batch size for timing.
        length: length of texts in tokens for timing.
        threads: threads of each network; None uses all cores.
        turns: number of timed runs of each; 0 skips timing.
        progress: show a progress bar.

    Raises:
        ArtifactError: an artifact is damaged, or its report lacks a metric.
        SpecError: they were measured on different tasks, or none was given.
    """
    paths = [resolve_folder(folder) for folder in folders]
    if not paths:
        raise SpecError("one artifact or more", given="none", where="compare", fix="Name their folders.")
    names = _names(folders, paths)
    reports = {name: _report(folder) for name, folder in zip(names, paths, strict=True)}
    measured = {(report["task"], report["delivered"]["metric"]) for report in reports.values()}
    if len(measured) > 1:
        given = "; ".join(sorted(f"{metric} on {task}" for task, metric in measured))
        raise SpecError("artifacts of one task", given=given, where="compare", fix="Compare them in separate commands.")
    rows = [_row(name, folder, reports[name]) for name, folder in zip(names, paths, strict=True)]
    timed = ""
    if turns:
        medians, timed = _latencies(dict(zip(names, paths, strict=True)), batch, length, threads, turns, progress)
        rows = [replace(row, latency=medians[row.name]) for row in rows]
    return Comparison(next(iter(measured))[1], (*_teacher(reports), *rows), reports, timed)


def _names(folders: Sequence[str | Path], paths: Sequence[Path]) -> list[str]:
    """Last part of each folder's path, or the whole path where that is ambiguous."""
    short = [
        str(folder) if not Path(folder).exists() else place.resolve().name for folder, place in zip(folders, paths, strict=True)
    ]
    names = [name if short.count(name) == 1 else str(folder) for name, folder in zip(short, folders, strict=True)]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise SpecError("each artifact once", given=f"{twice} twice", where="compare", fix="Name it once.")
    return names


def _report(folder: Path) -> dict[str, Any]:
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        report["task"], report["delivered"]["metric"], report["delivered"]["test"], report["recipe"]["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        fix = "Name artifacts delivered by `bitstill compress`."
        raise ArtifactError("a report.json with a metric", given="none", where=str(folder), fix=fix) from None
    return dict(report)


def _row(name: str, folder: Path, report: dict[str, Any]) -> Row:
    size = size_report(read(folder))
    bits = f"{size.nominal_bits:.2g}" if size.layers else "32"
    return Row(
        name=name,
        method=report["recipe"]["kind"],
        bits=bits,
        metric=report["delivered"]["test"],
        file_bytes=size.file_bytes,
        stored_bits=size.stored_bits or None,
        ratio=size.ratio,
    )


def _teacher(reports: dict[str, dict[str, Any]]) -> tuple[Row, ...]:
    """Row of the teacher, if all artifacts have the same one."""
    teachers = {
        (report["teacher"]["test"], report["teacher"]["file_bytes"]) for report in reports.values() if "teacher" in report
    }
    if len(teachers) != 1 or "teacher" in reports:
        return ()
    ((metric, file_bytes),) = teachers
    return (Row("teacher", "teacher", "32", metric, file_bytes, None, 1.0, teacher=True),)


def _latencies(
    folders: dict[str, Path], batch: int, length: int, threads: int | None, turns: int, progress: bool
) -> tuple[dict[str, float], str]:
    """Median latency in ms by name, and a description: in `bitstill.runtime` if it supports all, else in torch."""
    candidates = [networks_in(folder) for folder in folders.values()]
    native = all(each[0].kind == "native" for each in candidates)
    networks = [each[0] if native else each[-1] for each in candidates]
    timed = race(networks, (batch,), (length,), threads=threads, turns=turns, progress=progress)
    (point,) = timed["rows"][0]["points"]
    medians = {name: row["points"][point]["ms"] for name, row in zip(folders, timed["rows"], strict=True)}
    tokens = f", {length} tokens" if " x " in point else ""
    return medians, f"Median of {turns} turns in {timed['rows'][0]['kind']}; threads {timed['threads']}, batch {batch}{tokens}."
