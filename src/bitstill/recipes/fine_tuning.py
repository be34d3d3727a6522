"""Fine-tuning on the labels: what makes a teacher out of a pretrained encoder."""

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
        validations: how often the model is judged on the validation split; the best one is kept.
        clip_norm: of the gradient.
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
        """Labels only."""
        return False

    @property
    def makes_student(self) -> bool:
        """The student is what is fine-tuned."""
        return False

    def stages(self, context: RunContext) -> tuple[Stage, ...]:
        """One stage."""
        return (self.stage("student", context.objective),)

    def stage(self, model: str, objective: Objective) -> Stage:
        """The stage for the model of that name."""
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
