"""Shrinking: the fewest faults with which a seed still breaks the same promise.

Every fault of a run has a name, kind#number, and a world can be told to spare some: they are drawn as before, and do
not happen. Whole kinds are spared, then halves, quarters and single ones of what is left, until nothing more can be
(Zeller and Hildebrandt 2002, "Simplifying and Isolating Failure-Inducing Input"). A world without a fault goes another
way from there on, so each try is a run of its own, and what it met is asked anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from firmware_sim.storm import Verdict

TRIES_MAX: Final = 400


class Shrinker:
    """`run` lives through the seed with these faults spared. `smallest` is the best verdict so far."""

    def __init__(self, broken: Verdict, run: Callable[[frozenset[str]], Verdict]) -> None:
        self.smallest = broken
        self.spared: frozenset[str] = frozenset()
        self.tries = 0
        self._run = run

    def shrink(self) -> Verdict:
        """The verdict with the fewest faults that was found."""
        before = len(self.smallest.happened) + 1
        while len(self.smallest.happened) < before and self.tries < TRIES_MAX:
            before = len(self.smallest.happened)
            for kind in sorted({_kind(name) for name in self.smallest.happened}):
                self._without({f"{kind}#*"})
            size = len(self.smallest.happened) // 2
            while size:
                if not self._without_any(size):
                    size //= 2
        return self.smallest

    def _without_any(self, size: int) -> bool:
        """Try to spare each run of `size` faults; whether one can be spared."""
        names = self.smallest.happened
        parts = [names[at : at + size] for at in range(0, len(names), size)]
        return any(self._without(set(part)) for part in reversed(parts))

    def _without(self, names: set[str]) -> bool:
        if self.tries == TRIES_MAX:
            return False
        self.tries += 1
        spared = self.spared | names
        verdict = self._run(spared)
        if verdict.broken != self.smallest.broken or len(verdict.happened) >= len(self.smallest.happened):
            return False
        self.smallest, self.spared = verdict, spared
        return True


def _kind(name: str) -> str:
    return name.rpartition("#")[0]
