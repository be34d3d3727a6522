"""Every engine available here: the C library on each instruction set, and numpy."""

from __future__ import annotations

import pytest

from bitstill.runtime import model
from bitstill.runtime.library import tiers, use_tier

ENGINES = (*tiers(), "numpy")


@pytest.fixture(params=ENGINES)
def engine(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setattr(model, "library", lambda: None)
        yield "numpy"
        return
    use_tier(request.param)
    yield request.param
    use_tier(tiers()[0])
