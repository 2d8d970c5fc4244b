"""Which weights are worth their memory: a `train` for a device with a given number of bytes.

The idea is Lin et al. 2022, "On-Device Training Under 256KB Memory", section 3.2 and eq. 5. First every part is tried
on its own, on data like the device's:

- what it brings to train the biases of the last k layers beside the last layer itself, for every k;
- what it brings to train, on top of that, all, a half, a quarter or an eighth of one layer's weights (its input
  channels with the largest norm), for every layer.

Then gains are taken to add up, and the set with the largest sum is sought among those whose training fits into the
memory, which the engine's own planner counts (`engine/program.py`). The search is greedy for every k, then a seeded
evolution from the best of those. A few of what it finds, and the plain `last-k` that fits, are trained for real, and
the best of them is the answer. It is a list such as `29:w,26:w/4,25:b`, which a plan ships as its `train`.

What trains and what counts memory are arguments here, so that the search itself can be tested in no time.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from engine.models.cuts import layers_of
from engine.models.graph import ABSENT, ModelError
from engine.models.scheme import SHARES, bias_of, resolve, shared_constants

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from engine.models.graph import Graph

    Measure = Callable[[str], float]  # train -> accuracy on data set aside
    Weigh = Callable[[str], int]  # train -> bytes of memory

FINALISTS: Final = 4
GAIN_MIN: Final = 0.005  # half a point: less is noise, and a hundred such gains would add up to a fairy tale
GENERATIONS: Final = 300
PARENTS: Final = 8
BIAS: Final = "b"


@dataclass(frozen=True)
class Candidate:
    """What trains: the biases of the last `depth` layers, the last layer whole, and `shares` of others' weights."""

    depth: int
    shares: tuple[tuple[int, str], ...]  # (operator, 'w' | 'w/2' | 'w/4' | 'w/8'), ascending


@dataclass(frozen=True)
class Scheme:
    """A candidate with what it costs and brings; `expected` sums its parts' gains over the last layer alone."""

    train: str
    memory_bytes: int
    expected: float
    accuracy: float | None = None  # measured, where it came to that


@dataclass
class Contributions:
    """What each part brings, as differences of accuracy."""

    base: float  # the last layer alone
    biases: dict[int, float] = field(default_factory=dict)  # depth: over the last layer alone
    weights: dict[tuple[int, str], float] = field(default_factory=dict)  # (operator, share): over biases down to it


def train_of(graph: Graph, candidate: Candidate) -> str:
    """Write a candidate as `train`; layers without a bias and without weights in it are left out."""
    layers = layers_of(graph)[-candidate.depth :]
    shared = shared_constants(graph)
    wishes = dict.fromkeys(layers, BIAS) | dict(candidate.shares) | {layers[-1]: "w"}
    return ",".join(
        f"{op}:{wish}" for op, wish in wishes.items() if wish != BIAS or bias_of(graph.operators[op], shared) != ABSENT
    )


def trials(graph: Graph) -> Iterator[Candidate]:
    """Give every candidate that `contributions` measures, from the last layer back to the first that can train."""
    layers = layers_of(graph)
    yield Candidate(1, ())
    for depth in range(2, len(layers) + 1):
        try:
            resolve(graph, f"last-{depth}")
        except ModelError:
            return
        yield Candidate(depth, ())
        for share in SHARES:
            yield Candidate(depth, ((layers[-depth], share),))


def contributions(graph: Graph, measure: Measure) -> Contributions:
    """Measure every part of the model on its own."""
    found: Contributions | None = None
    for candidate in trials(graph):
        accuracy = measure(train_of(graph, candidate))
        if found is None:
            found = Contributions(accuracy, {1: 0.0})
        elif candidate.shares:
            found.weights[candidate.shares[0]] = accuracy - found.base - found.biases[candidate.depth]
        else:
            found.biases[candidate.depth] = accuracy - found.base
    assert found is not None, "a model has a last layer"
    return found


