"""The plan that devices are told: the configured recipe, and what the model itself demands of it.

The model decides how its updates are coded (whole steps or rounded real numbers) and how much memory its training
takes, both known exactly beforehand; the operator decides the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from broker.config import ConfigError
from engine.program import memory_of
from wire.limits import UPDATE_PAYLOAD_BYTES_MAX
from wire.messages import MessageError, Plan, encode

if TYPE_CHECKING:
    from broker.config import Config
    from engine.frame import Frame
    from wire.messages import Manifest

UNIT_BITS_MAX = 10  # of a whole step, whatever it is: the code's parameter 7 needs no more


def plan_of(config: Config, manifest: Manifest, frame: Frame, **changes: float) -> Plan:
    """The plan of the configured recipe for the model in `manifest`; `changes` are fields of config.Recipe.

    Raises ConfigError when a bound of the contract does not hold, or when an update would not fit into a message.
    """
    recipe = msgspec.structs.replace(config.plan, **changes)
    plan = Plan(
        model=manifest.model,
        train=config.model.train,
        lane="economy",
        num_params=manifest.num_params,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        learning_rate=float(recipe.learning_rate),
        momentum=float(recipe.momentum),
        clip_norm=float(recipe.clip_norm),
        keep_count=max(1, round(recipe.keep_rate * manifest.num_params)),
        value_bits=0 if frame.lane == "int8" else recipe.value_bits,
        seed=recipe.seed,
        num_examples_min=recipe.num_examples_min,
        num_examples_max=recipe.num_examples_max,
        trainer_memory_bytes_max=recipe.trainer_memory_mb << 20,
        trainer_ms_max=recipe.trainer_s_max * 1000,
        scale_epoch=manifest.scale_epoch,
        trainer_arena_bytes=memory_of(frame.graph, frame.suffix, recipe.batch_size, float(recipe.momentum)),
    )
    try:
        encode(plan)
    except MessageError as error:
        raise ConfigError(f"no plan can say that: {error}") from error
    _check_size(plan)
    return plan


def _check_size(plan: Plan) -> None:
    """Refuse a plan whose update could not be sent: the device would train in vain."""
    gap_bits = 2 + (plan.num_params // plan.keep_count).bit_length()  # Golomb-Rice, never more than this
    bytes_max = plan.keep_count * (gap_bits + (plan.value_bits or UNIT_BITS_MAX)) // 8 + 32
    if bytes_max > UPDATE_PAYLOAD_BYTES_MAX:
        mend = "lower keep_rate or value_bits" if plan.value_bits else "lower keep_rate"
        raise ConfigError(
            f"an update of {plan.keep_count} values may need {bytes_max} bytes, and {UPDATE_PAYLOAD_BYTES_MAX} fit "
            f"into a message: {mend}"
        )
