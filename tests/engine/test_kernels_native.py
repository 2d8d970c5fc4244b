"""Kernels compiled ahead of time: the choice between them and Numba, how they are called, and that they are equal."""

import ast
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engine.kernels import _native
from tests.targets import builds

ROOT = Path(__file__).parents[2]
NUMBA = builds.script().NUMBA


@pytest.fixture(scope="module")
def build():
    """The build this machine would choose; tests that need one are skipped where it cannot be made."""
    target = _native.targets()[0]
    if reason := builds.missing(target):
        pytest.skip(reason)
    return builds.build(target)


@pytest.fixture(scope="module")
def library(build):
    return _native.Library(build)


def python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


SAY = "from engine.kernels._jit import kernels_in_use; print(kernels_in_use())"


def test_without_a_build_and_without_numba_the_reader_is_told_what_to_install():
    code = f"import sys; sys.modules['numba'] = None; {SAY}"
    said = python(code, HEDGEROW_KERNELS="jit")
    assert said.startswith("ImportError: training needs kernels: ")
    assert "pip install hedgerow[jit]" in said


def test_without_a_build_numba_compiles():
    said = python(SAY, HEDGEROW_KERNELS="jit")
    assert said.startswith("Numba ")
    assert said.endswith(f"compiled here for {_native.targets()[0]}")


def test_a_build_that_was_asked_for_and_is_not_there_is_refused():
    code = "import engine.kernels._native as n; from pathlib import Path; n.BUILDS = Path('/nowhere'); n.find('{}')"
    target = _native.targets()[0]
    assert python(code.format(target)).startswith(f"ImportError: HEDGEROW_KERNELS={target}, but /nowhere/{target}-")
    assert "does not fit this machine" in python(code.format("s390x"))
    assert python(SAY, HEDGEROW_KERNELS="/nowhere/a.so").startswith(
        "ImportError: the kernels in /nowhere/a.so cannot be"
    )


def test_the_best_build_that_fits_is_found_and_one_of_other_sources_never(tmp_path, monkeypatch):
    monkeypatch.setattr(_native, "BUILDS", tmp_path)
    monkeypatch.setattr(_native, "targets", lambda: ("x86-64-v4", "x86-64-v3"))
    assert _native.find("") is None
    (tmp_path / "x86-64-v4-0123456789abcdef.so").touch()
    assert _native.find("") is None
    second = tmp_path / f"x86-64-v3-{_native.digest()}.so"
    second.touch()
    assert _native.find("") == second
    first = tmp_path / f"x86-64-v4-{_native.digest()}.so"
    first.touch()
    assert _native.find("") == first
    assert _native.find("x86-64-v3") == second


def test_a_build_under_a_false_name_is_refused(build, monkeypatch):
    monkeypatch.setattr(_native, "digest", lambda: "0123456789abcdef")
    with pytest.raises(ImportError, match="built from other sources"):
        _native.Library(build)


def test_a_build_for_another_processor_is_refused(build, monkeypatch):
    monkeypatch.setattr(_native, "targets", lambda: ("x86-64",))
    with pytest.raises(ImportError, match="which this x86-64 cannot run"):
        _native.Library(build)


def test_something_else_than_a_build_is_refused(tmp_path):
    (tmp_path / "a.so").write_bytes(b"no library")
    with pytest.raises(ImportError, match="set HEDGEROW_KERNELS=jit"):
        _native.Library(tmp_path / "a.so")


@pytest.mark.parametrize(
    ("machine", "flags", "want"),
    [
        ("x86_64", _native.V4_FLAGS, ("x86-64-v4", "x86-64-v3", "x86-64")),
        ("x86_64", _native.V4_FLAGS - {"avx512vl"}, ("x86-64-v3", "x86-64")),
        ("x86_64", _native.V3_FLAGS - {"fma"}, ("x86-64",)),
        ("aarch64", frozenset(), ("aarch64",)),
        ("armv7l", frozenset(), ()),
    ],
)
def test_a_processor_is_known_by_its_flags(machine, flags, want, monkeypatch):
    monkeypatch.setattr(_native.platform, "machine", lambda: machine)
    monkeypatch.setattr(_native.Path, "read_text", lambda _: f"model name\t: x\nflags\t\t: {' '.join(sorted(flags))}\n")
    assert _native.targets.__wrapped__() == want


def test_a_build_has_every_kernel_with_its_signature(library):
    written = {}
    for file in sorted((ROOT / "engine/kernels").glob("[a-z]*.py")):
        for node in ast.parse(file.read_text()).body:
            match node:
                case ast.FunctionDef(name=name, decorator_list=[ast.Call(args=[ast.Constant(value=signature)])]):
                    written[f"{file.stem}_{name}"] = signature
    assert library.signatures == written


def test_a_build_needs_nothing_whose_result_differs_between_machines(build):
    assert set(builds.script().undefined(build)) <= {"memset", "memcpy", "memmove", "floorf"}


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm, of binutils")
def test_what_we_read_of_a_build_is_what_nm_reads(build):
    said = subprocess.run(["nm", "-D", "-u", build], capture_output=True, text=True, check=True).stdout
    assert sorted(line.split()[-1] for line in said.splitlines()) == sorted(builds.script().undefined(build))


