"""A fleet in memory, a fifth of which lies: what each device says in a round, and what the coordinator makes of it.

    honest     fine_tune ─▶ residual.step ─▶ Update ─┐
    dishonest  what the honest said ─▶ poison ───────┴─▶ judge ─▶ rules.next_numbers ─▶ the next version

Training, error feedback, the codec, the plan, the verdicts (`broker.verdicts.judge` with the gate of `admission`), the
weights, the rule, the master and how much of it is published are the product's own; nobody is late, and everybody
reports in every round. There is no MQTT, and no signature: who may speak in whose name is for the simulator's fleets.

The attackers collude and see what the honest have sent in this round before they speak. None but the two that lie
about how much they know says anything else than how many examples it has:

    label flip            trains as it should on labels c that are 9 - c; owes what it leaves out, as the honest do
    sign flip             the opposite of all that it should have said
    alie, ipm, min-max    of the honest updates of the round, see `firmware_sim.poison`; all colluders say the same
    index concentration   an honest norm against the fleet, on a sixteenth of the parameters of an update
    replay                says its first update again, as it was, and signed anew for this round
    free rider            noise, for as many examples as the contract can name
    nan                   what is no payload of finite numbers
    boosted lie           label flip, exactly as long as `guarded` tempers nobody (twice the median of the honest), for
                          as many examples as the contract can name: the attacker who has read the rule
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from broker import rounds, verdicts, versions
from broker.admission import gate
from broker.aggregate import rules
from broker.config import Config, Model, Recipe
from broker.config import Fleet as FleetName
from broker.effects import Last, Pending, RoundRow
from broker.plans import is_dense, plan_of
from broker.registry import first_version
from broker.standing import Standings
from broker.voice import Identity
from engine import frozen, train
from engine.codec import residual
from engine.codec.update import dense
from engine.frame import frame_of
from engine.master import Numbers
from engine.models.scheme import load_params
from firmware_sim import attacks, data, poison
from wire.limits import EXAMPLES_MAX
from wire.messages import PARAMS_FILE, Update, digest_of, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from engine.codec.residual import Owed, Sent
    from engine.frame import Frame
    from firmware_sim.poison import Delta

    Examples = tuple[NDArray[Any], NDArray[np.int32]]  # features at the cut, labels

MODEL: Final = Path(__file__).parents[1] / "firmware_sim/models/digits.tflite"
TRAIN: Final = "last-2"
FLEET: Final = "bench"
NONE: Final = "none"
ATTACKS: Final = (
    "label flip", "sign flip", "alie", "ipm", "min-max", "index concentration", "replay", "free rider", "nan",
)  # fmt: skip
BOOSTED: Final = "boosted lie"
KEEPS: Final = {"dense": 1.0, "1 %": 0.01, "0.1 %": 0.001}
ROUNDS: Final = {"dense": 20, "1 %": 25, "0.1 %": 40}  # by when an honest fleet has learned nearly all that it can
PUBLISHED: Final = {"dense": 1.0, "1 %": 0.1, "0.1 %": 0.01}  # these two as `benchmarks/accuracy_runs.py` has them
RATES: Final = {"dense": 1.0, "1 %": 2.0, "0.1 %": 2.0}  # the coordinator's
SCORED: Final = 3  # versions, the last ones, whose mean accuracy is the fleet's
DEVICES: Final = 20
DISHONEST: Final = 4
CLASSES: Final = 10
OWN: Final = "Dirichlet 0.1, liars' own"  # the dishonest hold data that nobody else has
SPLITS: Final = {"even": 1e6, "Dirichlet 0.5": 0.5, "Dirichlet 0.1": 0.1, OWN: 0.1}  # name → alpha
NO_CLIP: Final = 1e6  # the largest that a plan may name
CONCENTRATED_PER_KEPT: Final = 16
BOOST: Final = 2.0  # medians: engine.robust.SPREAD


@dataclass(frozen=True, eq=False)
class Ground:
    """Whose digits are learned, and how they are dealt. `data.windows` are features at the cut of `frame`."""

    task: str
    split: str
    frame: Frame
    data: data.Dataset
    alpha: float
    learning_rate: float
    rows_max: int  # of a device: it learns from no more
    is_own: bool = False  # have the dishonest data of their own, which then nobody else has?

    def deal(self, seed: int, liars: Sequence[int]) -> tuple[list[tuple[str, Examples]], Examples]:
        """What each of DEVICES holds, `liars` among them; and what nobody holds.

        As in the published tables all data is dealt among the honest, so that an attack takes no knowledge away by its
        absence; each liar holds a copy of what one honest device has.
        """
        chance = np.random.default_rng(seed)
        shares = data.share(self.data, DEVICES if self.is_own else DEVICES - len(liars), seed, self.alpha)
        held = [_some(share, self.rows_max, chance) for _, share in sorted(shares.devices.items())]
        if not self.is_own:
            copies = [held[other] for other in chance.choice(len(held), len(liars), replace=False)]
            for place, copy in zip(sorted(liars), copies, strict=True):
                held.insert(place, copy)
        return [(f"device-{place:02}", share) for place, share in enumerate(held, 1)], shares.test


class Trial(NamedTuple):
    """One run: `kept` is a key of KEEPS, `attack` one of ATTACKS, BOOSTED or NONE."""

    ground: Ground
    rule: str
    kept: str
    attack: str
    seed: int


class Outcome(NamedTuple):
    """What became of one run."""

    accuracy: float
    curve: tuple[float, ...]  # of each version that a round made
    refused: dict[str, int]  # updates of the dishonest, by verdict


def grounds(folder: Path | None) -> Iterator[Ground]:
    """The digits, dealt in each way of SPLITS; then, where `folder` holds MNIST, its digits by writer."""
    frame = frame_of(MODEL.read_bytes(), TRAIN)
    digits = _features(frame, data.digits())
    for split, alpha in SPLITS.items():
        yield Ground("digits", split, frame, digits, alpha, 0.01, 4096, split == OWN)
    if folder is not None:
        yield Ground("mnist", "by writer", frame, _features(frame, data.read(folder)), data.ALPHA, 0.02, 48)


def run(trial: Trial, count: int = 0) -> Outcome:
    """Teach one fleet for `count` rounds, at 0 for those of its lane."""
    fleet = _Fleet(trial)
    curve = []
    for _ in range(count or ROUNDS[trial.kept]):
        fleet.round()
        curve.append(fleet.accuracy())
    newest = curve[-SCORED:]
    return Outcome(sum(newest) / len(newest), tuple(curve), dict(fleet.coordinator.refused))


class _Coordinator:
    """Judges, stores and adds, by the product's own functions."""

    def __init__(self, trial: Trial) -> None:
        ground, kept, seed = trial.ground, trial.kept, trial.seed
        recipe = Recipe(learning_rate=ground.learning_rate, keep_rate=KEEPS[kept], seed=seed)
        manifest, blobs, remainder = first_version(MODEL.read_bytes(), "digits", TRAIN, reset_seed=seed)
        self.frame = ground.frame
        self.plan = plan_of(Config(FleetName(FLEET), Model("digits", TRAIN), plan=recipe), manifest, self.frame)
        self.version = 1
        self.refused: Counter[str] = Counter()
        params = next(file.digest for file in manifest.files if file.name == PARAMS_FILE)
        self._numbers = Numbers(blobs[params], remainder)
        self._most = versions.publish_max(PUBLISHED[kept], self.plan)
        self._rule, self._rate, self._state = rules.rule_named(trial.rule), RATES[kept], b""
        self._identity = Identity(FLEET, _silent, _deaf, gate(lambda _plan: self.frame))
        self._rounds: dict[int, RoundRow] = {}
        self._last: dict[str, Last] = {}
        self._stored: dict[tuple[str, int], bytes] = {}
        self._pending: list[Pending] = []

    def params(self) -> NDArray[Any]:
        """Of the newest version, [P]."""
        return load_params(self.frame.suffix, self._numbers.published)

    def open(self) -> int:
        """A round over the newest version; gives its number, which is the version's."""
        self._rounds[self.version] = RoundRow(self.version, self.plan, "open", 1, 0, 1, self.version)
        return self.version

    def hear(self, name: str, update: Update) -> None:
        """Judge an update, and store it if it is accepted."""
        digest = digest_of(encode(update))
        known = self._last.get(name), self._rounds, None
        verdict, _ = verdicts.judge(name, update, digest, known, identity=self._identity, standings=Standings({}, {}))
        if verdict != "accepted":
            self.refused[verdict] += 1
            return
        self._last[name] = Last(update.round_id, digest)
        self._stored[name, update.round_id] = update.payload
        weight = min(update.num_examples, self.plan.num_examples_max)
        self._pending.append(Pending(name, update.round_id, update.base_version, weight))

    def close(self) -> None:
        """Make the next version of what waits."""
        members = rounds.members(self._pending, self.version)
        recipe = rules.Recipe(self._rule, self._rate, self._most, self.version, self.version, dense=is_dense(self.plan))
        made = rules.next_numbers(
            self.frame, self._numbers, members, lambda *key: self._stored[key], recipe, rule_state=self._state
        )
        self._numbers, self._state = made.numbers, made.rule_state
        self._pending.clear()
        self._stored.clear()
        self.version += 1


