"""Layers that train at their quantized weights (`Compressed*`) and layers that hold nothing but packed bits (`Packed*`)."""