def test_with_a_build_neither_numba_nor_llvm_is_loaded(build):
    code = """
import pkgutil, sys, engine
for module in pkgutil.walk_packages(engine.__path__, "engine."):
    if not module.name.rpartition(".")[2].startswith("_") and module.name != "engine.models.interpreter":
        __import__(module.name)
from engine.kernels.warm import warm
heard = []
warm(heard.append)
print(len(heard), sorted({"numba", "llvmlite"} & set(sys.modules)))
"""
    assert python(code, HEDGEROW_KERNELS=str(build)) == f"{len(_native.Library(build).signatures)} []"


def test_every_kernel_does_the_same_to_the_bit_in_a_build_and_under_numba(build, library):
    numba, ours = both(build, "-m", "tests.targets.replay", builds.calls())
    assert ours == numba
    tried = {_native.symbol_of(*kernel.split()) for kernel in ours}
    assert tried == set(library.signatures), "these kernels are called by no test, or no longer exist"


def test_a_build_and_numba_train_to_the_same_bits(build):
    numba, ours = both(build, "-m", "tests.targets.training")
    assert ours == numba
    assert len(ours) >= 3


def both(build, *program):
    """What a program prints under Numba, and with the build."""
    said = [json.loads(builds.run(*program, kernels=kernels)) for kernels in ("jit", build)]
    assert [one.pop("in use").partition(",")[0] for one in said] == [f"Numba {NUMBA}", _native.Library(build).target]
    return said


@pytest.fixture
def update_bias(library):
    signature = library.signatures["update_update_bias_float"]
    return library.kernel("engine.kernels.update", "update_bias_float", signature)


def row(*numbers):
    return np.array(numbers, np.float32)


def tally():
    return np.zeros(4, np.int64)


def test_a_kernel_is_called_like_a_function(update_bias, library):
    bias = row(1, 2)
    assert update_bias(bias, row(2, 4), 0.5, tally()) is None
    assert bias.tolist() == [0, 0]
    finite = library.kernel("engine.kernels.optimize", "all_finite", "boolean(float32[::1])")
    assert finite(bias) is True
    assert finite(row(1, np.nan)) is False
    assert finite(row()) is True
    clip = library.kernel("engine.kernels.optimize", "clip_to_norm", "float64(float32[::1], float64)")
    assert clip(row(3, 4), 1.0) == 5.0
    within = library.kernel("engine.kernels.reduce", "units_within", "boolean(int32[::1], int64)")
    assert within(np.array([-3, 4], np.int32), np.int64(4)) is True


def test_bound_arguments_are_read_anew_at_each_call_and_live_as_long(update_bias):
    bias, grad = row(0, 0), row(1, 1)
    step = update_bias.bind(bias, grad, True, tally())
    step()
    grad[0] = 5
    del grad
    step()
    assert bias.tolist() == [-6, -2]


READ_ONLY = np.frombuffer(bytes(8), np.float32)
BAD = {
    "too few": (row(1), row(1), 0.5),
    "too many": (row(1), row(1), 0.5, tally(), tally()),
    "float64": (row(1), np.ones(1), 0.5, tally()),
    "foreign byte order": (row(1), row(1).astype(">f4"), 0.5, tally()),
    "two dimensions": (row(1), np.ones((1, 1), np.float32), 0.5, tally()),
    "not contiguous": (row(1), np.ones(4, np.float32)[::2], 0.5, tally()),
    "read-only": (row(1), READ_ONLY, 0.5, tally()),
    "a list": (row(1), [1.0], 0.5, tally()),
    "no number": (row(1), row(1), None, tally()),
    "an array for a number": (row(1), row(1), row(1, 2), tally()),
}


@pytest.mark.parametrize("arguments", BAD.values(), ids=BAD)
def test_a_wrong_argument_is_refused_and_never_reaches_the_kernel(update_bias, arguments):
    for call in (update_bias, update_bias.bind):
        with pytest.raises(TypeError, match=r"^update_bias_float takes void\(float32"):
            call(*arguments)


@pytest.mark.parametrize(
    ("text", "returns", "arguments"),
    [
        ("void()", "void", []),
        ("f8(i1[:,:,:,::1], b1)", "float64", [("int8", 4), ("boolean", 0)]),
        ("uint64(uint64, float32[::1],u2[:, ::1])", "uint64", [("uint64", 0), ("float32", 1), ("uint16", 2)]),
    ],
)
def test_a_signature_is_read_with_long_and_short_names(text, returns, arguments):
    assert _native.parse(text) == (returns, tuple(arguments))


@pytest.mark.parametrize(
    "text", ["", "void", "void(float32[:])", "void(float32[:,:])", "void(,)", "(int64)", "void(int64"]
)
def test_a_signature_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="the kernel signature"):
        _native.parse(text)


NUMBA_NAMES = {"boolean": "bool", "void": "none"}


def test_numba_reads_every_signature_as_we_do():
    sigutils = pytest.importorskip("numba.core.sigutils")
    for file in sorted((ROOT / "engine/kernels").glob("[a-z]*.py")):
        for kernel in vars(importlib.import_module(f"engine.kernels.{file.stem}")).values():
            if text := getattr(kernel, "signature", ""):
                arguments, returns = sigutils.normalize_signature(text)
                ours = _native.parse(text)
                said = [(str(getattr(one, "dtype", one)), getattr(one, "ndim", 0)) for one in arguments]
                assert said == [(NUMBA_NAMES.get(kind, kind), ndim) for kind, ndim in ours.arguments]
                assert str(returns) == NUMBA_NAMES.get(ours.returns, ours.returns)
