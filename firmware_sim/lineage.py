"""The audit: was every finished update counted, and none twice? Recomputed from outside, bit for bit.

    finished   what the devices' logs say was in an outbox on flash (its digest)
    counted    what the store says a version counts
    proved     what the parameters themselves say

The store's word is not enough: a coordinator that adds an update twice may still write down one. So the auditor
takes the first version's parameters and adds, version by version, the updates that it heard on the wire itself, in
another order and another grouping than the coordinator. Sums are exact integers, so the result must have the very
SHA-256 that the version's manifest names; and where the manifest brings a new base file, so must the base that the
auditor rescales itself. What the aggregation rule remembers from version to version the auditor makes again, too. Where
a digest is another one, the auditor tries each member out, and twice, and says which one was lost or doubled. A version
may hold a part of its round back; whether that part is right shows in the newest version, of which the store still has
the master. Where nothing explains a version, the auditor goes on from there, too.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from broker.aggregate.reading import read
from broker.aggregate.rule import Terms
from broker.aggregate.rules import real_steps
from broker.effects import Pending
from broker.estimates import Row, Said, after
from broker.plans import is_dense
from broker.registry import model_of
from broker.rounds import weigh
from broker.versions import publish_max
from engine import master
from engine.codec import estimate
from engine.frame import frame_of
from engine.master import Numbers
from engine.rescale import grown
from engine.ring import Member, Purpose
from wire.messages import MODEL_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from broker.aggregate.rule import Rule
    from broker.rows import StoredUpdate, VersionRow
    from broker.store import Store
    from engine.frame import Frame
    from wire.messages import Manifest, Plan, Update


@dataclass(frozen=True)
class Finished:
    """An update that a device wrote to its outbox."""

    device_id: str
    round_id: int
    sealed_bytes: int


@dataclass
class Lineage:
    """The numbers of one version after the other, recomputed. Starts from version 1's own."""

    frame: Frame
    numbers: Numbers | None  # None: not known, since nothing explained a version; no later one can be proved
    rule: Rule
    learning_rate: float
    publish_rate: float = 0.0  # as the coordinator's configuration says it
    rule_state: bytes = b""  # what the rule remembers of the version
    rows: dict[str, Row] = field(default_factory=dict)  # what is held of each device in lane hardened
    scale_epoch: int = 0
    version: int = 1
    proved: list[int] = field(default_factory=list)  # versions with the digest that they should have
    wrong: list[int] = field(default_factory=list)  # versions with another one
    left_out: list[tuple[str, int]] = field(default_factory=list)  # what a wrong version does not hold
    doubled: list[tuple[str, int]] = field(default_factory=list)  # what it holds twice
    from_store: int = 0  # members that the wire did not show, taken from the store

    def advance(self, store: Store, heard: Callable[[bytes], Update | None]) -> None:
        """Check every version that is new in `store`; `heard` gives the update with a digest, from the wire."""
        rows = {row.model_version: row for row in store.versions()}
        if self.version + 1 not in rows:
            return
        plans = {row.round_id: row.plan for row in store.rounds()}
        counted = [update for update in store.updates() if (update.counted_in or 0) > self.version]
        while (row := rows.get(self.version + 1)) is not None:
            mine = [update for update in counted if update.counted_in == row.model_version]
            members = self._members(store, mine, heard, plans)
            self._check(store, row, members, plans[row.round_id])
            self.scale_epoch = _manifest_of(store, row).scale_epoch

    def _members(
        self,
        store: Store,
        mine: Sequence[StoredUpdate],
        heard: Callable[[bytes], Update | None],
        plans: Mapping[int, Plan],
    ) -> list[Member]:
        """What a version counts. Of a device in lane hardened that is what is held of it after its last update."""
        found: dict[object, Member] = {}
        for update in mine:
            member, is_hardened = self._member(store, update, heard(update.digest), plans)
            found[update.device_id if is_hardened else member.key] = member
        return list(found.values())

    def _member(
        self, store: Store, stored: StoredUpdate, update: Update | None, plans: Mapping[int, Plan]
    ) -> tuple[Member, bool]:
        """What the update is by itself, or what is held after it; by the store only where the wire did not show it."""
        if update is not None:
            payload, base_version = update.payload, update.base_version
            weight = min(update.num_examples, plans[update.round_id].num_examples_max)
        else:
            self.from_store += 1
            payload, base_version, weight = (
                store.update_payload(stored.device_id, stored.round_id),
                stored.base_version,
                stored.weight,
            )
        pending = weigh(Pending(stored.device_id, stored.round_id, base_version, weight), self.version)
        follows, content = estimate.split(payload)
        update_ = read(self.frame, content)
        if follows is not None:
            held = self.rows.get(stored.device_id, Row(estimate.nothing(self.frame.suffix.num_params)))
            self.rows[stored.device_id] = held = after(held, [Said(stored.round_id, follows, update_)])
            update_ = estimate.as_update(held.estimate, self.frame.lane)
        return Member((stored.device_id, stored.round_id), update_, pending.weight), follows is not None

    def _check(self, store: Store, row: VersionRow, members: Sequence[Member], plan: Plan) -> None:
        manifest = _manifest_of(store, row)
        base = next(file.digest for file in manifest.files if file.name == MODEL_FILE)
        grows = base != hashlib.sha256(self.frame.model).digest()
        remainder = store.remainder(row.model_version)  # empty unless it is the newest version
        kept_state, self.version = store.rule_state(row.model_version), row.model_version

        def explains(tried: Sequence[Member]) -> bool:
            if self.numbers is None:
                return False
            frame, numbers, rule_state = self._add(plan, row.round_id, self.numbers, tried, grows=grows)
            digests = hashlib.sha256(numbers.published).digest(), hashlib.sha256(frame.model).digest()
            if digests != (row.params_digest, base) or numbers.remainder != (remainder or numbers.remainder):
                return False
            if rule_state != (kept_state or rule_state):
                return False
            self.frame, self.numbers, self.rule_state = frame, numbers, rule_state
            return True

        if explains(members):
            self.proved.append(row.model_version)
            return
        self.wrong.append(row.model_version)
        for at, member in enumerate(members):
            others = [*members[:at], *members[at + 1 :]]
            for found, tried in ((self.left_out, others), (self.doubled, [*members, _again(member)])):
                if tried and explains(tried):
                    found.append(member.key)
                    return
        # Nothing explains it: no member of this version is proved. Go on from what the coordinator made of it.
        self.left_out += [member.key for member in members]
        self.numbers = Numbers(store.blob(row.params_digest), remainder) if remainder else None
        self.rule_state = kept_state
        if grows:
            self.frame = frame_of(model_of(manifest, store.blob), self.frame.suffix.train)

    def _add(
        self, plan: Plan, round_id: int, numbers: Numbers, members: Sequence[Member], *, grows: bool
    ) -> tuple[Frame, Numbers, bytes]:
        """The next numbers, summed from the last member to the first, in two groups that are merged."""
        frame, rule, dense = self.frame, self.rule, is_dense(plan)
        purpose = Purpose(frame.suffix.num_params, frame.lane, round_id, self.version - 1, self.scale_epoch, dense)
        backwards = list(reversed(members))
        groups = [rule.add(rule.init(purpose), backwards[start::2]) for start in (0, 1)]
        terms = Terms(self.learning_rate, real_steps(frame), self.rule_state)
        step = rule.finish(rule.merge(groups[1], groups[0]), terms)
        after, _ = master.advance(frame, numbers, step.numbers, publish_max=publish_max(self.publish_rate, plan))
        return *((grows and grown(frame, after)) or (frame, after)), step.carried


