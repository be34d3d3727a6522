"""What is delivered on disk: write it, read it back with or without torch, and account for every byte."""
