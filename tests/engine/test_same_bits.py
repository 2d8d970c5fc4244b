"""From sample to update bytes: no operation whose last bit differs between processors, or between libraries."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN = """
    dot vdot inner matmul tensordot einsum sum nansum mean average var std median prod cumsum norm linalg exp exp2
    expm1 log log2 log10 log1p pow power float_power sin cos tan tanh logaddexp cbrt hypot fsum ldexp erf gamma
    random convolve correlate trapz trace fma sumprod
"""
FORBIDDEN_NAMES = set(FORBIDDEN.split())
ALLOWED = {  # and why
    "kernels/_vector.py": {"inner"},  # the inner one of two loops
    "int8.py": {"exp"},  # of decimal numbers, correctly rounded
    "memory.py": {"sum"},  # of bytes
    "models/cuts.py": {"sum"},  # of operations and bytes
    "batch.py": {"cumsum", "dot", "fsum"},  # of counts; our own kernel, in one order; exact
    "robust.py": {"median"},  # it selects, and at most halves one sum of two
    "models/inspect.py": {"mean", "median", "sum"},  # a report for people; nothing is computed from it
    "models/interpreter.py": {"prod"},  # of a shape
    "models/onnx.py": {"mean"},  # the name of an operator
    "models/onnx_moves.py": {"sum"},  # of channels
    "models/onnx_windows.py": {"sum"},  # of padding
    "models/scheme.py": {"sum"},  # of parameters
    "models/shapes.py": {"sum"},  # of channels
}


def law_breakers(source):
    """Give what a source file uses of the operations whose bits differ between processors."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case (
                ast.Attribute(value=ast.Name(id="math"), attr="prod")
                | ast.ImportFrom(module="math", names=[ast.alias(name="prod")])
            ):
                pass  # of the whole numbers in a shape
            case ast.Attribute(attr=name) if name in FORBIDDEN_NAMES:
                found.append(name)
            case ast.Call(func=ast.Name(id=name)) if name in FORBIDDEN_NAMES - {"prod"}:
                found.append(name)
            case ast.ImportFrom(module=module, names=names) if module != "engine.kernels._jit":
                found += [alias.name for alias in names if alias.name in FORBIDDEN_NAMES]
            case ast.BinOp(op=ast.MatMult()) | ast.AugAssign(op=ast.MatMult()):
                found.append("@")
            case ast.BinOp(op=ast.Pow(), right=right) if not isinstance(right, ast.Constant | ast.Name):
                found.append("**")
            case ast.keyword(arg="fastmath", value=value) if not (
                isinstance(value, ast.Constant) and value.value is False
            ):
                found.append("fastmath")
            case ast.keyword(arg="parallel"):
                found.append("parallel")
            case _:
                pass
    return found


FILES = sorted((ROOT / "engine").rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT / "engine")))
def test_nothing_between_sample_and_sum_uses_an_operation_whose_bits_vary(path):
    allowed = ALLOWED.get(str(path.relative_to(ROOT / "engine")), set())
    assert set(law_breakers(path.read_text())) - allowed == set()


@pytest.mark.parametrize(
    "line",
    [
        "np.dot(a, b)",
        "a @ b",
        "x.sum()",
        "np.mean(x)",
        "np.prod(x)",
        "x.prod()",
        "np.exp(x)",
        "math.exp(x)",
        "np.linalg.norm(x)",
        "njit(fastmath=True)",
        "from math import exp",
        "from numpy import prod",
        "np.einsum('i,i', a, b)",
        "sum(x)",
        "x ** (y + 1)",
    ],
)
def test_the_search_for_such_operations_finds_them(line):
    assert law_breakers(line) != []


@pytest.mark.parametrize("line", ["from math import prod", "prod(shape)", "math.prod(shape)", "x ** 2", "x * y"])
def test_the_search_leaves_the_rest_alone(line):
    assert law_breakers(line) == []
