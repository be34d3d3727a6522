"""Layers that train at their effective weights and layers that hold packed bits; selecting, swapping, freezing, packing."""
