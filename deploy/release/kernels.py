"""Compile every kernel ahead of time: one shared object per target, into engine/kernels/native.

Run on a release machine (`make kernels`), never on a device. It needs the pinned Numba of `requirements.txt` beside
this file and a linker, but no C compiler, no headers and no machine of the target's kind: `apt-get install lld`, or
for aarch64 `binutils-aarch64-linux-gnu`.

How, for each target in a process of its own: Numba translates each kernel to LLVM's language and does not optimise it
(NUMBA_OPT=0: optimised code has instructions of one processor baked in). A C function of
our own unpacks its slots (see `engine/kernels/_native.py`) and calls it. LLVM then optimises both together for the
target and writes an object file; the linker joins them. What a build may need from outside is memset, memcpy, memmove
and floorf, whose results are the same everywhere; whatever else a kernel drags in (an exponential, an allocation, a
Python exception) is refused here.
"""

import argparse
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NUMBA = "0.68.1"
TRIPLES = {
    "x86-64-v4": "x86_64-unknown-linux-gnu",
    "x86-64-v3": "x86_64-unknown-linux-gnu",
    "aarch64": "aarch64-unknown-linux-gnu",
}
CPUS = {"aarch64": "generic"}  # LLVM knows the other targets by their own names
LINKERS = {"aarch64": ("ld.lld", "aarch64-linux-gnu-ld"), "x86_64": ("ld.lld", "ld", "x86_64-linux-gnu-ld")}
HARMLESS = {"memset", "memcpy", "memmove", "floorf"}
# LLVM would halve the vectors of AVX-512, for the sake of the first processors that had it.
FEATURES = {"x86-64-v4": "-prefer-256-bit"}
# Numba counts who holds an array. Ours belong to the caller, and counting costs up to half of a kernel's time.
COUNTING = re.compile(r"^\s*(tail )?call void @NRT_(inc|dec)ref\(.*$", re.MULTILINE)


class BuildError(Exception):
    """A build cannot be made; the message says why and what to do."""


