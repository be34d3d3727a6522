"""Low-bit kernels for processors: one C library, compiled with the package and called through `ctypes`; no torch."""
