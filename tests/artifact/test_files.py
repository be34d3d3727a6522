"""Atomic writes: a crash leaves the old artifact or the new one, and no other file of the user is lost."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import pytest

from bitstill.artifact import files
from bitstill.artifact.files import check_target, only_writer, remove_leftovers, replaced_folder, write_file
from bitstill.artifact.format import CONFIG
from bitstill.errors import ArtifactError

OURS = json.dumps({"quantization_config": {"quant_method": "bitstill"}})


def _fill(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(OURS)
    (folder / "report.html").write_text(text)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=["exchange", "two renames"])
def any_system(request, monkeypatch) -> None:
    if request.param == "two renames":
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)


def test_a_new_folder_appears_when_the_block_ends(tmp_path):
    target = tmp_path / "deep" / "er" / "out"
    with replaced_folder(target) as folder:
        assert folder.parent == target.parent
        assert not target.exists()
        _fill(folder, "new")
    assert (target / "report.html").read_text() == "new"
    assert _names(target.parent) == ["out"]


@pytest.mark.usefixtures("any_system")
def test_an_older_artifact_is_replaced_whole(tmp_path):
    target = tmp_path / "out"
    _fill(target, "old")
    (target / "recipe.yaml").write_text("gone after")
    with replaced_folder(target) as folder:
        _fill(folder, "new")
        assert (target / "report.html").read_text() == "old", "until the very end"
    assert (target / "report.html").read_text() == "new"
    assert _names(target) == sorted([CONFIG, "report.html"])
    assert _names(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [RuntimeError("crash"), KeyboardInterrupt(), OSError(errno.EIO, "disk")])
def test_an_exception_leaves_the_old_one_and_no_litter(tmp_path, error):
    target = tmp_path / "out"
    _fill(target, "old")
    with pytest.raises(type(error)) as caught, replaced_folder(target) as folder:  # noqa: PT012
        _fill(folder, "half")
        raise error
    assert caught.value is error
    assert (target / "report.html").read_text() == "old"
    assert _names(tmp_path) == ["out"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_full_or_forbidden_disk_is_a_clear_error(tmp_path, number):
    target = tmp_path / "out"
    _fill(target, "old")
    with pytest.raises(ArtifactError, match=os.strerror(number)) as caught, replaced_folder(target) as folder:
        raise OSError(number, os.strerror(number), str(folder))
    assert "--out" in caught.value.fix
    assert (target / "report.html").read_text() == "old"
    assert _names(tmp_path) == ["out"]


def test_a_disk_that_fills_while_weights_are_written(tmp_path, zoo, monkeypatch):
    from bitstill.artifact.writer import Storage, write
    from bitstill.model.contents import contents_of
    from bitstill.model.lifecycle import freeze

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = tmp_path / "out"
    _fill(target, "old")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ArtifactError, match="No space left"), replaced_folder(target) as folder:
        write(folder, contents_of(freeze(zoo)), {}, Storage())
    assert (target / "report.html").read_text() == "old"
    assert _names(tmp_path) == ["out"]


@pytest.mark.parametrize("step", ["os.rename", "os.fsync"])
def test_a_failure_while_moving_into_place_leaves_the_old_one(tmp_path, monkeypatch, step):
    target = tmp_path / "out"
    _fill(target, "old")
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)

    def fail(*arguments: object) -> None:
        raise OSError(errno.EIO, "disk")

    with pytest.raises(OSError, match="disk"), replaced_folder(target) as folder:  # noqa: PT012
        _fill(folder, "new")
        monkeypatch.setattr(step, fail)
    assert (target / "report.html").read_text() == "old"


def test_folders_with_other_things_are_refused_and_untouched(tmp_path):
    for name, prepare in {
        "file": lambda path: path.write_text("mine"),
        "photos": lambda path: (path.mkdir(), (path / "cat.jpg").write_text("mine")),
        "someone's model": lambda path: (path.mkdir(), (path / CONFIG).write_text('{"model_type": "bert"}')),
        "quantized by another": lambda path: (
            path.mkdir(),
            (path / CONFIG).write_text('{"quantization_config": {"quant_method": "gptq"}}'),
        ),
        "broken config": lambda path: (path.mkdir(), (path / CONFIG).write_text("{")),
    }.items():
        target = tmp_path / name
        prepare(target)
        before = sorted(path.name for path in tmp_path.rglob("*"))
        with pytest.raises(ArtifactError, match="something else"), replaced_folder(target) as folder:
            _fill(folder, "new")
        assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_new_empty_and_older_places_are_accepted(tmp_path):
    (tmp_path / "empty").mkdir()
    _fill(tmp_path / "older", "old")
    for name in ("new", "empty", "older", "a/b/c"):
        check_target(tmp_path / name)
    assert not (tmp_path / "a").exists(), "checking writes nothing"


@pytest.mark.usefixtures("any_system")
def test_an_empty_folder_is_filled(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    with replaced_folder(target) as folder:
        _fill(folder, "new")
    assert (target / "report.html").read_text() == "new"
    assert _names(tmp_path) == ["out"]


def test_a_parent_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ArtifactError, match="wanted a folder that can be written, got Permission denied"):
        check_target(tmp_path / "out")


def test_a_parent_that_turns_out_to_be_read_only(tmp_path, monkeypatch):
    def read_only(**settings: object) -> str:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("tempfile.mkdtemp", read_only)
    with pytest.raises(ArtifactError, match="Read-only file system"), replaced_folder(tmp_path / "out"):
        pytest.fail("nothing may be written")


def test_a_parent_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ArtifactError, match="a folder that can be written"):
        check_target(tmp_path / "file" / "out")


def test_write_file_is_flushed_before_it_is_renamed(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr("os.fsync", lambda descriptor: (order.append("flushed"), fsync(descriptor)))
    monkeypatch.setattr("os.replace", lambda a, b: (order.append("renamed"), replace(a, b)))
    write_file(tmp_path / "x", b"new")
    assert order == ["flushed", "renamed", "flushed"], "the data, and then the name"
    assert (tmp_path / "x").read_bytes() == b"new"


def test_write_file_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"old")

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="full"):
        write_file(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"old"


def test_permissions_are_those_of_any_new_folder(tmp_path):
    """Temporary folders are private; the delivered one follows the user's umask."""
    (tmp_path / "ordinary").mkdir()
    with replaced_folder(tmp_path / "out") as folder:
        _fill(folder, "new")
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == stat.S_IMODE((tmp_path / "ordinary").stat().st_mode)


