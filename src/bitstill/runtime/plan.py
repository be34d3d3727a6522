"""Planning of a program for the C library: steps, and values with their offsets in memory."""

from __future__ import annotations

from collections.abc import Mapping

from bitstill.program.operations import Program
from bitstill.runtime.builder import Builder
from bitstill.runtime.layer_weights import LayerWeights
from bitstill.runtime.memory import place_values
from bitstill.runtime.steps import STEPS, image_input
from bitstill.runtime.values import Plan


def plan(program: Program, layers: LayerWeights, sizes: Mapping[str, int]) -> Plan:
    """Plan a program.

    Args:
        program: program of an artifact.
        layers: its weights.
        sizes: sizes of free dimensions: "height" and "width", or "frames" and "bands".

    Raises:
        ArtifactError: layers do not fit each other, or have input ranges of a scope that programs do not support.
    """
    builder = Builder.of(program, layers)
    for place, about in enumerate(program.inputs):
        if about.dtype == "float32":
            image_input(builder, place, about, sizes)
    for step in program.steps:
        STEPS[type(step.operation)](builder, step.operation, step.output, *step.inputs)
    place_values(builder.plan)
    return builder.plan
