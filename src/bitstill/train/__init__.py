"""Stages, the one loop that runs them, and the checkpoint that lets it stop anywhere."""
