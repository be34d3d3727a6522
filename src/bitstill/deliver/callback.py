"""The callback that delivers what `transformers.Trainer` has trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from bitstill.artifact.files import check_target
from bitstill.artifact.writer import Storage
from bitstill.deliver.deliver import save

if TYPE_CHECKING:
    from bitstill.hf.trainer import QuantizerCallback


def deliver_callback(folder: str | Path, *, tokenizer: Any = None, storage: Storage | None = None) -> QuantizerCallback:
    """A callback that updates the student's quantizers while Trainer trains it, and delivers it as an artifact at the end.

    Args:
        folder: where the artifact goes; an older one there is replaced in one step.
        tokenizer: of transformers, kept beside the model.
        storage: how leftovers and codes are stored.

    Raises:
        ArtifactError: the place cannot be written, or holds something else.
    """
    from bitstill.hf.trainer import QuantizerCallback

    check_target(Path(folder))

    def write(model: nn.Module) -> None:
        save(model, folder, storage=storage, tokenizer=tokenizer)

    return QuantizerCallback(write)
