"""Training data of the stages of a run. Expensive data sets are built once and stored next to the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bitstill.data.augmentation import Variants
from bitstill.data.corpus import Corpus, pack_corpus, wait_until_packed
from bitstill.data.task import Task, TextPreprocessor
from bitstill.deliver.load_task import task_for
from bitstill.errors import SpecError, need_package
from bitstill.run.augment import augment
from bitstill.run.checks import check_length, check_tokenizers, check_tokens
from bitstill.run.job import Job
from bitstill.run.models import ModelLike, ResolvedModels, tokenizer_source
from bitstill.train.run import Data
from bitstill.train.stage import Source, Stage


def stage_data(job: Job, stages: Sequence[Stage], task: Task | None, resolved: ResolvedModels, out: Path) -> Data:
    """Data sets of a run by the names that its stages use.

    Args:
        job: models, whose tokenizers read the data, and settings.
        stages: stages of the run.
        task: the tokenized task, or None.
        resolved: networks of the run.
        out: destination; tokens of a corpus and variants of texts are stored next to it.

    Raises:
        BitstillError: a corpus cannot be read or does not fit the models, or the task has no texts to vary.
    """
    data: dict[Source, Task] = {} if task is None else {"task": task}
    for source, stage in {stage.data: stage for stage in stages}.items():
        if isinstance(source, Corpus):
            _check_only(source, stages, Corpus)
            data[source] = _corpus_task(job, source, stage, task, resolved, out)
        elif isinstance(source, Variants):
            _check_only(source, stages, Variants)
            data[source] = _with_variants(job, source, out)
    return data


def _check_only(source: Source, stages: Sequence[Stage], kind: type) -> None:
    """Check that all stages use the same source of a kind, since each kind has one folder next to the result."""
    others = {stage.data for stage in stages if isinstance(stage.data, kind)} - {source}
    if others:
        given = f"{source} and {next(iter(others))}"
        raise SpecError(f"one {kind.__name__} in all stages", given=given, where="stages", fix="Use the same in each.")


def _corpus_task(job: Job, corpus: Corpus, stage: Stage, task: Task | None, resolved: ResolvedModels, out: Path) -> Task:
    """The tokenized corpus as a task for student and teacher of `stage`."""
    need_package("transformers", extra="all", purpose="a corpus")
    from accelerate import PartialState

    from bitstill.hf.corpus_task import corpus_task, encoder_of

    trained = {role: model for role, model in job.models.items() if role not in resolved.untrained or task is not None}
    tokenizer = _tokenizer(task, trained)
    for name, network in resolved.networks.items():
        check_tokens(name, network, len(tokenizer) - 1, "corpus")
        check_length(name, network, corpus.length, "corpus")
    folder = Path(job.cache) if job.cache is not None else out.with_name(f"{out.name}.tokens")
    if not PartialState().is_main_process:
        wait_until_packed(folder)  # not a barrier, which would time out on a large corpus
    sequences = pack_corpus(corpus, encoder_of(tokenizer), folder, progress=job.settings.progress)
    teacher = next(term.teacher for term in stage.terms if term.teacher)
    return corpus_task(sequences, tokenizer, resolved.networks[teacher], corpus.mask_probability)


def _tokenizer(task: Task | None, models: Mapping[str, ModelLike]) -> Any:
    """The task's tokenizer, or the one shared by all models given as folder or hub name.

    Raises:
        SpecError: there is no tokenizer.
        DataError: the models' tokenizers differ.
    """
    from bitstill.hf.tokenize import PROBES, load_tokenizer

    if task is not None and isinstance(task.preprocessor, TextPreprocessor):
        return task.preprocessor.tokenizer
    source = next((source for model in models.values() if (source := tokenizer_source(model))), None)
    if source is None:
        fix = "Name a model by its folder or hub name."
        raise SpecError("a tokenizer for a corpus", given="networks only", where="corpus", fix=fix)
    tokenizer = load_tokenizer(source)
    check_tokenizers(tokenizer, PROBES, models)
    return tokenizer


def _with_variants(job: Job, variants: Variants, out: Path) -> Task:
    """The task with variants of its training texts, which the main process generates first."""
    from accelerate import PartialState

    if not isinstance(job.task, str) or job.augmented is not None:
        given = "a Task" if job.augmented is None else "existing variants (augmented)"
        fix = "Name the task, and leave `augmented` out."
        raise SpecError("a task by name, whose texts can be varied", given=given, where="variants", fix=fix)
    folder, processes = out.with_name(f"{out.name}.variants"), PartialState()
    with processes.main_process_first():
        augment(
            job.task, variants.model, folder, method=variants.method, vectors=variants.vectors, options=variants.options,
            data=job.data, text=job.text, progress=job.settings.progress and processes.is_main_process,
        )  # fmt: skip
    return task_for(job.task, job.models, job.data, job.text, augmented=folder)
