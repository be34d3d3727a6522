"""General distillation: a smaller encoder for any task, saved as an ordinary Hugging Face folder, read back and compared."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from bitstill.artifact.files import check_new, replaced_folder, write_file
from bitstill.artifact.format import REPORT
from bitstill.data.corpus import Corpus, file_digests, pack_corpus, wait_until_packed
from bitstill.data.task import evaluate
from bitstill.decode import encode
from bitstill.deliver.deliver import environment
from bitstill.errors import SpecError, need_package
from bitstill.model.state import state_digest
from bitstill.recipes import XTC, BinaryBERT
from bitstill.recipes.general_distillation import GeneralDistillation
from bitstill.recipes.protocol import Recipe
from bitstill.recipes.transformer_stages import birth, kept_layers
from bitstill.run.roles import check_rows, readable_tokens, rehearse
from bitstill.run.run_file import RunFile
from bitstill.train.checkpoint import checkpoint_beside
from bitstill.train.identity import identity_of
from bitstill.train.loop import train
from bitstill.train.settings import Settings, accelerator


def distill(
    teacher: str,
    corpus: Corpus | str,
    out: str | Path,
    *,
    student: str | None = None,
    recipe: GeneralDistillation | None = None,
    settings: Settings | None = None,
    cache: str | Path | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Distil an encoder into a smaller one on plain text, for any task (Jiao et al. 2020).

    Args:
        teacher: folder or hub name of an encoder, with a head or without; it is not fine-tuned.
        corpus: plain text; a string is a `Corpus` with its defaults.
        out: a new or empty folder, which any tool that reads Hugging Face models can read afterwards.
        student: folder or hub name of the smaller encoder, or a folder with its config.json alone; None makes it of layers of
            the teacher.
        recipe: layers, losses, epochs.
        settings: seed, precision, checkpoints.
        cache: folder for the tokenized corpus, which other runs can use too; None is `out` with ".tokens" behind it.
        resume: continue a run that was stopped; the corpus goes on where it was either way.

    Returns:
        What report.json says: how alike the student that was read back from `out` is to its teacher, and the history.

    Raises:
        BitstillError: its subclasses say what was wrong; nothing at `out` is damaged.
    """
    started = time.perf_counter()
    need_package("transformers", extra="all", purpose="general distillation")
    from accelerate import PartialState

    from bitstill.hf.headless import corpus_task, encoder_of, hidden_width, load_encoder
    from bitstill.hf.models import save_pretrained
    from bitstill.hf.text import check_same_vocabulary, load_tokenizer

    recipe, settings, target = recipe or GeneralDistillation(), settings or Settings(), Path(out).resolve()
    corpus = Corpus(corpus) if isinstance(corpus, str) else corpus
    about: dict[str, Any] = {"teacher": teacher, "student": student, "corpus": encode(corpus), "recipe": encode(recipe)}
    about |= {"seed": settings.seed, "precision": settings.precision, "corpus files": file_digests(corpus)}
    finished = resume and (target / REPORT).exists()
    if not finished:
        check_new(target)
    accelerator(replace(settings, trackers=()))  # settles the device, before anything asks for it
    several = PartialState()
    tokenizer = load_tokenizer(teacher)
    networks: dict[str, nn.Module] = {"teacher": load_encoder(teacher, "teacher").model}
    if student is not None:
        loaded = load_encoder(student, "student", settings.seed)
        networks["student"] = loaded.model
        if not loaded.new:
            check_same_vocabulary(tokenizer, load_tokenizer(student), (teacher, student))
    about["models"] = {name: state_digest(network) for name, network in networks.items()}
    if finished:
        return _finished(target, about)
    for name, network in networks.items():
        check_rows(name, network, len(tokenizer) - 1, "corpus")
        limit = readable_tokens(network)
        if limit is not None and limit < corpus.length:
            fix = "Cut the corpus into shorter sequences: --length."
            raise SpecError(f"sequences of at most {limit} tokens", given=str(corpus.length), where=name, fix=fix)
    depth, kept = kept_layers(recipe.layers, recipe.choice, networks, "GeneralDistillation")
    if student is None and len(kept) == depth:
        fix = "Set layers, or give a student."
        raise SpecError("a smaller student", given="all of the teacher", where="GeneralDistillation", fix=fix)
    tokens = Path(cache) if cache is not None else target.with_name(f"{target.name}.tokens")
    if not several.is_main_process:
        wait_until_packed(tokens)  # not at a barrier, whose patience a large corpus would exhaust
    sequences = pack_corpus(corpus, encoder_of(tokenizer), tokens, progress=settings.progress)
    task = corpus_task(sequences, tokenizer, networks["teacher"], recipe.mask_probability)
    wide = hidden_width(networks["teacher"])
    stage = recipe.stage(kept, depth, (hidden_width(networks["student"]) if student else wide, wide))
    stages = (replace(stage, begin=(*birth(student is not None, kept, depth, recipe.dropout), *stage.begin)),)
    rehearse(stages, networks, task)
    identity = identity_of(encode(recipe), stages, task, networks, settings)
    work = checkpoint_beside(target, resume)
    history = train(stages, networks, task, settings, identity=identity, checkpoint_path=work, resume=resume)
    report: dict[str, Any] = {}
    if several.is_main_process:
        with replaced_folder(target) as folder:
            save_pretrained(networks["student"], task, folder)
            delivered = load_encoder(str(folder), "distilled model").model
            report = {
                **about,
                "sequences": len(task.train),
                "settings": encode(settings),
                "parameters": {name: sum(p.numel() for p in net.parameters()) for name, net in networks.items()},
                "history": history,
                "delivered": {"metric": task.objective.decides, "test": evaluate(delivered, task, task.test)},
                "wall_seconds": time.perf_counter() - started,
                **environment(),
            }
            write_file(folder / REPORT, json.dumps(report, indent=1, sort_keys=True).encode())
        work.unlink(missing_ok=True)
    several.wait_for_everyone()
    return report or dict(json.loads((target / REPORT).read_text()))


