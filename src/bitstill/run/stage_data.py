"""The data sets that the stages of a run learn from. A corpus is tokenized once, and kept beside the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from bitstill.data.corpus import Corpus, pack_corpus, wait_until_packed
from bitstill.data.task import Task
from bitstill.errors import SpecError, need_package
from bitstill.run.checks import check_length, check_tokens
from bitstill.run.models import ModelLike, ResolvedModels
from bitstill.train.run import Data
from bitstill.train.settings import Settings
from bitstill.train.stage import Source, Stage


def stage_data(
    stages: Sequence[Stage],
    task: Task | None,
    models: Mapping[str, ModelLike],
    resolved: ResolvedModels,
    *,
    settings: Settings,
    cache: Path,
) -> Data:
    """The data sets of a run by what its stages call them.

    Args:
        stages: of the run.
        task: as its models read it, or None.
        models: as they were named, whose tokenizers read a corpus where the task brings none.
        resolved: the networks.
        settings: which process this is, whether to show progress.
        cache: folder for tokens.

    Raises:
        DataError: a corpus cannot be read, or does not fit the models.
    """
    data: dict[Source, Task] = {} if task is None else {"task": task}
    corpora = {stage.data: stage for stage in stages if isinstance(stage.data, Corpus)}
    if len(corpora) > 1:
        given = ", ".join(corpus.source for corpus in corpora)
        raise SpecError("one corpus", given=given, where="stages", fix="Put their files into one folder.")
    for corpus, stage in corpora.items():
        trained = {role: model for role, model in models.items() if role not in resolved.untrained}
        teacher = next(term.teacher for term in stage.terms if term.teacher)
        data[corpus] = _corpus_task(corpus, _tokenizer(task, trained), teacher, resolved.networks, settings, cache)
    return data


def _tokenizer(task: Task | None, models: Mapping[str, ModelLike]) -> Any:
    """The task's tokenizer, or the one that all models named by folder or hub name share.

    Raises:
        SpecError: there is none.
        DataError: models have different ones.
    """
    need_package("transformers", extra="all", purpose="a corpus")
    from bitstill.hf.text import Tokenizer, shared_tokenizers

    if task is not None and isinstance(task.preprocessor, Tokenizer):
        return task.preprocessor.tokenizer
    sources = {role: str(model) for role, model in models.items() if not isinstance(model, nn.Module)}
    tokenizers = shared_tokenizers(sources)
    if not tokenizers:
        fix = "Name a model by its folder or hub name."
        raise SpecError("a tokenizer for a corpus", given="networks only", where="corpus", fix=fix)
    return tokenizers[0]


def _corpus_task(
    corpus: Corpus,
    tokenizer: Any,
    teacher: str,
    networks: Mapping[str, nn.Module],
    settings: Settings,
    cache: Path,
) -> Task:
    from accelerate import PartialState

    from bitstill.hf.headless import corpus_task, encoder_of

    for name, network in networks.items():
        check_tokens(name, network, len(tokenizer) - 1, "corpus")
        check_length(name, network, corpus.length, "corpus")
    if not PartialState().is_main_process:
        wait_until_packed(cache)  # not at a barrier, whose patience a large corpus would exhaust
    sequences = pack_corpus(corpus, encoder_of(tokenizer), cache, progress=settings.progress)
    return corpus_task(sequences, tokenizer, networks[teacher], corpus.mask_probability)
