"""A callback for `transformers.Trainer` that delivers the trained student."""

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
    """Callback that updates the student's quantizers during training, and delivers it as an artifact at the end.

    Args:
        folder: destination; an older artifact there is replaced atomically.
        tokenizer: tokenizer of transformers, saved with the model.
        storage: storage options for leftovers and codes.

    Raises:
        ArtifactError: the folder cannot be written, or holds something else.
    """
    from bitstill.hf.trainer import QuantizerCallback

    check_target(Path(folder))

    def write(model: nn.Module) -> None:
        save(model, folder, storage=storage, tokenizer=tokenizer)

    return QuantizerCallback(write)
