"""Thin commands; nothing imports this package."""
