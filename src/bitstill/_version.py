"""The version, in one place; pyproject reads it."""

VERSION = "0.1.0"