def main() -> None:
    """Build the targets asked for, each in a process of its own, because Numba reads its settings once."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--target", action="append", choices=TRIPLES, help="may be repeated; all without it")
    parser.add_argument("--out", type=Path, default=ROOT / "engine/kernels/native")
    asked = parser.parse_args()
    try:
        if os.environ.get("HEDGEROW_BUILD_TARGET"):
            print(build(os.environ["HEDGEROW_BUILD_TARGET"], asked.out))
            return
        for target in asked.target or TRIPLES:
            # Numba compiles for this machine what it translates, and throws the result away; x86 vector instructions
            # are known only to the processors that have them
            name = target if target.startswith("x86") else "generic"
            settings = {"HEDGEROW_BUILD_TARGET": target, "NUMBA_OPT": "0", "NUMBA_CPU_NAME": name}
            environment = {**os.environ, **settings, "NUMBA_CPU_FEATURES": "", "PYTHONPATH": str(ROOT)}
            subprocess.run([sys.executable, __file__, "--out", asked.out], env=environment, check=True)
    except (BuildError, subprocess.CalledProcessError) as error:
        sys.exit(f"no kernels were built: {error}")


def build(target: str, folder: Path) -> Path:
    """Give the path of the build for `target`, made in `folder`, where older builds of that target are removed.

    Raises:
        BuildError: another Numba than the pinned one, no linker, or a kernel that needs what a device may not have.
    """
    import llvmlite.binding as llvm
    import numba

    from engine.kernels import _native
    from engine.kernels.warm import kernels

    if numba.__version__ != NUMBA:
        raise BuildError(f"this is Numba {numba.__version__}: pip install -r deploy/release/requirements.txt")
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    triple = TRIPLES[target]
    linker = _linker(triple)
    machine = llvm.Target.from_triple(triple).create_target_machine(
        cpu=CPUS.get(target, target), features=FEATURES.get(target, ""), opt=3, reloc="pic", codemodel="default"
    )
    lines = [f"{target} {_native.digest()} Numba {numba.__version__}"]
    with tempfile.TemporaryDirectory() as work:
        objects = []
        for kernel in kernels():
            symbol = _native.symbol_of(kernel.__module__, kernel.__name__)
            lines.append(f"{symbol} {kernel.signature}")
            objects.append(Path(work, f"{symbol}.o"))
            objects[-1].write_bytes(machine.emit_object(_optimised(kernel, symbol, machine)))
            if strange := set(undefined(objects[-1])) - HARMLESS:
                raise BuildError(
                    f"{symbol} needs {', '.join(sorted(strange))}, which a device may not have or which differs by "
                    f"machine: write {kernel.__module__} without what brings it in"
                )
        objects.append(Path(work, "hedgerow_kernels.o"))
        objects[-1].write_bytes(machine.emit_object(_read(_text_symbol("\n".join(lines)), machine)))
        made = Path(work, "made.so")
        subprocess.run([linker, "-shared", "-s", "-z", "now", "-z", "relro", "-o", made, *objects], check=True)
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(f"{target}-{'?' * 16}.so"):
            old.unlink()
        # named last, so that nobody ever loads half of it
        part = shutil.copy(made, folder / f"{target}.part")
        return Path(part).rename(folder / f"{target}-{_native.digest()}.so")


def _linker(triple: str) -> str:
    names = LINKERS[triple.partition("-")[0]]
    for name in names:
        if found := shutil.which(name):
            return found
    raise BuildError(f"linking for {triple} needs {' or '.join(names)}: apt-get install lld")


def _optimised(kernel: Any, symbol: str, machine: Any) -> Any:
    """Give the module with the C function `symbol`, optimised for the machine."""
    import llvmlite.binding as llvm

    entry, code = _translated(kernel)
    module = _read(COUNTING.sub("", code), machine)
    module.link_in(_read(_entry(kernel.signature, symbol, entry), machine))
    for function in module.functions:
        if not function.is_declaration:
            function.linkage = "external" if function.name == symbol else "internal"
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = True
    options.slp_vectorization = True
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(module, passes)
    module.verify()
    return module


def _translated(kernel: Any) -> tuple[str, str]:
    """Give the name and the code of a C function that takes pointers, dimensions and numbers and calls the kernel."""
    import numba

    from engine.kernels import _jit, _native

    signature = _native.parse(kernel.signature)
    types, takes, gives = [], [], []
    for place, (kind, ndim) in enumerate(signature.arguments):
        name = f"a{place}"
        takes.append(name)
        if ndim:
            types += [numba.types.CPointer(getattr(numba.types, kind)), *[numba.int64] * ndim]
            dimensions = [f"{name}_{axis}" for axis in range(ndim)]
            takes += dimensions
            gives.append(f"carray({name}, ({', '.join(dimensions)},))")
        elif kind == "boolean":
            types.append(numba.int64)
            gives.append(f"{name} != 0")
        else:
            types.append(_slot_type(kind))
            gives.append(f"{kind}({name})")
    returns = _slot_type(signature.returns)
    call = f"kernel({', '.join(gives)})"
    result = {"void": call, "boolean": f"return 1 if {call} else 0"}.get(signature.returns, f"return {call}")
    scope = {**vars(numba.types), "carray": numba.carray, "kernel": _jit.inner(kernel.function)}
    exec(f"def entry({', '.join(takes)}): {result}", scope)  # noqa: S102 - our own text, from our own signatures
    made = numba.cfunc(returns(*types), error_model="numpy")(scope["entry"])
    return made.native_name, made.inspect_llvm()


def _slot_type(kind: str) -> Any:
    import numba

    wide = {"v": numba.void, "f": numba.float64, "u": numba.uint64, "i": numba.int64, "b": numba.int64}
    return wide[kind[0]]


def _entry(signature: str, symbol: str, entry: str) -> str:
    """Give the code of the function that unpacks the slots for `entry`."""
    from engine.kernels import _native

    parsed = _native.parse(signature)
    kinds = [
        kind
        for argument in parsed.arguments
        for kind in (["ptr", *["i64"] * argument.ndim] if argument.ndim else [_llvm_type(argument.kind)])
    ]
    returns = _llvm_type(parsed.returns)
    body = []
    for place, kind in enumerate(kinds):
        body.append(f"  %s{place} = getelementptr inbounds i64, ptr %slots, i64 {place}")
        body.append(f"  %v{place} = load {kind}, ptr %s{place}, align 8")
    given = ", ".join(f"{kind} %v{place}" for place, kind in enumerate(kinds))
    result = "" if returns == "void" else "%r = "
    body.append(f'  {result}call {returns} @"{entry}"({given})')
    body.append("  ret void" if returns == "void" else f"  ret {returns} %r")
    declared = f'declare {returns} @"{entry}"({", ".join(kinds)})'
    return "\n".join([declared, f"define {returns} @{symbol}(ptr %slots) {{", *body, "}"])


def _llvm_type(kind: str) -> str:
    return {"v": "void", "f": "double"}.get(kind[0], "i64")


def _text_symbol(text: str) -> str:
    data = text.encode() + b"\0"
    escaped = "".join(f"\\{byte:02X}" for byte in data)
    return f'@hedgerow_kernels = constant [{len(data)} x i8] c"{escaped}"'


def _read(code: str, machine: Any) -> Any:
    """Parse code that was written for another processor as code for this one."""
    import llvmlite.binding as llvm

    code = re.sub(r"^target (datalayout|triple) = .*$", "", code, flags=re.MULTILINE)
    code = re.sub(r'"(target-cpu|target-features|tune-cpu)"="[^"]*"', "", code)
    module = llvm.parse_assembly(code)
    module.triple = machine.triple
    module.data_layout = str(machine.target_data)
    return module


def undefined(library: Path) -> Iterator[str]:
    """Give the names that a 64-bit ELF object or library expects from outside (ELF-64 object file format, 1998)."""
    data = library.read_bytes()
    (table,) = struct.unpack_from("<Q", data, 0x28)
    size, count = struct.unpack_from("<HH", data, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, table + size * n) for n in range(count)]
    for _, kind, _, _, start, length, link, _, _, each in sections:
        if kind in {2, 11}:  # the symbols of an object, the dynamic symbols of a library
            names = sections[link][4]
            for place in range(start + each, start + length, each):
                name, _, _, section = struct.unpack_from("<IBBH", data, place)
                if section == 0 and name:
                    yield data[names + name : data.index(b"\0", names + name)].decode()


if __name__ == "__main__":
    main()
