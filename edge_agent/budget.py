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


class Limits(Struct, frozen=True):
    """What the owner allows; None switches a limit off. The section `[budget]` of the config."""

    temperature_c_max: float | None = None
    battery_rate_min: float | None = None
    mains_only: bool = False
    memory_bytes_max: int = 512 << 20  # what the training child may take


def refusal(limits: Limits, plan: Plan, reading: Reading) -> str | None:
    """Why training must wait, as one sentence; None when it may start."""
    if reading.num_examples < max(1, plan.num_examples_min):
        return f"{reading.num_examples} labelled examples, the plan asks for {max(1, plan.num_examples_min)}"
    if plan.trainer_memory_bytes_max > limits.memory_bytes_max:
        asked, allowed = plan.trainer_memory_bytes_max >> 20, limits.memory_bytes_max >> 20
        return f"the plan asks for {asked} MB, the owner allows {allowed} MB"
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
