"""The version, which pyproject reads from here."""

__version__ = "0.1.0"
