r"""A custom recipe: settings, and a method that turns them into stages.

    bitstill compress --recipe examples.own_recipe:TernaryInTwoSteps --task digits --out small \
        --teacher digits-teacher --student digits-student --set first_epochs=10

The artifact's recipe.yaml names the class, so that `bitstill compress small/recipe.yaml --out again` repeats the run.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bitstill.losses import Loss
from bitstill.quant import Compression, Quantizer, Ternary
from bitstill.recipes import RunContext
from bitstill.train import SGD, Compress, Cosine, Stage, Term


@dataclass(frozen=True)
class TernaryInTwoSteps:
    """Distillation from the teacher's logits, then, at half the learning rate, from logits and labels.

    Args:
        quantizer: quantizer of the weights, from `bitstill.quant` or your own.
        first_epochs: epochs with the teacher alone.
        second_epochs: epochs with the teacher and the labels.
        lr: peak learning rate of the first stage; the second uses half of it.
        teacher_epochs: epochs for a teacher that has to be trained first.
    """

    quantizer: Quantizer = field(default_factory=Ternary)
    first_epochs: float = 20
    second_epochs: float = 10
    lr: float = 0.05
    teacher_epochs: float = 20
    needs_teacher = True
    makes_student = False

    def stages(self, context: RunContext) -> tuple[Stage, ...]:
        """[teacher ->] logits -> logits and labels."""
        imitation = context.objective.imitation_loss("kl", temperature=2.0)
        labels = context.objective.label_loss()
        assert labels is not None, "a task with labels"
        rule = Compress("student", Compression(weight=self.quantizer), skip="roles")
        first = Stage(
            "logits",
            terms=(Term(imitation, teacher="teacher"),),
            epochs=self.first_epochs,
            optimizer=SGD(Cosine(self.lr, warmup=0.05)),
            begin=(rule,),
        )
        second = Stage(
            "logits and labels",
            terms=(Term(imitation, teacher="teacher", weight=0.7), Term(labels, weight=0.3)),
            epochs=self.second_epochs,
            optimizer=SGD(Cosine(self.lr / 2)),
            keep="best",
        )
        return (*self._train_teacher(labels, context), first, second)

    def _train_teacher(self, labels: Loss, context: RunContext) -> tuple[Stage, ...]:
        """Training stage for a teacher with random weights."""
        if "teacher" not in context.untrained:
            return ()
        terms = (Term(labels, student="teacher"),)
        return (Stage("teacher", train=("teacher",), terms=terms, epochs=self.teacher_epochs, keep="best"),)
