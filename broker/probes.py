"""What the doctor asks of an MQTT server, each by messages that come back: see `doctor.py`.

Bulk goes down, to a device that nobody is; what goes up, where a running coordinator hears it too, is a handful of
messages that it drops since nobody signed them. A probe returns what it found, None where there is nothing to judge, or
lets LostError and OSError go, which the doctor turns into a finding.
"""

from __future__ import annotations

import contextlib
import enum
import statistics
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from broker.raw_mqtt import Access, LostError, Message, RawMqtt
from wire import limits, topics

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

QUIET_S: Final = 0.5  # so long nothing comes that must not come
RETURN_S: Final = 4.5  # a program that was put off is back by then
ECHOES: Final = 20
BURST: Final = 3_000
WINDOW: Final = 100
NODELAY_WINDOW: Final = 20
NODELAY_ROUNDS: Final = 25
NODELAY_MS_MAX: Final = 25.0  # beyond a single message's time; a delayed acknowledgement costs 40
PAYLOADS_BELOW: Final = (100_000, 65_536, 32_768, 16_384, 4_096, 256)
PAYLOAD_ABOVE: Final = 262_144
KEEPALIVE_S: Final = 10
_EXAMPLE: Final = "deploy/raspi/mosquitto.conf"


class Verdict(enum.StrEnum):
    """What comes of a finding: nothing, a trap to know, or no fleet."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


class Finding(NamedTuple):
    """The outcome of one probe: in a sentence, and what was measured by name."""

    name: str
    verdict: Verdict
    text: str
    figures: dict[str, float] = {}  # noqa: RUF012 - never written to


class Target(NamedTuple):
    """Whom the probes play, and where."""

    coordinator: Access
    device: Access
    fleet: str
    device_id: str

    def client_id(self, role: str) -> str:
        """An MQTT client id that none of our programs has."""
        return f"{self.fleet}-{self.device_id}-{role}"

    def up(self, kind: str) -> str:
        """Where the device speaks."""
        return topics.up(self.fleet, self.device_id, kind)

    def dn(self, kind: str) -> str:
        """Where it is spoken to."""
        return topics.dn(self.fleet, self.device_id, kind)

    def hear_up(self) -> RawMqtt:
        """Connect as the coordinator that reads what this device says."""
        return _subscribed(RawMqtt(self.coordinator, self.client_id("coordinator")), self.up("+"))

    def hear_dn(self) -> RawMqtt:
        """Connect as the device that reads what it is told."""
        return _subscribed(RawMqtt(self.device, self.client_id("device")), self.dn("+"))

    def speak_up(self, will: Message | None = None, keepalive_s: int = limits.KEEPALIVE_S) -> RawMqtt:
        """Connect as the device, to speak."""
        return RawMqtt(self.device, self.client_id("device"), will=will, keepalive_s=keepalive_s)

    def speak_dn(self, will: Message | None = None) -> RawMqtt:
        """Connect as the coordinator, to speak."""
        return RawMqtt(self.coordinator, self.client_id("coordinator"), will=will)


def identity(target: Target) -> Finding:
    """May one identity have two connections, or is its name the MQTT client id whatever we say?"""
    with target.speak_dn() as first, RawMqtt(target.coordinator, target.client_id("second")):
        is_one = first.ends_within(QUIET_S)
    if not is_one:
        return Finding("identity", Verdict.OK, "one identity may have several connections at a time")
    if target.device == target.coordinator:
        text = "each identity has one connection here, so the doctor needs a second one to talk to: name a device's"
        return Finding("identity", Verdict.FAIL, f"{text} with --device, --device-cert-file and --device-key-file")
    with target.speak_dn() as ours:
        if ours.ends_within(RETURN_S):
            text = "another program connects with this identity again and again: stop broker serve, then ask again"
            return Finding("identity", Verdict.FAIL, text)
    return Finding("identity", Verdict.OK, "each identity has one connection, so no device can take another's place")


def qos_1(target: Target) -> Finding:
    """Do messages arrive once each and in order, both ways?"""
    times: list[float] = []
    with target.hear_up() as coordinator, target.speak_up() as device:
        wrong = _echo(device, target.up("telemetry"), coordinator, times)
    if wrong:
        return Finding("qos 1", Verdict.FAIL, f"from a device to the coordinator {wrong}")
    with target.hear_dn() as device, target.speak_dn() as coordinator:
        wrong = _echo(coordinator, target.dn("offer"), device, times)
    if wrong:
        return Finding("qos 1", Verdict.FAIL, f"from the coordinator to a device {wrong}")
    median_ms = 1000 * statistics.median(times)
    text = f"{ECHOES} messages each way arrived once and in order, {median_ms:.1f} ms each (median)"
    return Finding("qos 1", Verdict.OK, text, {"median_ms": round(median_ms, 2)})


def retained(target: Target) -> Finding:
    """Is a retained message kept for later subscribers, replaced, and cleared?"""
    mend = "devices that wake up later would learn nothing; mosquitto.conf: retain_available true"
    topic = target.dn("offer")
    try:
        with _cleared(target, topic):
            for payload in (b"first", b"second", b""):
                with target.speak_dn() as coordinator:
                    coordinator.publish(topic, payload, retain=True)
                if found := _not_kept(target, payload):
                    return Finding("retained", Verdict.FAIL, f"{found}: {mend}")
    except (LostError, OSError) as error:
        return Finding("retained", Verdict.FAIL, f"the server answers a retained message so: {error}; {mend}")
    return Finding("retained", Verdict.OK, "kept for a later subscriber, replaced, and cleared again")


def will(target: Target) -> Finding:
    """Does a connection that breaks leave its will, and one that says goodbye not?"""
    last = Message(target.up("death"), b"will", retain=False)
    with target.hear_up() as coordinator:
        target.speak_up(last).leave()
        if coordinator.messages(1, QUIET_S):
            return Finding("will", Verdict.FAIL, "published after a goodbye, too: the fleet would seem to come and go")
        began = time.monotonic()
        target.speak_up(last).cut()
        found = coordinator.messages(1)
    took_ms = 1000 * (time.monotonic() - began)
    if not found:
        text = "not published when a connection breaks: a device that is gone would seem present for ever"
        return Finding("will", Verdict.FAIL, f"{text}; may this identity write {last.topic}?")
    text = f"published {took_ms:.0f} ms after a connection broke, and not after a goodbye"
    return Finding("will", Verdict.OK, text, {"will_ms": round(took_ms, 1)})


def retained_will(target: Target) -> Finding:
    """Does a will replace what is retained? So a device that comes later learns that the coordinator is away."""
    topic = target.dn("label")
    with _cleared(target, topic):
        with target.hear_dn() as device:
            coordinator = target.speak_dn(Message(topic, b"away", retain=True))
            coordinator.publish(topic, b"here", retain=True)
            coordinator.cut()
            device.messages(2)
        with target.hear_dn() as device:
            kept = [message.payload for message in device.messages(1, QUIET_S)]
    if kept != [b"away"]:
        text = "the coordinator's will is not kept: devices that come later would take it for present when it is not"
        return Finding("retained will", Verdict.FAIL, text)
    return Finding("retained will", Verdict.OK, "kept in place of what was retained before")


def take_over(target: Target) -> Finding:
    """Does a second connection of the same client id end the first? It keeps a second coordinator out."""
    with target.speak_up() as first, target.speak_up() as second:
        is_ended = first.ends_within(2.0)
        is_alone = not second.ends_within(QUIET_S)
    if is_ended and is_alone:
        return Finding("take-over", Verdict.OK, "a new connection of the same client id ends the old one")
    text = "two connections of one client id stay" if is_alone else "the newer of two with one client id was ended"
    return Finding("take-over", Verdict.FAIL, f"{text}: two coordinators would run one fleet, and not notice")


def payload(target: Target) -> Finding:
    """Does the largest message of the contract pass, and what becomes of a larger one?"""
    needed = limits.PAYLOAD_BYTES_MAX
    fate = _fate_of(target, needed)
    if fate != "passes":
        largest = next((size for size in PAYLOADS_BELOW if _fate_of(target, size) == "passes"), 0)
        text = f"{needed} bytes are needed; such a message {fate}; of {largest} bytes it passes"
        mend = "mosquitto.conf: max_packet_size 131072, and no message_size_limit"
        return Finding("payload", Verdict.FAIL, f"{text}; {mend}", {"largest_bytes": largest})
    above = _fate_of(target, PAYLOAD_ABOVE)
    text = f"{needed} bytes pass; a message of {PAYLOAD_ABOVE} {above}"
    if above != "passes":
        return Finding("payload", Verdict.OK, text, {"largest_bytes": needed})
    mend = "larger than any of ours, so others could fill the memory with such; mosquitto.conf: max_packet_size 131072"
    return Finding("payload", Verdict.WARN, f"{text}, too, {mend}", {"largest_bytes": PAYLOAD_ABOVE})


def slashes(target: Target) -> Finding:
    """Six slashes have passed with every probe before; a contract to come may need the seventh."""
    topic = f"{target.dn('chunk')}/7"
    with target.speak_up() as device, contextlib.suppress(LostError):
        device.subscribe(target.dn("+/+"))
        with target.speak_dn() as coordinator:
            coordinator.publish(topic, b"seven")
        if device.messages(1, QUIET_S):
            return Finding("topics", Verdict.OK, f"{limits.TOPIC_SLASHES_MAX} slashes pass")
    return Finding("topics", Verdict.OK, "6 slashes pass, which is what the contract uses; 7 do not, here")


def burst(target: Target) -> Finding:
    """How much of a burst reaches a reader that stands still meanwhile?"""
    topic, acknowledged = target.dn("chunk"), 0
    with target.hear_dn() as device, target.speak_dn() as coordinator:
        for start in range(0, BURST, WINDOW):
            payloads = [number.to_bytes(200, "big") for number in range(start, start + WINDOW)]
            count = coordinator.publish(topic, *payloads)
            acknowledged += count
            if count < WINDOW:
                break  # it holds the sender back, which is fair
        arrived = {message.payload for message in device.messages(BURST, 3.0)}
    figures: dict[str, float] = {"acknowledged": acknowledged, "delivered": len(arrived)}
    if len(arrived) < acknowledged:
        text = f"{acknowledged} messages were acknowledged, {len(arrived)} reached a reader that had stood still"
        mend = "updates would be sent again, later; mosquitto.conf: max_queued_messages 0"
        return Finding("queue", Verdict.WARN, f"{text}: {mend}", figures)
    text = f"all of {acknowledged} messages reached a reader that had stood still meanwhile"
    return Finding("queue", Verdict.OK, text, figures)


def nodelay(target: Target) -> Finding:
    """Does a window of messages wait for TCP's delayed acknowledgement (Nagle's algorithm)?"""
    topic = target.dn("chunk")
    with target.speak_dn() as coordinator:
        single_ms = _window_ms(coordinator, topic, 1)
        window_ms = _window_ms(coordinator, topic, NODELAY_WINDOW)
    figures = {"single_ms": round(single_ms, 2), "window_ms": round(window_ms, 2)}
    text = f"{NODELAY_WINDOW} messages at once are acknowledged within {window_ms:.1f} ms, one within {single_ms:.1f}"
    if window_ms - single_ms > NODELAY_MS_MAX:
        return Finding("nodelay", Verdict.WARN, f"{text}; mosquitto.conf: set_tcp_nodelay true", figures)
    return Finding("nodelay", Verdict.OK, text, figures)


def access(target: Target) -> Finding:
    """What may somebody do who has no password and no certificate, and what may one device do to another?"""
    mend = f"mosquitto.conf: allow_anonymous false, and acl_file; see {_EXAMPLE}"
    if target.coordinator.is_anonymous:
        text = "anyone may read and write: every message is signed, but anyone can see, drop connections and flood"
        return Finding("access", Verdict.WARN, f"{text}; {mend}")
    nobody = target.coordinator._replace(username=None, password=None, cert_file=None, key_file=None)
    trespasses = _trespasses(target, nobody, target.device_id)
    if trespasses:
        return Finding("access", Verdict.WARN, f"without any login one may {' and '.join(trespasses)}; {mend}")
    if target.device == target.coordinator:
        text = "nobody comes in without a login; what one device may do to another was not tried"
        return Finding("access", Verdict.OK, f"{text}: that needs --device and its login")
    trespasses = _trespasses(target, target.device, f"{target.device_id[:56]}-other")
    if trespasses:
        mend = f"mosquitto.conf: acl_file with patterns of %u; see {_EXAMPLE}"
        return Finding("access", Verdict.WARN, f"a device may {' and '.join(trespasses)}; {mend}")
    return Finding("access", Verdict.OK, "nobody comes in without a login, and a device has its own topics alone")


def shared(target: Target) -> Finding | None:
    """Does the server divide a stream among subscribers, or grant that and deliver nothing?"""
    topic = target.up("telemetry")
    readers: list[RawMqtt] = []
    with contextlib.ExitStack() as stack:
        for number in range(2):
            readers.append(stack.enter_context(RawMqtt(target.coordinator, target.client_id(f"shared-{number}"))))
            try:
                readers[-1].subscribe(f"$share/doctor/{topic}")
            except LostError:
                return Finding("shared", Verdict.OK, "shared subscriptions are refused; nothing of ours needs them")
        if readers[0].ends_within(QUIET_S):
            return None  # one identity, one connection: nobody to share with
        device = stack.enter_context(target.speak_up())
        device.publish(topic, *(bytes([number]) for number in range(10)))
        counts = [len(reader.messages(20, QUIET_S)) for reader in readers]
    text = f"two readers of a shared subscription got {counts[0]} and {counts[1]} of 10 messages"
    return Finding("shared", Verdict.OK, f"{text}; nothing of ours needs them today", {"delivered": sum(counts)})


def keepalive(target: Target) -> Finding:
    """Is the will of a device that falls silent published after one and a half keepalives?"""
    last = Message(target.up("death"), b"will", retain=False)
    with target.hear_up() as coordinator, target.speak_up(last, KEEPALIVE_S):
        began = time.monotonic()
        found = coordinator.messages(1, 2.5 * KEEPALIVE_S)
    took_s = time.monotonic() - began
    if not found:
        text = (
            f"a device that was silent for {took_s:.0f} s, with a keepalive of {KEEPALIVE_S} s, still counts as there"
        )
        return Finding("keepalive", Verdict.FAIL, f"{text}: one that lost its power would be waited for in every round")
    text = f"a silent device is noticed after {took_s:.0f} s (keepalive {KEEPALIVE_S} s)"
    return Finding("keepalive", Verdict.OK, text, {"noticed_s": round(took_s, 1)})


@contextlib.contextmanager
def _cleared(target: Target, topic: str) -> Iterator[None]:
    """Whatever happens meanwhile, nothing stays retained."""
    try:
        yield
    finally:
        with contextlib.suppress(LostError, OSError), target.speak_dn() as coordinator:
            coordinator.publish(topic, b"", retain=True)


def _not_kept(target: Target, payload: bytes) -> str:
    """How what a later subscriber gets differs from `payload` (empty: nothing), in words; or nothing."""
    with target.hear_dn() as device:
        found = [(message.payload, message.retain) for message in device.messages(2, QUIET_S)]
    if found == ([(payload, True)] if payload else []):
        return ""
    got = ", ".join(repr(kept[:8].decode("ascii", "replace")) for kept, _ in found) or "nothing"
    return f"a later subscriber got {got} where {payload.decode() or 'nothing'!r} was to be kept"


def _subscribed(connection: RawMqtt, filter_: str) -> RawMqtt:
    try:
        connection.subscribe(filter_)
    except (LostError, OSError):
        connection.leave()
        raise
    return connection


def _echo(sender: RawMqtt, topic: str, reader: RawMqtt, times: list[float]) -> str:
    """Send numbered messages, one at a time; what was wrong with their arrival, in words, or nothing."""
    sent = [b"%d" % number for number in range(ECHOES)]
    arrived: list[bytes] = []
    for payload in sent:
        began = time.monotonic()
        acknowledged = sender.publish(topic, payload)
        found = reader.messages(1)
        times.append(time.monotonic() - began)
        if not found:
            how = "acknowledged and not delivered" if acknowledged else "neither acknowledged nor delivered"
            return f"a message is {how}: may this identity write and read there ({topic})? If not, see --device"
        arrived += [message.payload for message in found]
    arrived += [message.payload for message in reader.messages(ECHOES, QUIET_S)]
    return "" if arrived == sent else f"{len(sent)} messages arrived as {_spoken(arrived)}"


def _spoken(payloads: Sequence[bytes]) -> str:
    return " ".join(payload[:8].decode("ascii", "replace") for payload in payloads)


def _fate_of(target: Target, size: int) -> str:
    """What becomes of a message of that size, as a verb."""
    data = bytes(size)
    with target.hear_dn() as device, target.speak_dn() as coordinator:
        try:
            acknowledged = coordinator.publish(target.dn("chunk"), data)
            found = device.messages(1, 2.0 if acknowledged else QUIET_S)
        except (LostError, OSError):
            return "ends the connection"
    if [message.payload for message in found] == [data]:
        return "passes"
    return "is acknowledged and dropped" if acknowledged else "is neither acknowledged nor delivered"


def _window_ms(connection: RawMqtt, topic: str, count: int) -> float:
    """Median time from sending `count` messages at once to the last acknowledgement."""
    times = []
    for _ in range(NODELAY_ROUNDS):
        began = time.monotonic()
        if connection.publish(topic, *(b"window" for _ in range(count))) < count:
            raise LostError("it does not acknowledge")
        times.append(1000 * (time.monotonic() - began))
    return statistics.median(times)


def _trespasses(target: Target, intruder: Access, device_id: str) -> list[str]:
    """What `intruder` can do on the topics of `device_id`; a refusal of any kind is nothing."""
    done = []
    with contextlib.suppress(LostError, OSError), RawMqtt(intruder, target.client_id("other")) as spy:
        spy.subscribe(topics.dn(target.fleet, device_id, "+"))
        with target.speak_dn() as coordinator:
            coordinator.publish(topics.dn(target.fleet, device_id, "offer"), b"secret")
        if spy.messages(1, QUIET_S):
            done.append("read what is sent to a device")
    with RawMqtt(target.coordinator, target.client_id("coordinator")) as coordinator:
        coordinator.subscribe(topics.up(target.fleet, device_id, "+"))
        with contextlib.suppress(LostError, OSError), RawMqtt(intruder, target.client_id("other")) as forger:
            forger.publish(topics.up(target.fleet, device_id, "telemetry"), b"forged")
        if coordinator.messages(1, QUIET_S):
            done.append("write in the name of a device")
    return done
