"""May this device train now? The owner's limits against what the host says of itself.

The answer is the reason why not, or None for yes. Unknown is never fine: a limit that cannot be checked refuses.
"""

from typing import Final

from msgspec import Struct

from edge_agent.effects import Reading
from wire.messages import Plan

# What a training child has allocated before it reads a model, with kernels built ahead of time: 19 MB of Python and
# NumPy. Where kernels are compiled on the device it is 100 MB; the child itself measures that, and tells.
TRAINER_BASELINE_BYTES: Final = 19 << 20
UPDATE_BYTES_MIN: Final = 1024  # a day or a month with less left is spent: no update worth sending fits
PACKET_BYTES: Final = 256  # of what is left, for what MQTT, its acknowledgement and TLS add to a sealed update


class Limits(Struct, frozen=True):
    """What the owner allows; None switches a limit off. The section `[budget]` of the config."""

    temperature_c_max: float | None = None
    battery_rate_min: float | None = None
    mains_only: bool = False
    memory_bytes_max: int = 512 << 20  # what the training child may take
    update_bytes_max: int = 0  # of one sealed update; 0: the plan alone decides
    day_bytes_max: int = 0  # of all that the link carries, both ways; 0: no limit
    month_bytes_max: int = 0


def refusal(limits: Limits, plan: Plan, reading: Reading) -> str | None:
    """Why training must wait, as one sentence; None when it may start."""
    if reading.num_examples < max(1, plan.num_examples_min):
        return f"{reading.num_examples} labelled examples, the plan asks for {max(1, plan.num_examples_min)}"
    if plan.trainer_memory_bytes_max > limits.memory_bytes_max:
        asked, allowed = plan.trainer_memory_bytes_max >> 20, limits.memory_bytes_max >> 20
        return f"the plan asks for {asked} MB, the owner allows {allowed} MB"
    if (reason := spent(limits, reading)) is not None:
        return reason
    need = TRAINER_BASELINE_BYTES + plan.trainer_arena_bytes
    if need > plan.trainer_memory_bytes_max:
        # said before anything is fetched: what cannot be trained here need not be on flash
        return f"training needs {-(-need >> 20)} MB, the plan allows {plan.trainer_memory_bytes_max >> 20} MB"
    if limits.mains_only and reading.on_mains is not True:
        return "mains power is required and " + ("unknown" if reading.on_mains is None else "absent")
    if limits.battery_rate_min is not None and reading.on_mains is not True:
        if reading.battery_rate is None:
            return "a battery limit is set and the level is unknown"
        if reading.battery_rate < limits.battery_rate_min:
            return f"battery at {reading.battery_rate:.0%}, the owner asks for {limits.battery_rate_min:.0%}"
    if limits.temperature_c_max is not None:
        if reading.temperature_c is None:
            return "a temperature limit is set and the temperature is unknown"
        if reading.temperature_c > limits.temperature_c_max:
            return f"{reading.temperature_c:.1f} C, the owner allows {limits.temperature_c_max:.1f} C"
    return None


def spent(limits: Limits, reading: Reading) -> str | None:
    """Why nothing more may be fetched or told, as one sentence; None while the day and the month have bytes left."""
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


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1_000_000 else f"{count / 1e3:.1f} kB"
