"""The artifact: the file format, writing and reading without torch, and accounting for every byte."""
