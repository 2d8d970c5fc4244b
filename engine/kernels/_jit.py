"""The one place where Numba and its flags are chosen.

Every kernel is compiled with the same four promises. `fastmath=False`: LLVM may not reorder or contract a sum,
so x86-64 and aarch64 give the same bits. `error_model="numpy"`: a division by zero is an IEEE infinity, which
callers look for, and never a Python exception inside a loop. `cache=True`: machine code is kept on disk, so a
short-lived training child does not compile. `nogil=True`: a coordinator may decode while it listens.
"""

try:
    import numba
except ImportError as error:
    raise ImportError("training needs Numba: pip install hedgerow[jit]") from error

kernel = numba.njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
