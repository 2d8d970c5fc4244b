"""The one place where it is decided how kernels become machine code.

`kernel("void(float32[:, ::1], int64)")` marks what Python calls, with the exact types it takes; `inner` and `inlined`
mark what only kernels call. At import one of three is chosen, and `kernels_in_use` says which:

    a build made ahead of time that fits this machine and these sources (`_native.py`): no compiler is loaded;
    otherwise Numba, which compiles here, at a kernel's first call, and keeps the machine code on disk (`warm.py`);
    otherwise one line that says what to install.

HEDGEROW_KERNELS forces a choice: `jit`, a target such as `x86-64-v3`, or the path of a build. HEDGEROW_BUILD_TARGET is
set only while a build is being made, and `TARGET` is then the target of that build.

Both ways the code keeps three promises. `fastmath=False`: LLVM may not reorder or contract a sum, so x86-64 and aarch64
give the same bits. `error_model="numpy"`: a division by zero is an IEEE infinity, which callers look for, and never a
Python exception inside a loop. `nogil=True`: other threads run while a kernel does. And `_nrt=False`: no array is
counted, which took two atomic instructions at each call of an inner function, more than many of them do; so nothing can
be allocated in a kernel. Numba's cache does not notice another flag: touch a file to have its kernels compiled anew.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

from engine.kernels import _native

_ASKED = os.environ.get("HEDGEROW_KERNELS", "")
_BUILDING = os.environ.get("HEDGEROW_BUILD_TARGET", "")
_BUILD = None if _BUILDING or _ASKED == "jit" else _native.find(_ASKED)

NATIVE = _BUILD is not None
if NATIVE:
    _library = _native.Library(_BUILD)
    TARGET = _library.target
else:
    try:
        import numba
    except ImportError as error:
        raise ImportError(
            f"training needs kernels: no build for {_native.machine()} is installed, so pip install hedgerow[jit]"
        ) from error
    TARGET = _BUILDING or next(iter(_native.targets()), "x86-64")
    FLAGS = {"cache": not _BUILDING, "nogil": True, "fastmath": False, "error_model": "numpy", "_nrt": False}
    if _BUILDING:
        FLAGS |= {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}


class Kernel:
    """A kernel that Numba compiles, or loads from its cache, when it is first wanted: loading takes 10 ms each."""

    def __init__(self, function, signature):
        self.__module__, self.__name__ = function.__module__, function.__name__
        self.function, self.signature = function, signature
        self._made = None

    def __repr__(self):
        return f"<kernel {self.__name__}: {self.signature}>"

    def __call__(self, *arguments):
        return self.compile()(*arguments)

    def bind(self, *arguments):
        """Give a call without arguments, which runs on these."""
        return functools.partial(self.compile(), *arguments)

    def compile(self):
        """Give what Numba made of the function, for its one signature."""
        if self._made is None:
            self._made = numba.njit(self.signature, **FLAGS)(self.function)
        return self._made


def kernel(signature):
    """Mark a function that Python calls; its arrays are C-contiguous and writable, and the caller allocates them."""
    if NATIVE:
        return lambda function: _library.kernel(function.__module__, function.__name__, signature)
    return lambda function: Kernel(function, signature)


def inner(function):
    """Mark a function that only kernels call; it is compiled into each of them."""
    return function if NATIVE else numba.njit(**FLAGS)(function)


def inlined(function):
    """Mark an inner function that is called for every bit: its code stands wherever it is called, without a call."""
    return function if NATIVE else numba.njit(forceinline=True, **FLAGS)(function)


def bind(function: Any, *arguments: Any) -> Callable[[], Any]:
    """Give a call without arguments that runs the kernel `function` on these, which it keeps alive."""
    return function.bind(*arguments)


def kernels_in_use() -> str:
    """Say which machine code runs, for people: where it was compiled, and for what."""
    if NATIVE:
        return f"{TARGET}, compiled ahead of time"
    return f"Numba {numba.__version__}, compiled here for {TARGET}"
