"""Quantization without training, the baseline of all trained results."""

from __future__ import annotations

from dataclasses import dataclass

from bitstill.constraints import check_fields
from bitstill.errors import SpecError
from bitstill.quant.granularity import Granularity, PerGroup
from bitstill.quant.rules import Bits, Compression, Prune, QuantizeInput, Quantizer, ScaleDtype, quantizer
from bitstill.recipes.recipe import RunContext
from bitstill.train.actions import Compress, Skip
from bitstill.train.stage import Stage


@dataclass(frozen=True)
class PostTraining:
    """Quantize a trained student without further training ("post-mortem quantization" of Polino et al. 2018).

    Args:
        bits: 1 (binary), "ternary", or 2 to 8 (affine); scales and offsets have the least squared error.
        granularity: which weights share a scale.
        scale_dtype: precision of scales on disk.
        weight_quantizer: any quantizer, instead of the one defined by `bits`, `granularity` and `scale_dtype`.
        skip: layers left in float: "roles" the stem and the classifier, "none", or "paper", the literal first and last tensor.
        input: input quantization; None keeps inputs in float.
        prune: magnitude pruning of the trained weights before quantization; None does not prune.
    """

    bits: Bits = 4
    granularity: Granularity = PerGroup(128)
    scale_dtype: ScaleDtype = "float16"
    skip: Skip = "roles"
    input: QuantizeInput | None = None
    prune: Prune | None = None
    weight_quantizer: Quantizer | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        self._rule()
        if self.input is not None and self.input.range != "dynamic":
            raise SpecError(
                "range='dynamic' for inputs",
                given=f"{self.input.range!r}, which must be learned",
                where="PostTraining",
                fix="Nothing is trained here: use QuantizedDistillation for learned ranges.",
            )

    @property
    def needs_teacher(self) -> bool:
        """Never: nothing is trained."""
        return False

    @property
    def makes_student(self) -> bool:
        """Never: the student is given."""
        return False

    def stages(self, context: RunContext) -> tuple[Stage, ...]:
        """One stage without steps."""
        return (Stage("post-training", terms=(), begin=(Compress("student", self._rule(), self.skip),)),)

    def _rule(self) -> Compression:
        usual = quantizer(self.bits, self.granularity, scale_dtype=self.scale_dtype, untrained=True)
        weight = self.weight_quantizer or usual
        return Compression(weight=weight, input=self.input, prune=self.prune)
