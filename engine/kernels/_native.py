"""Kernels compiled ahead of time: which build fits this machine, and how Python calls into it.

A build is one shared object per target, `native/<target>-<digest of the kernels' sources>.so`, made on a release
machine by `make kernels`. The digest in its name is why a build is never used with other sources than its own. Targets,
best first on each kind of machine:

    x86-64-v4   AVX-512           x86-64-v3   AVX2 and FMA          x86-64   older ones: not built, Numba's
    aarch64     every 64-bit ARM processor, with NEON

Every kernel is exported as one C function with one argument, the address of its slots: 8 bytes each, native byte order,
in the order of the signature. An array takes 1 + ndim slots (address, then each dimension), an integer or a boolean
one as int64 (uint64 where the kernel says so), a float one as float64. What the kernel returns is int64, uint64 or
float64. One address is all that crosses, so a call whose arguments stay the same is packed once and costs a fraction
of a microsecond afterwards. `hedgerow_kernels` in each build is text: target, digest and compiler, then one line
`symbol signature` for each kernel.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import platform
import re
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

SOURCES = Path(__file__).parent
BUILDS = SOURCES / "native"
V3_FLAGS = frozenset(
    ["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "sse4_1", "sse4_2", "ssse3", "popcnt", "cx16"]
)
V4_FLAGS = V3_FLAGS | frozenset(["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"])

_SIGNATURE = re.compile(r"(\w+)\((.*)\)")
_ARGUMENT = re.compile(r"(\w+)(?:\[((?::,)*)::1\])?(?:,|$)")
_RETURNS = {
    "void": None,
    "int64": ctypes.c_int64,
    "uint64": ctypes.c_uint64,
    "boolean": ctypes.c_bool,
    "float32": ctypes.c_double,
    "float64": ctypes.c_double,
}
_SHORT = {"b1": "boolean", "f4": "float32", "f8": "float64"} | {
    f"{sign[0]}{bits // 8}": f"{sign}int{bits}".replace("iint", "int")
    for sign in ("i", "u")
    for bits in (8, 16, 32, 64)
}
_NOTHING = ctypes.c_char * 0


class Argument(NamedTuple):
    """One argument of a signature: the name of its type, and its dimensions (0 for a number)."""

    kind: str
    ndim: int


class Signature(NamedTuple):
    """A parsed signature; kinds are Numba's long names."""

    returns: str
    arguments: tuple[Argument, ...]


def parse(signature: str) -> Signature:
    """Read `float64(float32[:, ::1], i8)`; every array is C-contiguous and writable.

    Raises:
        ValueError: something else than that.
    """
    text = re.sub(r"\s", "", signature)
    whole = _SIGNATURE.fullmatch(text)
    inside = whole[2] if whole else ""
    found = list(_ARGUMENT.finditer(inside))
    if whole is None or "".join(part[0] for part in found) != inside:
        raise ValueError(f"the kernel signature {signature!r} is not 'result(type, type[:, ::1], ...)'")
    arguments = tuple(
        Argument(_SHORT.get(part[1], part[1]), 0 if part[2] is None else part[2].count(":") + 1) for part in found
    )
    return Signature(_SHORT.get(whole[1], whole[1]), arguments)


@functools.cache
def digest() -> str:
    """Give the digest of the kernels' sources, 16 hexadecimal digits: the name that a build and its sources share."""
    total = hashlib.sha256()
    for file in sorted(SOURCES.glob("*.py")):
        total.update(f"{file.name} {file.stat().st_size}\n".encode())
        total.update(file.read_bytes())
    return total.hexdigest()[:16]


@functools.cache
def targets() -> tuple[str, ...]:
    """Give the targets whose builds this machine can run, best first; empty on a machine we build nothing for."""
    machine = platform.machine().lower()
    if machine in {"aarch64", "arm64"}:
        return ("aarch64",)
    if machine not in {"x86_64", "amd64"}:
        return ()
    try:
        found = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    flags = set(found[1].split()) if found else set()
    best = ["x86-64-v4"] if flags >= V4_FLAGS else []
    return (*best, *(["x86-64-v3"] if flags >= V3_FLAGS else []), "x86-64")


def machine() -> str:
    """Say what this machine is, as its builds are named."""
    return next(iter(targets()), platform.machine())


