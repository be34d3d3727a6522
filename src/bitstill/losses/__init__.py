"""Losses between a student and its teacher, and the taps that collect what they compare."""
