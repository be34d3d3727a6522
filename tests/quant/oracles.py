"""Slow, obvious versions of every quantizer: one loop over groups, one over weights, numpy float32, no padding anywhere."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from bitstill.quant.granularity import Bucket, Granularity, PerChannel, PerGroup, PerTensor

Array = npt.NDArray[np.float32]


def groups_of(shape: tuple[int, ...], granularity: Granularity) -> list[list[int]]:
    """Flat indices of the weights in each group, in order."""
    numel = math.prod(shape)
    row = numel // shape[0]
    match granularity:
        case PerTensor():
            return [list(range(numel))]
        case PerChannel():
            return [list(range(r * row, (r + 1) * row)) for r in range(shape[0])]
        case Bucket(size):
            return [list(range(i, min(i + size, numel))) for i in range(0, numel, size)]
        case PerGroup(size):
            return [
                list(range(r * row + i, min(r * row + i + size, (r + 1) * row)))
                for r in range(shape[0])
                for i in range(0, row, size)
            ]


def rounded(x: np.float32, dtype: str) -> np.float32:
    """Round to the stored precision and back, saturating."""
    if dtype == "float32":
        return x
    top = np.float32(65504)
    return np.float32(np.float16(min(max(x, -top), top)))


def divisor(x: np.float32) -> np.float32:
    return np.float32(1) if x < np.finfo(np.float32).tiny else x


def significant(x: np.float32, bits: int) -> np.float32:
    """Round to a number of significant bits."""
    mantissa, exponent = math.frexp(float(x))
    return np.float32(math.ldexp(round(mantissa * 2**bits), exponent - bits))


def with_zero(step: np.float32, low: np.float32, spread: np.float32, top: int, dtype: str) -> tuple[np.float32, np.float32]:
    """Step and lowest level of a group with exact zeros: some code times the step is exactly minus the lowest level."""
    if spread < np.float32(1e-10):
        low = np.float32(0)
    zero = np.float32(min(max(np.round(np.float32(-low / step)), 0), top))
    if dtype == "float16":
        few = [code for code in range(top + 1) if significant(np.float32(code), 4) == code]  # 4 significant bits
        coarse = np.float32(min(significant(zero, 4), max(few)))
        if coarse != zero:
            high = np.float32(low + np.float32(np.float32(top) * step))
            ends = [np.float32(-low / coarse)] if coarse else []
            ends += [np.float32(high / np.float32(top - coarse))] if coarse < top else []
            step = max(step, *ends)
        zero, step = coarse, np.float32(np.float16(min(significant(step, 7), np.float32(2.0**15 / (top + 1)))))
    return step, np.float32(0.0 - np.float32(zero * step))


def affine(w: Array, keep: npt.NDArray[np.bool_], granularity: Granularity, bits: int, dtype: str) -> Array:
    out, flat, kept = np.zeros(w.size, np.float32), w.ravel(), keep.ravel()
    top = np.float32(2**bits - 1)
    for group in groups_of(w.shape, granularity):
        counted = [flat[i] for i in group if kept[i]]
        low, high = (min(counted), max(counted)) if counted else (np.float32(0), np.float32(0))
        spread = np.float32(high - low)
        step = np.float32(1) if spread < np.float32(1e-10) else np.float32(spread / top)
        if 0 in counted:
            step, low = with_zero(step, low, spread, int(top), dtype)
        step, low = rounded(step, dtype), rounded(low, dtype)
        for i in group:
            if kept[i]:
                q = min(max(np.round(np.float32(np.float32(flat[i] - low) / divisor(step))), np.float32(0)), top)
                out[i] = np.float32(q * step) + low
    return out.reshape(w.shape)


def symmetric(w: Array, keep: npt.NDArray[np.bool_], granularity: Granularity, bits: int, dtype: str) -> Array:
    out, flat, kept = np.zeros(w.size, np.float32), w.ravel(), keep.ravel()
    n = np.float32(2 ** (bits - 1) - 1)
    for group in groups_of(w.shape, granularity):
        largest = max([abs(flat[i]) for i in group if kept[i]], default=np.float32(0))
        step = rounded(np.float32(largest / n), dtype)
        for i in group:
            if kept[i]:
                q = min(max(np.round(np.float32(flat[i] / divisor(step))), -n), n)
                out[i] = np.float32(q + np.float32(0)) * step
    return out.reshape(w.shape)


def nearest_points(w: Array, keep: npt.NDArray[np.bool_], granularity: Granularity, points: Array, dtype: str) -> Array:
    out, flat, kept = np.zeros(w.size, np.float32), w.ravel(), keep.ravel()
    levels = np.sort(points)
    middles = (levels[1:] + levels[:-1]) / np.float32(2)
    for group in groups_of(w.shape, granularity):
        counted = [flat[i] for i in group if kept[i]]
        low, high = (min(counted), max(counted)) if counted else (np.float32(0), np.float32(0))
        spread = np.float32(high - low)
        spread = rounded(np.float32(1) if spread < np.float32(1e-10) else spread, dtype)
        low = rounded(low, dtype)
        for i in group:
            if kept[i]:
                v = np.float32(np.float32(flat[i] - low) / divisor(spread))
                level = levels[sum(1 for middle in middles if v > middle)]
                out[i] = np.float32(level * spread) + low
    return out.reshape(w.shape)


def binary(w: Array, keep: npt.NDArray[np.bool_], granularity: Granularity) -> npt.NDArray[np.float64]:
    """Binary, in float64: other summation orders agree only to rounding."""
    out, flat, kept = np.zeros(w.size), w.ravel().astype(np.float64), keep.ravel()
    for group in groups_of(w.shape, granularity):
        counted = [abs(flat[i]) for i in group if kept[i]]
        for i in group:
            if kept[i]:
                out[i] = sum(counted) / len(counted) * (1 if flat[i] >= 0 else -1)
    return out.reshape(w.shape)


def ternary(w: Array, keep: npt.NDArray[np.bool_], granularity: Granularity) -> npt.NDArray[np.float64]:
    """Ternary, in float64, as `binary`."""
    out, flat, kept = np.zeros(w.size), w.ravel().astype(np.float64), keep.ravel()
    for group in groups_of(w.shape, granularity):
        counted = [abs(flat[i]) for i in group if kept[i]]
        threshold = 0.7 * sum(counted) / max(1, len(counted))
        large = [i for i in group if kept[i] and abs(flat[i]) > threshold]
        for i in large:
            out[i] = sum(abs(flat[j]) for j in large) / len(large) * np.sign(flat[i])
    return out.reshape(w.shape)
