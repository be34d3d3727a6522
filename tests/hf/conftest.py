"""Folders with tiny models, files and artifacts, made once; no page is drawn and nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import pytest
from transformers.utils import logging

import bitstill
import bitstill.report.page
from bitstill.data.task import Task
from bitstill.hf.tokenize import tokenize

from . import tiny


@pytest.fixture(autouse=True, scope="package")
def _quiet_and_offline(tmp_path_factory):
    logging.disable_progress_bar()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bitstill.report.page, "artifact_page", lambda *_, **__: "<!doctype html>")
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield
    logging.enable_progress_bar()


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> Callable[..., Path]:
    """`tiny.saved` in its own folder; equal arguments share one folder, which is read-only."""
    folders: dict[str, Path] = {}

    def save(name: str, **settings: Any) -> Path:
        key = f"{name} {sorted(settings.items())}"
        if key not in folders:
            folders[key] = tiny.saved(tmp_path_factory.mktemp("model") / name, name, **settings)
        return folders[key]

    return save


@pytest.fixture(scope="session")
def task() -> Task:
    """A task of two classes, encoded by the tiny tokenizer."""
    return tokenize(tiny.text_task(), tiny.tokenizer())


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """CSV files with the classes "negative" and "positive"."""
    return tiny.write_csv(tmp_path_factory.mktemp("data") / "csv", labels=("negative", "positive"))
