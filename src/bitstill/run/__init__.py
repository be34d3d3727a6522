"""Runs from models to reports: run files, roles, the driver, the demonstration."""
