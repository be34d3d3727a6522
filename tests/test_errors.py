"""Errors have four parts, are the built-in kinds that callers expect, and survive pickling."""

from __future__ import annotations

import copy
import pickle

import pytest

from bitstill import errors
from bitstill.errors import BitstillError, MissingPackageError, need_package, suggest

KINDS = {
    errors.SpecError: ValueError,
    errors.MatchError: ValueError,
    errors.DataError: ValueError,
    errors.TrainingError: RuntimeError,
    errors.CheckpointError: ValueError,
    errors.ArtifactError: ValueError,
    errors.MissingPackageError: ImportError,
}


def test_this_test_knows_every_kind():
    assert set(KINDS) == set(BitstillError.__subclasses__())


@pytest.mark.parametrize("kind", [BitstillError, *KINDS])
def test_an_error_says_what_where_and_what_to_do_and_survives_pickling(kind):
    error = kind("bits from 1 to 8", given="9", where="Uniform", fix="Use 8.")
    assert str(error) == "Uniform: wanted bits from 1 to 8, got 9. Use 8."
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is kind and str(again) == str(error)
        assert (again.wanted, again.given, again.where, again.fix) == ("bits from 1 to 8", "9", "Uniform", "Use 8.")
    assert issubclass(kind, KINDS.get(kind, Exception)) and issubclass(kind, BitstillError)


def test_the_nearest_name_comes_first_then_all_of_them_in_order():
    assert suggest("sede", ["seed", "precision"]) == "Did you mean 'seed'? Valid: precision, seed."
    assert suggest("zzz", ["seed", "precision"]) == "Valid: precision, seed."
    assert suggest("x", []) == "Valid: none."
    assert suggest("seed", ["seed", "precision"]) == "Valid: precision, seed.", "a suggestion is another name"


def test_a_package_is_imported_or_the_extra_that_installs_it_is_named():
    assert need_package("json", extra="all", purpose="tests").dumps([1]) == "[1]"
    with pytest.raises(MissingPackageError, match=r"'nosuchpackage' for plots.*pip install 'bitstill\[all\]'"):
        need_package("nosuchpackage", extra="all", purpose="plots")
