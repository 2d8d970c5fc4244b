"""What an operator's Prometheus reads of the coordinator.

Every series is of the fleet, of one of its groups (`broker.groups`: a bounded number) or of the program, none of a
device, so their number does not grow with the fleet. What happened is counted as the loop performs it; what stands (who
is there, which version) is read when somebody asks, from the store, over a connection of the asker's own.
"""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from broker.groups import Groups, groups_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from prometheus_client import Metric

    from broker.effects import CommitRound, CommitStage, UpdateRow
    from broker.store import Store

ROUND_S: Final = (10, 30, 60, 120, 300, 600, 1_800, 3_600, 14_400, 86_400)
MEMBERS: Final = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000)
VERSIONS: Final = (0, 1, 2, 4, 8, 16)
PAYLOAD_BYTES: Final = (256, 512, 1_024, 2_048, 4_096, 8_192, 16_384, 32_768, 65_536, 131_072)
TURN_S: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)


class Metrics:
    """Counts of one run; every method but `page` is for the loop alone. `refused_count` is the machine's own."""

    def __init__(self, refused_count: Mapping[str, int], model_version: int) -> None:
        self._registry = CollectorRegistry()
        self._model_version = model_version
        self._groups = Groups()

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(name, what, labels, namespace="hedgerow", registry=self._registry)

        def histogram(name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, what, namespace="hedgerow", registry=self._registry, buckets=buckets)

        self._updates = counter("updates", "Updates stored; each is receipted after that.")
        self._group_updates = counter("group_updates", "Updates stored, by the tags of their devices.", "group")
        self._rounds = counter("rounds", "Rounds that ended: closed with a version, or cancelled.", "end")
        self._stages = counter("stages", "Versions that trials or the operator settled: promoted, or restored.", "end")
        self._sent = counter("messages_sent", "Messages handed to the link, by kind.", "kind")
        self._epochs = counter("epochs", "Sessions with the MQTT server; each asks every device for its birth.")
        self._update_bytes = histogram("update_bytes", "Payload of a stored update.", PAYLOAD_BYTES)
        self._staleness = histogram("update_staleness", "Versions newer than an update's base as it came.", VERSIONS)
        self._round_s = histogram("round_seconds", "From a round's opening, or a restart, to its version.", ROUND_S)
        self._members = histogram("round_members", "Updates that a version counts.", MEMBERS)
        self._turn_s = histogram("turn_seconds", "One turn of the loop, with its disk flushes and sums.", TURN_S)
        self._registry.register(_Refused(refused_count))

    def watch(self, read_store: Callable[[], Store], link_is_up: Callable[[], bool]) -> None:
        """Tell besides what stands in the store, which `read_store` opens for reading, at each page."""
        self._registry.register(_Standing(read_store, link_is_up, lambda: self._groups))

    def read_tags(self, tags: Mapping[str, frozenset[str]]) -> None:
        """The operator calls devices by these. A group that has been told of in this run stays one."""
        self._groups = groups_of(tags, self._groups.names)

    def sent(self, topic: str) -> None:
        """A message was handed to the link."""
        self._sent.labels(topic.rpartition("/")[2]).inc()

    def stored(self, row: UpdateRow) -> None:
        """An update is on disk."""
        self._updates.inc()
        for group in self._groups.of(row.device_id):
            self._group_updates.labels(group).inc()
        self._update_bytes.observe(len(row.payload))
        self._staleness.observe(max(0, self._model_version - row.base_version))

    def epoch_began(self) -> None:
        """There is a new session with the MQTT server."""
        self._epochs.inc()

    def round_cancelled(self) -> None:
        """A round has ended without a version."""
        self._rounds.labels("cancelled").inc()

    def round_closed(self, commit: CommitRound, took_s: float) -> None:
        """A version is on disk; its round was open for so long in this run."""
        self._rounds.labels("closed").inc()
        self._members.observe(len(commit.members))
        self._round_s.observe(took_s)
        self._model_version = commit.manifest.model_version

    def staged(self, done: CommitStage) -> None:
        """A candidate was promoted, or the numbers of an older version are the fleet's again."""
        self._stages.labels("restored" if done.restored else "promoted").inc()
        self._model_version = done.manifest.model_version

    def turned(self, took_s: float) -> None:
        """The loop went round once."""
        self._turn_s.observe(took_s)

    def page(self) -> bytes:
        """The exposition text. Raises StoreError."""
        return generate_latest(self._registry)


class _Refused:
    """What arrived and was not believed, by reason; the machine counts it."""

    def __init__(self, refused_count: Mapping[str, int]) -> None:
        self._refused_count = refused_count

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            "hedgerow_messages_refused", "Messages not believed, by reason.", labels=["reason"]
        )
        for reason, count in list(self._refused_count.items()):
            family.add_metric([reason], count)
        yield family


class _Standing:
    """What is so now."""

    def __init__(
        self, read_store: Callable[[], Store], link_is_up: Callable[[], bool], groups: Callable[[], Groups]
    ) -> None:
        self._read_store = read_store
        self._link_is_up = link_is_up
        self._groups = groups

    def describe(self) -> Iterator[Metric]:
        """Nothing beforehand: to register is no reason to read the store."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        with self._read_store() as store:
            fleet, seen = store.fleet(), store.seen()
            version = next(row for row in reversed(store.versions()) if row.stage == "promoted")
            waiting, pending = len(store.waiting_rounds()), store.pending_count()
            scored, scores = store.roster.newest_scores()
        present = {row.device_id for row in seen if row.present and row.device_id in fleet}
        yield _gauge("link_up", "Is there a session with the MQTT server?", self._link_is_up())
        yield _gauge("devices_enrolled", "Devices whose updates are believed.", len(fleet))
        yield _gauge("devices_present", "Enrolled devices that are there.", len(present))
        yield _gauge("rounds_waiting", "Rounds asked for and not opened.", waiting)
        yield _gauge("updates_pending", "Stored updates that no version counts yet.", pending)
        yield _gauge("model_version", "The newest version.", version.model_version)
        if version.accuracy is not None:
            yield _gauge("model_accuracy", "Of the newest version, on the coordinator's data.", version.accuracy)
        yield _gauge("field_version", "The newest version that devices reported their own accuracy of.", scored)
        yield from _by_group(self._groups(), fleet, present, scores)


def _by_group(
    groups: Groups, fleet: Collection[str], present: Collection[str], scores: Mapping[str, tuple[int, int]]
) -> Iterator[GaugeMetricFamily]:
    """The same of each group; `scores` are (correct, count) of devices, of the version that is told beside them."""
    there, correct, asked = collections.Counter[str](), collections.Counter[str](), collections.Counter[str]()
    for device_id in fleet:
        right, count = scores.get(device_id, (0, 0))
        for group in groups.of(device_id):
            there[group] += device_id in present
            correct[group] += right
            asked[group] += count
    rates = {group: correct[group] / count for group, count in asked.items() if count}
    yield _gauges("group_devices_present", "Enrolled devices that are there, by tag.", there)
    yield _gauges("group_field_examples", "Held-out examples that hedgerow_group_field_accuracy is of.", asked)
    yield _gauges("group_field_accuracy", "Of hedgerow_field_version, on devices' own held-out examples.", rates)


def _gauges(name: str, what: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"hedgerow_{name}", what, labels=["group"])
    for group, value in sorted(values.items()):
        family.add_metric([group], float(value))
    return family


def _gauge(name: str, what: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"hedgerow_{name}", what, value=float(value))