def _again(member: Member) -> Member:
    """The same update as if it were somebody else's: what a coordinator adds who counts it twice."""
    device_id, round_id = member.key
    return member._replace(key=(f"{device_id} again", round_id))


def _manifest_of(store: Store, row: VersionRow) -> Manifest:
    manifest = store.manifest(row.model_version)
    assert manifest is not None, "a version that is listed has a manifest"
    return manifest


@dataclass(frozen=True)
class Verdict:
    """What became of every update. Each list holds (device_id, round_id)."""

    finished: int
    counted: int
    refused: list[tuple[str, int]]
    lost: list[tuple[str, int]]
    double_counted: list[tuple[str, int]]
    unknown: list[tuple[str, int]]  # counted, though no device's log says that it was made
    versions_proved: int
    versions_wrong: int
    from_store: int


def judge(
    finished: Mapping[bytes, Finished], stored: Iterable[StoredUpdate], refused: Iterable[bytes], lineage: Lineage
) -> Verdict:
    """Compare what devices finished with what versions count. `refused`: digests refused for a device's own fault."""
    left_out = set(lineage.left_out)
    counted = {
        update.digest: (update.device_id, update.round_id)
        for update in stored
        if update.counted_in is not None and (update.device_id, update.round_id) not in left_out
    }
    refused = {digest for digest in refused if digest in finished and digest not in counted}
    lost = [made for digest, made in finished.items() if digest not in counted and digest not in refused]
    return Verdict(
        finished=len(finished),
        counted=len(counted),
        refused=sorted((finished[digest].device_id, finished[digest].round_id) for digest in refused),
        lost=sorted((made.device_id, made.round_id) for made in lost),
        double_counted=sorted(lineage.doubled),
        unknown=sorted(key for digest, key in counted.items() if digest not in finished),
        versions_proved=len(lineage.proved),
        versions_wrong=len(lineage.wrong),
        from_store=lineage.from_store,
    )