def with_general(run: RunFile, recipe: Recipe, resume: bool) -> dict[str, str]:
    """The models of a run; where it names a corpus, the student is what general distillation on that has made, or makes now.

    It is kept beside what the run delivers, in `out`-general, and taken from there if this run would make the same.

    Args:
        run: with `out`.
        recipe: built from it.
        resume: continue a distillation that was stopped.

    Raises:
        BitstillError: the recipe makes no smaller transformer, a student is given, or what `distill` raises.
    """
    models = run.models(recipe)
    if run.corpus is None:
        return models
    if not isinstance(recipe, (XTC, BinaryBERT)) or "student" in models:
        fix = "Use xtc or binarybert without --student; `bitstill distill` makes such a student for other uses."
        given = "a student" if isinstance(recipe, (XTC, BinaryBERT)) else run.recipe
        raise SpecError("a recipe that makes a smaller transformer of its teacher", given=given, where="--corpus", fix=fix)
    source = run.model or run.teacher
    if source is None:
        raise SpecError("a model to distil", given="none", where="--corpus", fix="Add --model.")
    general = run.general or GeneralDistillation()
    if general.layers is None:
        general = replace(general, layers=recipe.layers, choice=recipe.choice)
    folder = Path(f"{run.out}-general")
    again = resume or (folder / REPORT).exists()
    distill(source, run.corpus, folder, recipe=general, settings=run.settings, resume=again)
    return {**models, "student": str(folder)}


def _finished(target: Path, about: dict[str, Any]) -> dict[str, Any]:
    """The report of a run that is finished, if it is the one that was asked for."""
    report: dict[str, Any] = json.loads((target / REPORT).read_text(encoding="utf-8"))
    for key, wanted in json.loads(json.dumps(about)).items():
        if key == "corpus files" and not wanted:
            continue  # what was made of them may outlive them
        if report.get(key) != wanted:
            fix = "Choose another --out, or delete that folder to distil anew."
            given = f"one with {key} {report.get(key)}"
            raise SpecError(f"an encoder distilled with {key} {wanted}", given=given, where=str(target), fix=fix)
    checkpoint_beside(target, resume=True).unlink(missing_ok=True)
    return report
