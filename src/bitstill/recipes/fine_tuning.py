"""Fine-tuning on labels, which turns a pretrained encoder into a teacher."""

from __future__ import annotations

from dataclasses import dataclass

from bitstill.constraints import Count, Epochs, NonNegative, Positive, check_fields
from bitstill.data.objective import Objective
from bitstill.recipes.recipe import RunContext
from bitstill.recipes.supervision import label_loss
from bitstill.schedules import WarmupLinear
from bitstill.train.optim import AdamW
from bitstill.train.stage import Stage, Term


@dataclass(frozen=True)
class FineTuning:
    """Settings of fine-tuning (Devlin et al. 2019, appendix A.3: 2 to 4 epochs, batch 16 or 32, 2e-5 to 5e-5).

    Args:
        epochs, batch_size, lr, weight_decay: AdamW, linear warm-up over a tenth of the steps, then linear decay to 0.
        steps: duration in optimizer steps instead of epochs.
        validations: number of evaluations on the validation split; the best weights are kept.
        clip_norm: global L2 norm to which the gradient is clipped; None does not clip.
    """

    epochs: Epochs = 3
    steps: Count | None = None
    batch_size: Count = 32
    lr: Positive = 5e-5
    weight_decay: NonNegative = 0.01
    validations: Count = 10
    clip_norm: Positive | None = 1.0

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def needs_teacher(self) -> bool:
        """Never: only labels are used."""
        return False

    @property
    def makes_student(self) -> bool:
        """Never: the given student is fine-tuned."""
        return False

    def stages(self, context: RunContext) -> tuple[Stage, ...]:
        """One stage."""
        return (self.stage("student", context.objective),)

    def stage(self, model: str, objective: Objective) -> Stage:
        """Fine-tuning stage for the model named `model`."""
        return Stage(
            "fine-tuning",
            train=(model,),
            terms=(Term(label_loss(objective), student=model),),
            epochs=self.epochs if self.steps is None else None,
            steps=self.steps,
            batch_size=self.batch_size,
            optimizer=AdamW(WarmupLinear(self.lr, warmup=0.1), weight_decay=self.weight_decay),
            clip_norm=self.clip_norm,
            validations=self.validations,
            keep="best",
        )
