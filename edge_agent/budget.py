"""May this device train now? The owner's limits against what the host says of itself.

The answer is the reason why not, or None for yes. Unknown is never fine: a limit that cannot be checked refuses.
"""

import re
from typing import Final, NamedTuple, Self

from msgspec import Struct

from edge_agent.effects import Reading
from wire.messages import Plan

# What a training child has allocated before it reads a model, with kernels built ahead of time: 19 MB of Python and
# NumPy. Where kernels are compiled on the device it is 100 MB; the child itself measures that, and tells.
TRAINER_BASELINE_BYTES: Final = 19 << 20
CORE_W: Final = 1.5  # that a busy core adds: a Pi 5's, the most of any board (broker.energy has the sources)
UPDATE_BYTES_MIN: Final = 1024  # a day or a month with less left is spent: no update worth sending fits
_HOURS: Final = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])-([01][0-9]|2[0-3]):([0-5][0-9])")
PACKET_BYTES: Final = 256  # of what is left, for what MQTT, its acknowledgement and TLS add to a sealed update


class Hours(NamedTuple):
    """A part of the owner's day, in minutes after midnight; it goes over midnight if it ends before it begins."""

    begin_minute: int
    end_minute: int

    @classmethod
    def of(cls, text: str) -> Self:
        """The hours in `text`, as 22:00-06:00. Raises ValueError, one line."""
        found = _HOURS.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} is no time of the day: write it as 22:00-06:00")
        hours = [int(number) for number in found.groups()]
        begin, end = hours[0] * 60 + hours[1], hours[2] * 60 + hours[3]
        if begin == end:
            raise ValueError(f"{text!r} ends where it begins; leave hours out to train at any time")
        return cls(begin, end)

    def hold(self, minute: int) -> bool:
        """Is that minute among them?"""
        if self.begin_minute <= self.end_minute:
            return self.begin_minute <= minute < self.end_minute
        return minute >= self.begin_minute or minute < self.end_minute

    def __str__(self) -> str:
        return f"{_clock(self.begin_minute)}-{_clock(self.end_minute)}"


class Limits(Struct, frozen=True):
    """What the owner allows; None switches a limit off. The section `[budget]` of the config."""

    temperature_c_max: float | None = None
    battery_rate_min: float | None = None
    mains_only: bool = False
    memory_bytes_max: int = 512 << 20  # what the training child may take
    update_bytes_max: int = 0  # of one sealed update; 0: the plan alone decides
    day_bytes_max: int = 0  # of all that the link carries, both ways; 0: no limit
    month_bytes_max: int = 0
    unthrottled_only: bool = False
    full_voltage_only: bool = False
    busy_rate_max: float | None = None  # that other programs may keep busy of all cores
    hours: tuple[Hours, ...] = ()  # none: at any time
    metered: tuple[str, ...] = ()  # interfaces over which nothing is fetched or told
    day_joules_max: float = 0.0  # that trainings may take; 0: no limit
    core_w: float = CORE_W


def refusal(limits: Limits, plan: Plan, reading: Reading) -> str | None:
    """Why training must wait, as one sentence; None when it may start."""
    if reading.num_examples < max(1, plan.num_examples_min):
        return f"{reading.num_examples} labelled examples, the plan asks for {max(1, plan.num_examples_min)}"
    if plan.trainer_memory_bytes_max > limits.memory_bytes_max:
        asked, allowed = plan.trainer_memory_bytes_max >> 20, limits.memory_bytes_max >> 20
        return f"the plan asks for {asked} MB, the owner allows {allowed} MB"
    if (reason := link_refusal(limits, reading)) is not None:
        return reason
    need = TRAINER_BASELINE_BYTES + plan.trainer_arena_bytes
    if need > plan.trainer_memory_bytes_max:
        # said before anything is fetched: what cannot be trained here need not be on flash
        return f"training needs {-(-need >> 20)} MB, the plan allows {plan.trainer_memory_bytes_max >> 20} MB"
    return _time_refuses(limits, reading) or _power_refuses(limits, reading) or _heat_refuses(limits, reading)


