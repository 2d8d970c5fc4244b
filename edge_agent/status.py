"""What the agent is doing, and why not more: the small file that it leaves for `edge-agent status`.

The agent rewrites `status.json` when something changed, at most every ten seconds and without waiting for the card.
The reader asks the agent's lock, not the file, whether the agent runs: a file cannot tell that its writer is gone.
"""

from __future__ import annotations

import fcntl
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta, Struct

from edge_agent import flash, predictions, slots, traffic

if TYPE_CHECKING:
    from pathlib import Path

WRITE_MS_MIN = 10_000


class Status(Struct, frozen=True):
    """One look at the agent."""

    device_id: str
    fleet: str
    pid: int
    boot: int
    link_up: bool
    link_reason: str  # why it is down
    work: str
    reason: str  # why it does not do more
    model_version: int
    last_round_id: int
    outbox_round_id: int
    outbox_bytes: int
    num_examples: int
    bytes_up: int
    bytes_down: int
    reconnects: int
    refused: dict[str, int]  # what arrived and was not believed
    temperature_c: float | None
    battery_rate: float | None
    on_mains: bool | None
    rss_kb: Annotated[int, Meta(ge=0)]
    throttled: bool | None = None
    under_voltage: bool | None = None
    busy_rate: float | None = None
    route: str | None = None
    joules_today: float = 0.0  # of trainings, estimated
    limits: str = ""  # what the owner allows
    note: str = ""  # what the last training wanted to say: how its update was made to fit, what was lost
    account: traffic.Shown = traffic.Shown()  # of bytes, since the device was enrolled
    watching: predictions.Shown = predictions.Shown()  # what the source brings
    in_use: slots.Shown = slots.Shown()  # which version predicts here, and which is not taken again


class StatusError(Exception):
    """There is no status; the sentence says why."""


def write(root: Path, status: Status) -> None:
    """Leave `status` in the state directory."""
    flash.write_file(root / "status.json", msgspec.json.format(msgspec.json.encode(status)), synced=False)


def read(root: Path) -> tuple[Status, bool]:
    """(the last status, whether its agent still runs)."""
    data = flash.read_file(root / "status.json")
    if data is None:
        raise StatusError(f"no agent has run with {root} yet: edge-agent run starts one")
    try:
        return msgspec.json.decode(data, type=Status), is_running(root)
    except msgspec.MsgspecError as error:
        raise StatusError(f"{root / 'status.json'} is damaged: the agent rewrites it within a minute") from error


def is_running(root: Path) -> bool:
    """Whether an agent holds the lock of this state directory."""
    try:
        with (root / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def as_lines(status: Status, *, running: bool) -> list[str]:
    """What a person reads."""
    link = "up" if status.link_up else f"down: {status.link_reason or 'not connected yet'}"
    outbox = f"the update of round {status.outbox_round_id}, {status.outbox_bytes} bytes, waits for its receipt"
    refused = ", ".join(f"{count} {why}" for why, count in sorted(status.refused.items()))
    lines = [
        f"{status.device_id} of {status.fleet}: {status.work if running else 'not running'}",
        f"why not more: {status.reason}" if status.reason else "",
        f"link {link}",
        f"model version {status.model_version}, last round {status.last_round_id}",
        f"outbox: {outbox}" if status.outbox_bytes else "outbox: empty",
        f"{status.num_examples} examples to learn from",
        f"last training: {status.note}" if status.note else "",
        *slots.as_lines(status.in_use),
        *predictions.as_lines(status.watching),
        f"{status.bytes_up} bytes sent, {status.bytes_down} received, {status.reconnects} reconnections",
        f"not believed: {refused}" if refused else "",
        _host_line(status),
        _training_line(status),
        *_byte_lines(status.account),
    ]
    return [line for line in lines if line]


def _byte_lines(account: traffic.Shown) -> list[str]:
    """Bytes by purpose as a table, and the owner's limits."""
    if not account.rows:
        return []
    heads = ("bytes since it was enrolled", "up", "down", "today", "this month")
    cells = [heads] + [
        (row.purpose, *(f"{count:,}" for count in (row.up, row.down, row.today, row.this_month)))
        for row in account.rows
    ]
    bounds = (account.update_bytes_max, account.day_bytes_max, account.month_bytes_max)
    of = ("an update", "a day", "a month")
    told = ", ".join(f"{bound:,} bytes {what}" for bound, what in zip(bounds, of, strict=True) if bound)
    return [
        *(f"{what:<27}" + "".join(f"{cell:>14}" for cell in row) for what, *row in cells),
        f"limits: {told}" if told else "",
        "" if account.card is None else _card_line(account.card),
    ]


def _training_line(status: Status) -> str:
    """What the owner allows, and the energy that trainings took; empty where there is neither."""
    allowed = f"trains {status.limits}" if status.limits else ""
    took = f"trainings took about {status.joules_today:.0f} J today" if status.joules_today >= 1.0 else ""
    return "; ".join(filter(None, (allowed, took)))


def _host_line(status: Status) -> str:
    told = (
        ("temperature", status.temperature_c, "{:.1f} C"),
        ("battery", status.battery_rate, "{:.0%}"),
        ("mains", status.on_mains, ("absent", "there")),
        ("voltage", status.under_voltage, ("fine", "TOO LOW")),
        ("processor", status.throttled, ("not throttled", "THROTTLED")),
        ("other programs", status.busy_rate, "{:.0%} of the cores"),
    )
    known = [
        f"{name} {form.format(value) if isinstance(form, str) else form[bool(value)]}"
        for name, value, form in told
        if value is not None
    ]
    unknown = " and ".join(name for name, value, _ in told if value is None)
    return ", ".join([*known, f"{status.rss_kb // 1024} MB of memory", *([f"unknown: {unknown}"] if unknown else [])])


def _card_line(card: traffic.Wear) -> str:
    """Its wear."""
    rate = "" if card.per_day is None else f"; {card.per_day:,} bytes in a day of running"
    return (
        f"written to the card: {card.today:,} bytes today, {card.this_month:,} this month, {card.total:,} in all{rate}"
    )
