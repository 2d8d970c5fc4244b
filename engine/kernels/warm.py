"""Make every kernel ready, so that none compiles in the field.

Where a build made ahead of time is in use, it is only loaded. Otherwise Numba compiles each kernel for its one
signature and caches the machine code on disk (beside the source, or in NUMBA_CACHE_DIR), so this runs at install time;
later processes load it. There is no list to keep: every kernel in every file of this folder is made ready.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

import engine.kernels
from engine.kernels._jit import NATIVE

if TYPE_CHECKING:
    from collections.abc import Callable


def kernels() -> list[Any]:
    """Give every kernel, by file and by place in its file."""
    found = []
    for name in sorted(
        module.name for module in pkgutil.iter_modules(engine.kernels.__path__) if module.name[0] != "_"
    ):
        file = importlib.import_module(f"engine.kernels.{name}")
        found += [
            thing
            for thing in vars(file).values()
            if getattr(thing, "signature", "") and thing.__module__ == file.__name__
        ]
    return found


def warm(progress: Callable[[str], None]) -> None:
    """Compile or load every kernel; `progress` hears each one's name before its turn."""
    for kernel in kernels():
        progress(kernel.__name__)
        if not NATIVE:
            kernel.compile()