def search(
    graph: Graph,
    found: Contributions,
    weigh: Weigh,
    memory_bytes: int,
    seed: int,
    *,
    reach: Callable[[int], None] = lambda _: None,
) -> list[Scheme]:
    """Give the schemes found that take at most `memory_bytes`, best first; at least one.

    `reach` is told how many of `search_steps` are done. Raises ModelError where not even the last layer fits.
    """
    known: dict[str, int] = {}

    def judged(candidate: Candidate) -> Scheme:
        train = train_of(graph, candidate)
        if train not in known:
            known[train] = weigh(train)
        return Scheme(train, known[train], _expected(found, candidate))

    least = judged(Candidate(1, ()))
    if least.memory_bytes > memory_bytes:
        raise ModelError(
            f"training the last layer alone takes {least.memory_bytes} bytes, and {memory_bytes} are allowed; "
            "allow more, or choose a smaller model"
        )
    pool: dict[Candidate, Scheme] = {}
    for done, depth in enumerate(found.biases):
        pool.update(_greedy(graph, found, depth, judged, memory_bytes))
        whole = Candidate(depth, tuple((op, "w") for op in layers_of(graph)[-depth:-1]))
        if (scheme := judged(whole)).memory_bytes <= memory_bytes:
            pool[whole] = scheme
        reach(done)
    rng = random.Random(seed)
    for done in range(GENERATIONS):
        parents = sorted(pool, key=lambda candidate: _rank(pool[candidate]))[:PARENTS]
        child = _mutated(graph, found, rng.choice(parents), rng)
        if child not in pool and (scheme := judged(child)).memory_bytes <= memory_bytes:
            pool[child] = scheme
        reach(len(found.biases) + done)
    distinct = {scheme.train: scheme for scheme in pool.values()}
    return sorted(distinct.values(), key=_rank)


def search_steps(found: Contributions) -> int:
    """How many steps a search has."""
    return len(found.biases) + GENERATIONS


def finalists(schemes: list[Scheme]) -> list[Scheme]:
    """Give the best scheme of each first layer, for the few best first layers, and the largest that trains all whole.

    Gains do not quite add up, so what is measured in the end should differ in more than a detail; and where the search
    was led astray, `last-k` is the one to beat.
    """
    firsts: dict[str, Scheme] = {}
    for scheme in schemes:
        firsts.setdefault(scheme.train.split(":")[0], scheme)
    whole = [scheme for scheme in schemes if all(part.endswith(":w") for part in scheme.train.split(","))]
    chosen = [*list(firsts.values())[:FINALISTS], max(whole, key=lambda scheme: scheme.memory_bytes)]
    return list(dict.fromkeys(chosen))


def best_measured(schemes: list[Scheme], measure: Measure) -> list[Scheme]:
    """Train the schemes for real; give them best first, of equals the smaller."""
    tried = [Scheme(scheme.train, scheme.memory_bytes, scheme.expected, measure(scheme.train)) for scheme in schemes]
    return sorted(tried, key=lambda scheme: (-(scheme.accuracy or 0.0), scheme.memory_bytes, scheme.train))


def _greedy(
    graph: Graph, found: Contributions, depth: int, judged: Callable[[Candidate], Scheme], memory_bytes: int
) -> Mapping[Candidate, Scheme]:
    """From the biases of the last `depth` layers on, take what brings most per byte while it fits."""
    current = Candidate(depth, ())
    scheme = judged(current)
    if scheme.memory_bytes > memory_bytes:
        return {}
    while True:
        steps = []
        for operator in layers_of(graph)[-depth:-1]:
            for share in SHARES:
                step = _with(current, operator, share)
                gain = _expected(found, step) - scheme.expected
                if gain > GAIN_MIN:
                    after = judged(step)
                    if after.memory_bytes <= memory_bytes:
                        steps.append((gain / max(1, after.memory_bytes - scheme.memory_bytes), gain, step, after))
        if not steps:
            return {current: scheme}
        _, _, current, scheme = max(steps, key=lambda entry: (entry[0], entry[1], entry[3].train))


def _mutated(graph: Graph, found: Contributions, parent: Candidate, rng: random.Random) -> Candidate:
    """Change how deep biases train, or the share of one layer, or swap two layers' shares."""
    layers = layers_of(graph)
    if rng.random() < 0.3 or parent.depth == 1:
        depth = rng.choice(sorted(found.biases))
        inside = set(layers[-depth:-1])
        return Candidate(depth, tuple((op, share) for op, share in parent.shares if op in inside))
    child = parent
    for _ in range(rng.choice((1, 2))):
        child = _with(child, rng.choice(layers[-parent.depth : -1]), rng.choice([*SHARES, BIAS]))
    return child


def _with(candidate: Candidate, operator: int, share: str) -> Candidate:
    """The candidate with this share of one layer's weights instead; BIAS takes them out."""
    shares = {**dict(candidate.shares), operator: share}
    return Candidate(candidate.depth, tuple((op, kept) for op, kept in sorted(shares.items()) if kept != BIAS))


def _expected(found: Contributions, candidate: Candidate) -> float:
    return found.biases[candidate.depth] + sum(found.weights[part] for part in candidate.shares)


def _rank(scheme: Scheme) -> tuple[float, int, str]:
    return -scheme.expected, scheme.memory_bytes, scheme.train
