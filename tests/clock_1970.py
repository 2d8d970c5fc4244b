"""A process whose clock stands five minutes into 1970: a small library, loaded before the C library, says so."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

_SOURCE = """
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
time_t time(time_t *t) { if (t) *t = 300; return 300; }
int gettimeofday(struct timeval *tv, void *zone) { tv->tv_sec = 300; tv->tv_usec = 0; return 0; }
int clock_gettime(clockid_t id, struct timespec *ts) {
    int failed = syscall(SYS_clock_gettime, id, ts);
    if (id == CLOCK_REALTIME) ts->tv_sec = 300;
    return failed;
}
"""


def environment(directory: Path) -> dict[str, str]:
    """The environment of such a process; the test that asks is skipped where there is no C compiler."""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    (directory / "1970.c").write_text(_SOURCE)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", "1970.so", "1970.c"], cwd=directory, check=True)
    return {**os.environ, "LD_PRELOAD": str(directory / "1970.so")}