def find(asked: str) -> Path | None:
    """Give the build to use: the best that fits and is there, or the one that `asked` names (a target, or a path).

    Raises:
        ImportError: the build that was asked for is not there, or not for this machine.
    """
    if "/" in asked:
        return Path(asked)
    if asked and asked not in targets():
        raise ImportError(
            f"HEDGEROW_KERNELS={asked} does not fit this machine, which can run {', '.join(targets())} or jit"
        )
    for target in [asked] if asked else targets():
        build = BUILDS / f"{target}-{digest()}.so"
        if build.exists():
            return build
    if asked:
        raise ImportError(f"HEDGEROW_KERNELS={asked}, but {build} is not there: run make kernels, or set it to jit")
    return None


class Library:
    """One loaded build."""

    def __init__(self, path: Path) -> None:
        try:
            self._library = ctypes.CDLL(str(path))
            text = ctypes.string_at(ctypes.addressof(ctypes.c_char.in_dll(self._library, "hedgerow_kernels"))).decode()
        except (OSError, ValueError) as error:
            raise ImportError(f"the kernels in {path} cannot be loaded ({error}): set HEDGEROW_KERNELS=jit") from error
        head, *lines = text.splitlines()
        self.target, built_from, self.compiler = head.split(" ", 2)
        if self.target not in targets():
            raise ImportError(f"the kernels in {path} are for {self.target}, which this {machine()} cannot run")
        if built_from != digest():
            raise ImportError(f"the kernels in {path} were built from other sources: run make kernels")
        self.signatures = dict(line.split(" ", 1) for line in lines)

    def kernel(self, module: str, name: str, signature: str) -> Kernel:
        """Give the kernel of that module and name, which the build has with that signature, or is not of its digest."""
        symbol = symbol_of(module, name)
        assert self.signatures[symbol] == signature, f"{symbol} was built as {self.signatures[symbol]}"
        return Kernel(self._library[symbol], module, name, signature)


def symbol_of(module: str, name: str) -> str:
    """Give the C name of a kernel: its file's and its own."""
    return f"{module.rpartition('.')[2]}_{name}"


class Kernel:
    """A compiled kernel, called like the function it was; arguments are checked, never converted."""

    def __init__(self, function: ctypes._NamedFuncPointer, module: str, name: str, signature: str) -> None:
        parsed = parse(signature)
        self.__module__, self.__name__, self.signature = module, name, signature
        self._function = function
        function.restype = _RETURNS[parsed.returns]
        self._kinds = tuple((np.dtype(kind) if ndim else None, ndim) for kind, ndim in parsed.arguments)
        self._layout = struct.Struct("=" + "".join(map(_layout, parsed.arguments)))

    def __repr__(self) -> str:
        return f"<kernel {self.__name__}: {self.signature}>"

    def __call__(self, *arguments):
        """Run it; the arrays are read and written where they lie, and other threads run meanwhile."""
        return self._function(self.pack(arguments))

    def bind(self, *arguments):
        """Give a call without arguments, which runs on these; their arrays live as long as it does."""
        call = functools.partial(self._function, self.pack(arguments))
        call.arguments = arguments
        return call

    def pack(self, arguments):
        """Give the slots, as bytes.

        Raises:
            TypeError: an argument is missing, or an array has another type or shape than the signature's, is not
                C-contiguous, or is not writable.
        """
        slots = []
        try:
            for (dtype, ndim), given in zip(self._kinds, arguments, strict=True):
                if dtype is None:
                    slots.append(given)
                elif given.dtype == dtype and given.ndim == ndim:
                    # a view through the buffer protocol: refused unless the array is contiguous and writable
                    slots.append(ctypes.addressof(_NOTHING.from_buffer(given)))
                    slots.extend(given.shape)
                else:
                    raise TypeError(f"an array is {given.dtype} with {given.ndim} dimensions")  # noqa: TRY301
            return self._layout.pack(*slots)
        except (TypeError, ValueError, AttributeError, struct.error) as error:
            raise TypeError(f"{self.__name__} takes {self.signature}, C-contiguous and writable: {error}") from error


def _layout(argument: Argument) -> str:
    if argument.ndim:
        return "Q" + "q" * argument.ndim
    if argument.kind == "boolean":
        return "?7x"
    return {"f": "d", "u": "Q", "i": "q"}[argument.kind[0]]
