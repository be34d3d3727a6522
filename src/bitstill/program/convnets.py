"""Programs of the built-in convolutional networks, from the numbers in `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitstill.program.operations import (
    Activation,
    Add,
    AveragePool,
    BatchNorm,
    Convolution,
    Flatten,
    Input,
    Linear,
    MaxPool,
    Mean,
    Program,
)

EPSILON = 1e-5
"""Epsilon of torch's batch norm."""


def conv_net(numbers: Mapping[str, Any]) -> Program:
    """Convolution, ReLU, batch norm; pooling after each block; fully connected layers (`data.networks.ConvNet`)."""
    size = numbers["size"]
    program = Program((Input("image", "float32", ("batch", numbers["channels"], size, size)),))
    value, dropout, place = "image", 1 if numbers["dropout"] else 0, 0
    for block in numbers["blocks"]:
        for _ in block:
            value = program.do(Convolution(f"features.{place}", 1, numbers["kernel"] // 2), value)
            value = program.do(Activation("relu"), value)
            value = program.do(BatchNorm(f"features.{place + 2}", EPSILON, affine=True), value)
            place += 3
        value = program.do(MaxPool((2, 2)), value)
        place += 1 + dropout
    value, place = program.do(Flatten(), value), 0
    for _ in numbers["hidden"]:
        value = program.do(Activation("relu"), program.do(Linear(f"hidden.{place}"), value))
        value = program.do(BatchNorm(f"hidden.{place + 2}", EPSILON, affine=True), value)
        place += 3 + dropout
    program.do(Linear("classifier"), value)
    return program


def resnet(numbers: Mapping[str, Any]) -> Program:
    """Three stages of basic blocks (`data.networks.ResNet`)."""
    program = Program((Input("image", "float32", ("batch", numbers["channels"], "height", "width")),))

    def normed(value: str, layer: str, norm: str, stride: int = 1) -> str:
        return program.do(BatchNorm(norm, EPSILON, affine=True), program.do(Convolution(layer, stride, 1, bias=False), value))

    value, blocks = program.do(Activation("relu"), normed("image", "stem", "norm")), (numbers["depth"] - 2) // 6
    for index in range(3 * blocks):
        stride, here = 2 if index in (blocks, 2 * blocks) else 1, f"blocks.{index}"
        inner = program.do(Activation("relu"), normed(value, f"{here}.conv1", f"{here}.norm1", stride))
        inner = normed(inner, f"{here}.conv2", f"{here}.norm2")
        around = value if stride == 1 else program.do(Convolution(f"{here}.shortcut", stride, 0, bias=False), value)
        value = program.do(Activation("relu"), program.do(Add(), inner, around))
    program.do(Linear("classifier"), program.do(Mean(), value))
    return program


def res8(numbers: Mapping[str, Any]) -> Program:
    """Convolutions over spectrograms (`data.res8.Res8`)."""
    program = Program((Input("spectrogram", "float32", ("batch", 1, "frames", "bands")),))

    def convolved(value: str, layer: str) -> str:
        return program.do(Activation("relu"), program.do(Convolution(layer, 1, 1, bias=False), value))

    value = residual = program.do(AveragePool(tuple(numbers["pool"])), convolved("spectrogram", "stem"))
    for index in range(numbers["blocks"]):
        here = f"blocks.{index}"
        inner = program.do(BatchNorm(f"{here}.norm1", EPSILON, affine=False), convolved(value, f"{here}.conv1"))
        residual = program.do(Add(), residual, convolved(inner, f"{here}.conv2"))
        value = program.do(BatchNorm(f"{here}.norm2", EPSILON, affine=False), residual)
    program.do(Linear("classifier"), program.do(Mean(), value))
    return program


CONV_NETS = {"conv-net": conv_net, "resnet": resnet, "res8": res8}
