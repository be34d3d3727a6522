"""From a program to a plan for the C library: its steps, and values with their places in memory."""

from __future__ import annotations

from collections.abc import Mapping

from bitstill.program.operations import Program
from bitstill.runtime.builder import Builder
from bitstill.runtime.layer_weights import LayerWeights
from bitstill.runtime.memory import place_values
from bitstill.runtime.steps import STEPS, image_input
from bitstill.runtime.values import Plan


def plan(program: Program, layers: LayerWeights, sizes: Mapping[str, int]) -> Plan:
    """The plan of a program.

    Args:
        program: of an artifact.
        layers: its weights.
        sizes: of the inputs' dimensions that the program leaves open: "height" and "width", or "frames" and "bands".

    Raises:
        ArtifactError: layers do not fit each other, or quantize their inputs over rows that a program does not have together.
    """
    builder = Builder.of(program, layers)
    for place, about in enumerate(program.inputs):
        if about.dtype == "float32":
            image_input(builder, place, about, sizes)
    for step in program.steps:
        STEPS[type(step.operation)](builder, step.operation, step.output, *step.inputs)
    place_values(builder.plan)
    return builder.plan
