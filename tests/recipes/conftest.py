"""Fixtures of recipes. Runs draw no report page: it takes longer than these runs, and tests/report covers it."""

from __future__ import annotations

import pytest

import bitstill.report.page


@pytest.fixture(autouse=True, scope="package")
def _no_page():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bitstill.report.page, "artifact_page", lambda *_, **__: "<!doctype html>")
        yield
