"""Placeholder."""

from __future__ import annotations


def artifact_page(report, model):
    return "<html></html>"
