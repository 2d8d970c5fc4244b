"""How good the model is where it is used, by group, and whether it fades: drift. Pure.

Each update says how many of its device's held-out examples the base version answered right. Versions are taken in
windows of WINDOW, back from the newest, and in a window a device counts once, with its newest report, so that whoever
comes often has no more say.

The newest window is compared with each of the LOOK_BACK before it that has enough examples, as it has itself, by a
two-proportion z test of one side: is the share of right answers smaller now? Examples of one device are alike, so the
variance is that between devices where it is larger than that of independent answers. The window that speaks loudest for
drift is told; its p is multiplied by the number of windows asked (Bonferroni). Drift is a p below P_MAX and a drop of
at least DROP_MIN, so that a large fleet raises no alarm over nothing.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from broker.groups import Groups
    from broker.rows import StoredUpdate

WINDOW: Final = 5
LOOK_BACK: Final = 20
EXAMPLES_MIN: Final = 50
P_MAX: Final = 0.01
DROP_MIN: Final = 0.02
ALL: Final = "(all)"  # the group of every device; no tag begins with a bracket

Verdict: TypeAlias = Literal["drift", "steady", "too few"]
Report: TypeAlias = tuple[int, int]  # right answers, examples: one device's


class Window(Struct, frozen=True):
    """What the devices of a group reported of the versions `first` to `last`, each once."""

    first: int
    last: int
    devices: int
    correct: int
    count: int
    between: float  # the variance of the accuracy, by how devices differ

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return self.correct / self.count


class Fading(Struct, frozen=True):
    """One group over the versions, and the test's answer: `best` is the window that the newest was compared with."""

    group: str
    windows: tuple[Window, ...]  # oldest first, those that have reports
    verdict: Verdict
    best: Window | None = None
    drop: float = 0.0
    p: float = 1.0


def fading(updates: Iterable[StoredUpdate], groups: Groups) -> list[Fading]:
    """The whole fleet, and each group that has reports, if there are groups; empty where no device reported ever."""
    newest: dict[tuple[int, str], tuple[int, Report]] = {}
    reports = [update for update in updates if update.held_out_count]
    last = max((update.base_version for update in reports), default=0)
    for update in reports:
        key = (last - update.base_version) // WINDOW, update.device_id
        told = update.base_version, (update.held_out_correct, update.held_out_count)
        newest[key] = max(newest.get(key, told), told)
    members: dict[str, dict[int, list[Report]]] = {}
    for (ago, device_id), (_, report) in newest.items():
        for group in (ALL, *(groups.of(device_id) if groups.names else ())):
            members.setdefault(group, {}).setdefault(ago, []).append(report)
    return [_judged(group, _windows(last, members[group])) for group in sorted(members, key=lambda g: (g != ALL, g))]


def _windows(last: int, reports: dict[int, list[Report]]) -> tuple[Window, ...]:
    return tuple(
        _window(max(1, last - (ago + 1) * WINDOW + 1), last - ago * WINDOW, reports[ago])
        for ago in sorted(reports, reverse=True)
    )


def _window(first: int, last: int, reports: Sequence[Report]) -> Window:
    """The variance is that of a ratio of sums over devices (Cochran 1977, section 6.3)."""
    correct, count, many = sum(right for right, _ in reports), sum(n for _, n in reports), len(reports)
    squares = sum((right - correct / count * n) ** 2 for right, n in reports)
    between = many / (many - 1) * squares / count**2 if many > 1 else 0.0
    return Window(first, last, many, correct, count, between)


def _judged(group: str, windows: tuple[Window, ...]) -> Fading:
    now, before = windows[-1], [window for window in windows[-1 - LOOK_BACK : -1] if window.count >= EXAMPLES_MIN]
    if now.count < EXAMPLES_MIN or not before:
        return Fading(group, windows, "too few")
    p, best = min(((_p_of(window, now), window) for window in before), key=lambda found: (found[0], -found[1].last))
    p, drop = min(1.0, p * len(before)), best.accuracy - now.accuracy
    return Fading(group, windows, "drift" if p < P_MAX and drop >= DROP_MIN else "steady", best, drop, p)


def _p_of(then: Window, now: Window) -> float:
    """How likely so large a drop would be if nothing had changed."""
    share = (then.correct + now.correct) / (then.count + now.count)
    alone = share * (1 - share) * (1 / then.count + 1 / now.count)
    variance = max(alone, then.between + now.between)
    return 0.5 * math.erfc((then.accuracy - now.accuracy) / math.sqrt(2 * variance)) if variance else 1.0