def link_refusal(limits: Limits, reading: Reading) -> str | None:
    """Why nothing more may be fetched or told, as one sentence; None while the link is free and has bytes left."""
    if limits.metered:
        if reading.route is None:
            return "metered interfaces are named, and by which one the link goes is unknown"
        if reading.route in limits.metered:
            return f"the link goes by {reading.route}, which is metered"
    periods = (
        ("month", reading.month_bytes_left, limits.month_bytes_max, "the 1st, 00:00 UTC"),
        ("day", reading.day_bytes_left, limits.day_bytes_max, "00:00 UTC"),
    )
    for name, left, allowed, until in periods:
        if left is not None and left < UPDATE_BYTES_MIN:
            return f"the {name}'s {_size(allowed)} are spent; more from {until}"
    return None


def bytes_left(reading: Reading) -> int | None:
    """What the link may still carry in this day and month; None: there is no limit."""
    left = (reading.day_bytes_left, reading.month_bytes_left)
    return min((count for count in left if count is not None), default=None)


def update_bytes_max(limits: Limits, reading: Reading) -> int:
    """The largest sealed update that the owner allows now; 0: no limit of the owner's."""
    left = bytes_left(reading)
    allowed = 0 if left is None else max(1, left - PACKET_BYTES)
    return min((bound for bound in (limits.update_bytes_max, allowed) if bound), default=0)


def in_words(limits: Limits) -> str:
    """What the owner allows, as the end of a sentence; empty where no limit is set but that of memory."""
    words = (
        ("from " + " and ".join(map(str, limits.hours)), limits.hours),
        ("on mains", limits.mains_only),
        (f"with a battery from {limits.battery_rate_min or 0:.0%}", limits.battery_rate_min is not None),
        ("at full voltage", limits.full_voltage_only),
        (f"up to {limits.temperature_c_max or 0:.0f} C", limits.temperature_c_max is not None),
        ("not throttled", limits.unthrottled_only),
        (f"beside {limits.busy_rate_max or 0:.0%} of load", limits.busy_rate_max is not None),
        (f"for {limits.day_joules_max:g} J a day", limits.day_joules_max),
        (f"and not over {' or '.join(limits.metered)}", limits.metered),
    )
    return ", ".join(word for word, is_set in words if is_set)


def _time_refuses(limits: Limits, reading: Reading) -> str | None:
    """The owner's hours, the programs that come first, and the energy of a day."""
    if limits.hours:
        allowed = " and ".join(map(str, limits.hours))
        if reading.local_minute is None:
            return f"the owner allows {allowed}, and the clock is not set"
        if not any(hours.hold(reading.local_minute) for hours in limits.hours):
            return f"it is {_clock(reading.local_minute)}, the owner allows {allowed}"
    if limits.busy_rate_max is not None:
        if reading.busy_rate is None:
            return "a limit of load is set and the load is unknown"
        if reading.busy_rate > limits.busy_rate_max:
            return (
                f"other programs take {reading.busy_rate:.0%} of the cores, the owner allows {limits.busy_rate_max:.0%}"
            )
    if reading.day_joules_left is not None and reading.day_joules_left <= 0.0:
        return f"the day's {limits.day_joules_max:g} J for training are spent; more from 00:00 UTC"
    return None


def _power_refuses(limits: Limits, reading: Reading) -> str | None:
    if limits.mains_only and reading.on_mains is not True:
        return "mains power is required and " + ("unknown" if reading.on_mains is None else "absent")
    if limits.battery_rate_min is not None and reading.on_mains is not True:
        if reading.battery_rate is None:
            return "a battery limit is set and the level is unknown"
        if reading.battery_rate < limits.battery_rate_min:
            return f"battery at {reading.battery_rate:.0%}, the owner asks for {limits.battery_rate_min:.0%}"
    if limits.full_voltage_only and reading.under_voltage is not False:
        unknown = "full voltage is required and unknown"
        return unknown if reading.under_voltage is None else "the power supply gives too little voltage"
    return None


def _heat_refuses(limits: Limits, reading: Reading) -> str | None:
    if limits.temperature_c_max is not None:
        if reading.temperature_c is None:
            return "a temperature limit is set and the temperature is unknown"
        if reading.temperature_c > limits.temperature_c_max:
            return f"{reading.temperature_c:.1f} C, the owner allows {limits.temperature_c_max:.1f} C"
    if limits.unthrottled_only and reading.throttled is not False:
        unknown = "a processor that is not throttled is required, and whether this one is, is unknown"
        return unknown if reading.throttled is None else "the firmware throttles the processor"
    return None


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1_000_000 else f"{count / 1e3:.1f} kB"