def test_a_second_run_into_one_place_is_told_before_it_begins(tmp_path):
    out = tmp_path / "out"
    with only_writer(out):
        with pytest.raises(ArtifactError, match="another run that writes there"), only_writer(out):
            pass
        with only_writer(tmp_path / "other"):
            pass
    with only_writer(out):
        pass
    assert not list(tmp_path.iterdir()), "no lock is left behind"


def test_what_killed_deliveries_left_is_removed_and_nothing_else(tmp_path):
    kept = [
        tmp_path / name for name in (".out.checkpoint.safetensors", ".output.abc.partial", "out.partial", ".other.x.partial")
    ]
    for path in kept:
        path.write_text("kept")
    (tmp_path / "linked").mkdir()
    (tmp_path / ".out.abc.partial").mkdir()
    (tmp_path / ".out.abc.partial" / "model.safetensors").write_text("half")
    (tmp_path / ".out.link.partial").symlink_to(tmp_path / "linked")
    remove_leftovers(tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == sorted([*kept, tmp_path / "linked"])


def test_a_temporary_name_is_new_and_follows_no_link(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / ".x.tmp").symlink_to(tmp_path / "precious")
    write_file(tmp_path / "x", b"new")
    assert (tmp_path / "precious").read_text() == "mine" and (tmp_path / "x").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == stat.S_IMODE((tmp_path / "precious").stat().st_mode)
