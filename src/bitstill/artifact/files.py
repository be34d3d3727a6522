"""Atomic writing of files and folders: a crash leaves either the old or the new one."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from bitstill.artifact.format import CONFIG, FILES
from bitstill.errors import ArtifactError, SpecError

_PARTIAL = ".partial"
"""Suffix of unfinished files and folders; those of a killed process are removed by the next run."""
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_NO_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def write_file(path: Path, *parts: bytes | memoryview) -> None:
    """Write `parts`, in order, to a temporary file next to `path`, flush it to disk, and rename it into place.

    The temporary name is unpredictable and must not exist, so that no link is followed.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_PARTIAL, dir=path.parent)
    beside = Path(name)
    try:
        with open(descriptor, "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(beside, 0o666 & ~_umask())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def remove_leftovers(target: Path) -> None:
    """Remove the unfinished files and folders that killed deliveries to `target` have left next to it."""
    scratch = (*target.parent.glob(f".{glob.escape(target.name)}.*{_PARTIAL}"),)
    for path in scratch:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def only_writer(target: Path) -> Iterator[None]:
    """Lock `target` against other processes on this machine inside the block.

    Raises:
        ArtifactError: another process holds the lock, or the place cannot be written.
    """
    path = target.with_name(f".{target.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, timeout=0, is_singleton=False)
        lock.acquire()
    except Timeout:
        given, fix = "another run that writes there", "Wait until it has finished, or choose another --out."
        raise ArtifactError("a place of its own for this run", given=given, where=str(target), fix=fix) from None
    except OSError as error:
        raise unwritable(target, error) from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder next to `target`, which replaces `target` if the block succeeds, and is removed otherwise.

    On Linux the exchange with an older artifact is one system call; elsewhere it is two renames.

    Raises:
        ArtifactError: the place cannot be written, the disk is full, or it holds something that is not an artifact.
    """
    check_target(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=_PARTIAL, dir=target.parent))
    except OSError as error:
        raise unwritable(target, error) from None
    try:
        with _writing(target):
            os.chmod(beside, 0o777 & ~_umask())
            yield beside
            _move_into_place(beside, target)
            _sync_folder(target.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextlib.contextmanager
def filled_folder(folder: Path) -> Iterator[None]:
    """Create `folder` if needed, for a block that fills it in steps.

    Raises:
        ArtifactError: it cannot be created or written, or the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from None
    with _writing(folder):
        yield


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _NO_WRITING:
            raise unwritable(target, error) from None
        raise


def check_target(target: Path) -> None:
    """Check that an artifact can be written to `target` without destroying anything else.

    Raises:
        ArtifactError: `target` is a file, a folder with other contents, or inside a folder that cannot be written.
    """
    if target.exists() and not (target.is_dir() and (not any(target.iterdir()) or _is_artifact(target))):
        raise ArtifactError(
            "a new folder, an empty one or an older artifact and nothing else",
            given="something else",
            where=str(target),
            fix="Choose another --out, so that nothing of yours is overwritten.",
        )
    parent = next(p for p in (target.absolute().parent, *target.absolute().parent.parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise unwritable(target, OSError(errno.EACCES, os.strerror(errno.EACCES)))


def check_new(target: Path) -> None:
    """Check that `target` is new or empty, for outputs that never replace anything.

    Raises:
        SpecError: it is not.
        ArtifactError: as for `check_target`.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        fix = "Choose another --out, so that nothing of yours is overwritten."
        raise SpecError("a new or an empty folder", given="something else", where=str(target), fix=fix)
    check_target(target)


def _is_artifact(folder: Path) -> bool:
    # Not every folder with a config.json: every Hugging Face model has one, and it may be the only copy.
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        written_by_us = config["quantization_config"]["quant_method"] == "bitstill"
        return bool(written_by_us and all(entry.name in FILES for entry in folder.iterdir()))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def unwritable(target: Path, error: OSError) -> ArtifactError:
    """Error for a place that cannot be written, or a full disk."""
    return ArtifactError(
        "a folder that can be written",
        given=error.strerror or str(error),
        where=str(target),
        fix="Choose another --out, or free some space; an older artifact there is untouched.",
    )


def _move_into_place(beside: Path, target: Path) -> None:
    for file in beside.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
    if not target.exists():
        os.rename(beside, target)
        return
    if _exchange(beside, target):
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=_PARTIAL, dir=target.parent))
    os.rename(target, old / target.name)
    os.rename(beside, target)
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders atomically; False if the system does not support it."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    status = renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return bool(status == 0)


def _sync_folder(folder: Path) -> None:
    """Flush the entries of `folder` to disk, if the system supports it: otherwise a power failure may undo a rename."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
