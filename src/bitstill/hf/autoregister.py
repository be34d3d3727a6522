"""Makes `from_pretrained` know artifacts as soon as transformers and bitstill are both imported, in whichever order.

transformers has a registry for quantization methods, but no way to name one before it is itself imported; and importing it
here would cost everybody seconds. So the registration waits for the registry's module to be imported.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

REGISTRY = "transformers.quantizers.auto"


def register_when_imported() -> None:
    """Register bitstill with transformers now if it is there, else when it comes."""
    if REGISTRY in sys.modules:
        importlib.import_module("bitstill.hf.quantizer")
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module, the way everybody else would, and has something done after it has run."""

    def __init__(self) -> None:
        self.searching = False

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The registry's spec with a loader that registers bitstill afterwards; nothing for other modules."""
        if fullname != REGISTRY or self.searching:
            return None
        self.searching = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.searching = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader, finder: _Finder) -> None:
        self.loader, self.finder = loader, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the module's own loader does."""
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module, then register."""
        self.loader.exec_module(module)
        if self.finder in sys.meta_path:
            sys.meta_path.remove(self.finder)
        importlib.import_module("bitstill.hf.quantizer")
