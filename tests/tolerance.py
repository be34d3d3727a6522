"""Bound on the difference between two float32 evaluations of the same sums, derived rather than guessed."""

from __future__ import annotations

import numpy as np

UNIT = 2.0**-24
"""Unit roundoff of float32."""
FURTHER_ROUNDINGS = 8
"""Roundings per term, at most, besides those of the sum: scales of inputs and weights, offsets, two planes, the bias."""
PARTS = 3
"""A weight as level times scale plus offset: the two parts are at most 2 and 1 times the largest weight."""


def product_tolerance(x, weight, shift=0.0):
    """Bound on the difference of two products of rows with a weight matrix, whatever the order of their sums.

    In any order, a sum of n terms is within (n - 1) u times the sum of the terms' magnitudes of the exact one, with the unit
    roundoff u (Higham, Accuracy and Stability of Numerical Algorithms, section 4.2). Two sums differ by at most twice that.

    Args:
        x: rows of inputs (rows, n).
        weight: effective weights (outputs, n).
        shift: largest shift of input codes.

    Returns:
        float64 (rows, outputs).
    """
    magnitudes = (np.abs(x).astype(np.float64) + abs(shift)).sum(-1, keepdims=True)
    return 2 * (x.shape[-1] + FURTHER_ROUNDINGS) * UNIT * magnitudes * PARTS * np.abs(weight).max(1).astype(np.float64)


def assert_product_close(actual, expected, x, archive, rule=None):
    """Compare outputs of a single linear layer, named "0", of an artifact.

    Args:
        actual, expected: (rows, outputs).
        x: inputs of the layer, (rows, n).
        archive: the artifact as read.
        rule: quantizer of the inputs, or None.
    """
    x, actual, expected = (np.asarray(each, np.float32) for each in (x, actual, expected))
    shifted = rule is not None and rule.range == "step" and not rule.symmetric
    tolerance = product_tolerance(x, archive.weight("0"), float(np.abs(x).max()) if shifted else 0.0)
    difference = np.abs(actual.astype(np.float64) - expected)
    excess = difference - (tolerance + FURTHER_ROUNDINGS * UNIT * np.abs(expected))
    assert (excess <= 0).all(), f"differs by {difference.max():.3g}, {excess.max():.3g} more than sums in another order"