@dataclass(eq=False)
class _Device:
    name: str
    features: NDArray[Any]
    labels: NDArray[np.int32]
    owed: Owed | None = None
    first: Update | None = None  # what it said in round 1


class _Fleet:
    """Both sides of one run."""

    def __init__(self, trial: Trial) -> None:
        self.ground, self.attack = trial.ground, trial.attack
        drawn = sorted(random.Random(f"dishonest/{trial.seed}").sample(range(DEVICES), DISHONEST))
        held, self._test = trial.ground.deal(trial.seed, drawn)
        devices = [_Device(name, *share) for name, share in held]
        self.liars = [] if self.attack == NONE else [devices[place] for place in drawn]
        self.honest = [device for device in devices if device not in self.liars]
        self.coordinator = _Coordinator(trial)
        self._chance = random.Random(f"{trial.attack}/{trial.seed}")

    def accuracy(self) -> float:
        """Of the newest version, on digits that nobody holds."""
        graph, suffix = self._graph(), self.ground.frame.suffix
        score = train.evaluate(graph, suffix, *self._test)
        return score.correct / score.count

    def round(self) -> None:
        """One round: the honest speak, the others have listened, and speak."""
        number = self.coordinator.open()
        graph = self._graph()
        said = {device.name: self._learnt(device, graph, number) for device in self.honest}
        for device in self.honest:
            self.coordinator.hear(device.name, self._update(device, said[device.name].payload, number))
        before = self.coordinator.refused.total()
        assert before == 0 or self.liars, "nobody refuses an honest device"
        told = [said[device.name] for device in self.honest]
        for device in self.liars:
            for update in self._lies(device, told, graph, number):
                self.coordinator.hear(device.name, update)
        self.coordinator.close()

    def _graph(self) -> Any:
        return self.ground.frame.graph_with(self.coordinator.params())

    def _learnt(self, device: _Device, graph: Any, number: int, *, sign: int = 1, flip: bool = False) -> Sent:
        """One training and what is said of it; `sign` and `flip` make it a lie."""
        plan, frame = self.coordinator.plan, self.ground.frame
        seed = train.mix_seed(plan.seed, device.name, number)
        recipe = train.Recipe(plan.epochs, plan.batch_size, plan.learning_rate, plan.momentum, seed)
        labels = poison.flipped_labels(device.labels, CLASSES) if flip else device.labels
        local = train.fine_tune(graph, frame.suffix, device.features, labels, recipe).params
        delta = sign * (local.astype(np.int64) - self.coordinator.params())
        sent = residual.step(delta, device.owed or residual.nothing_owed(frame), frame, self._sending(), number)
        device.owed = sent.owed
        return sent

    def _lies(self, device: _Device, told: list[Sent], graph: Any, number: int) -> Iterator[Update]:
        """What a dishonest device says in this round, message after message."""
        match self.attack:
            case "label flip":
                yield self._update(device, self._learnt(device, graph, number, flip=True).payload, number)
            case "sign flip":
                yield self._update(device, self._learnt(device, graph, number, sign=-1).payload, number)
            case "boosted lie":
                lie = self._boosted(self._learnt(device, graph, number, flip=True), told)
                yield self._update(device, self._coded(lie, number), number, EXAMPLES_MAX)
            case "replay":
                yield from self._replayed(device, graph, number)
            case "free rider":
                frame, plan = self.ground.frame, self.coordinator.plan
                noise = poison.noise(plan.num_params, plan.keep_count, frame.unit, self._chance.getrandbits(64))
                yield self._update(device, self._coded(noise, number), number, EXAMPLES_MAX)
            case "nan":
                yield self._update(device, attacks.not_numbers(told[0].payload, self._chance), number)
            case _:
                yield self._update(device, self._coded(self._colluded(told), number), number)

    def _colluded(self, told: list[Sent]) -> Delta:
        """What the colluders agree on, having seen what the honest said: whole steps [P]."""
        frame, keep_count = self.ground.frame, self.coordinator.plan.keep_count
        honest = np.stack([_steps(sent, frame) for sent in told])
        made: dict[str, Callable[[], Delta]] = {
            "alie": lambda: poison.little_is_enough(honest, poison.z_max(DEVICES, DISHONEST)),
            "ipm": lambda: poison.inner_product(honest, poison.turning(DEVICES, DISHONEST)),
            "min-max": lambda: poison.min_max(honest, frame.scale),
            "index concentration": lambda: poison.concentrated(
                honest, frame.scale, max(1, keep_count // CONCENTRATED_PER_KEPT)
            ),
        }
        return made[self.attack]()

    def _boosted(self, lie: Sent, told: list[Sent]) -> Delta:
        """The lie, exactly as long as twice the median of the honest."""
        frame = self.ground.frame
        wanted = BOOST * float(np.median([_length(sent, frame) for sent in told]))
        steps: Delta = np.rint(_steps(lie, frame) * (wanted / max(_length(lie, frame), 1e-9))).astype(np.int64)
        return steps

    def _replayed(self, device: _Device, graph: Any, number: int) -> Iterator[Update]:
        """The first update, byte for byte, which is known already; and as if it were this round's."""
        if device.first is None:
            device.first = self._update(device, self._learnt(device, graph, number).payload, number)
        else:
            yield device.first
        yield self._update(device, device.first.payload, number)

    def _coded(self, delta: Delta, number: int) -> bytes:
        """A payload of any numbers: nothing is clipped, nothing owed."""
        frame = self.ground.frame
        sending = self._sending()._replace(clip_norm=NO_CLIP)
        return residual.step(delta, residual.nothing_owed(frame), frame, sending, number).payload

    def _sending(self) -> residual.Sending:
        plan = self.coordinator.plan
        return residual.Sending(plan.keep_count, plan.value_bits, plan.coding, plan.clip_norm)

    def _update(self, device: _Device, payload: bytes, number: int, examples: int = 0) -> Update:
        return Update(number, number, examples or len(device.labels), 0, 0, payload)


def _some(share: Examples, most: int, chance: np.random.Generator) -> Examples:
    """At most so many of a device's examples, drawn by lot."""
    rows = np.sort(chance.permutation(len(share[1]))[:most])
    return share[0][rows], share[1][rows]


def _features(frame: Frame, dataset: data.Dataset) -> data.Dataset:
    windows = frozen.features(frame.model, frame.graph, frame.suffix, dataset.windows)
    return data.Dataset(dataset.name, windows, dataset.labels, dataset.owners, dataset.is_test)


def _steps(sent: Sent, frame: Frame) -> Delta:
    """What an update says, in whole steps [P]."""
    units: Delta = dense(sent.update).astype(np.int64)
    return units * frame.unit


def _length(sent: Sent, frame: Frame) -> float:
    real = _steps(sent, frame) * frame.scale.astype(np.float64)
    return float(np.sqrt((real * real).sum()))


def _silent(_said: bytes) -> bytes:
    raise AssertionError("nobody speaks to these devices")


def _deaf(_key: str) -> Any:
    raise AssertionError("nobody signs here")
