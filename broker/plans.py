"""The plan that devices are told: the configured recipe, and what the model itself demands of it.

The model decides what an update's values are (whole units or real numbers), and how much memory its training takes,
both known exactly beforehand; the operator decides the rest. Where he asks for no rounding, a float model's values have
FLOAT_BITS all the same: real numbers have no shorter exact form.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from broker.aggregate.ranked import REFUSAL
from broker.aggregate.rules import RULES
from broker.config import ConfigError
from engine.codec.estimate import PREFIX_BYTES
from engine.models.graph import ModelError
from engine.own import shared_count
from engine.program import memory_of
from wire.limits import UPDATE_PAYLOAD_BYTES_MAX
from wire.messages import MessageError, Plan, encode

if TYPE_CHECKING:
    from broker.config import Config, Recipe
    from engine.frame import Frame
    from wire.messages import Manifest

FLOAT_BITS = 4
UNIT_BITS_MAX = 10  # of a whole unit, its sign included: the magnitude code's parameter 7 needs no more
_MOVING = ("fedavgm", "fedadam", "fedyogi")  # rules whose step is more than a mean, or another one
UPDATE_BYTES_MIN = 256  # of a sealed update: devices set 200 aside for what is around its payload


def plan_of(config: Config, manifest: Manifest, frame: Frame, **changes: float | str) -> Plan:
    """The plan of the configured recipe for the model in `manifest`; `changes` are fields of config.Recipe.

    Raises ConfigError when a bound of the contract does not hold, or when an update would not fit into a message.
    """
    recipe = msgspec.structs.replace(config.plan, **changes)
    plan = Plan(
        model=manifest.model,
        train=config.model.train,
        lane=recipe.lane,
        num_params=manifest.num_params,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        learning_rate=float(recipe.learning_rate),
        momentum=float(recipe.momentum),
        clip_norm=float(recipe.clip_norm),
        keep_count=max(1, round(recipe.keep_rate * manifest.num_params)),
        value_bits=recipe.value_bits or (0 if frame.lane == "int8" else FLOAT_BITS),
        seed=recipe.seed,
        num_examples_min=recipe.num_examples_min,
        num_examples_max=recipe.num_examples_max,
        trainer_memory_bytes_max=recipe.trainer_memory_mb << 20,
        trainer_ms_max=recipe.trainer_s_max * 1000,
        scale_epoch=manifest.scale_epoch,
        trainer_arena_bytes=_arena_bytes(recipe, frame),
        coding=recipe.coding,
        update_bytes_max=recipe.update_bytes_max,
        momentum_correction=float(recipe.momentum_correction),
        residual_decay=float(recipe.residual_decay),
        proximal=float(recipe.proximal),
        scaffold=recipe.scaffold,
        keep_local=recipe.keep_local,
    )
    _check_own(plan, frame)
    if plan.lane == "hardened" and (plan.momentum_correction or plan.residual_decay < 1.0):
        raise ConfigError(
            '[plan] lane = "hardened": nothing is owed there, so leave out momentum_correction and residual_decay'
        )
    _check_scaffold(plan, config)
    rule = RULES.get(config.aggregate.rule)
    if rule is not None and rule.needs_dense and not is_dense(plan):
        raise ConfigError(f"[aggregate] rule = {config.aggregate.rule!r}: {REFUSAL}")
    try:
        encode(plan)
    except MessageError as error:
        raise ConfigError(f"no plan can say that: {error}") from error
    _check_size(plan)
    return plan


def _check_own(plan: Plan, frame: Frame) -> None:
    """Something must be left for the fleet, and what corrects gradients must be of what the fleet shares."""
    try:
        shared_count(frame.suffix, plan.keep_local)
    except ModelError as error:
        raise ConfigError(f"[plan] {error}") from error
    if plan.keep_local and plan.scaffold:
        raise ConfigError("[plan] keep_local with scaffold: the fleet says nothing of layers that it does not share")


def is_dense(plan: Plan) -> bool:
    """Does a rule see every parameter of a device, so that one that is lacking is 0?"""
    return plan.lane == "hardened" or (plan.keep_count == plan.num_params and not plan.update_bytes_max)


def _check_scaffold(plan: Plan, config: Config) -> None:
    """Devices read the fleet's gradient off its versions: so a step must be a mean, and not more or less of it."""
    aggregate = config.aggregate
    if plan.scaffold and (aggregate.rule in _MOVING or aggregate.learning_rate != 1.0):
        raise ConfigError(
            f"[plan] scaffold = true: a version must move by the mean of its updates; [aggregate] rule = "
            f"{aggregate.rule!r} with learning_rate = {aggregate.learning_rate} does not. Take another rule, and 1.0"
        )


def _arena_bytes(recipe: Recipe, frame: Frame) -> int:
    momentum, proximal = float(recipe.momentum), float(recipe.proximal)
    return memory_of(
        frame.graph, frame.suffix, recipe.batch_size, momentum, proximal=proximal, corrects=recipe.scaffold
    )


def _check_size(plan: Plan) -> None:
    """Refuse a plan whose update could not be sent: the device would train in vain.

    A device that is given a budget keeps to it. No coding takes more than Golomb-Rice over the whole model does.
    """
    gap_bits = 2 + (plan.num_params // plan.keep_count).bit_length()
    value_bits = plan.value_bits + 1 if plan.value_bits else UNIT_BITS_MAX
    bytes_max = plan.keep_count * (gap_bits + value_bits) // 8 + 32 + PREFIX_BYTES * (plan.lane == "hardened")
    if 0 < plan.update_bytes_max < UPDATE_BYTES_MIN:
        raise ConfigError(
            f"{plan.update_bytes_max} bytes have no room for values beside a signature: let update_bytes_max be "
            f"{UPDATE_BYTES_MIN} at least, or 0, where keep_rate decides"
        )
    if bytes_max > UPDATE_PAYLOAD_BYTES_MAX and not plan.update_bytes_max:
        mend = "lower keep_rate or value_bits, or set update_bytes_max"
        raise ConfigError(
            f"an update of {plan.keep_count} values may need {bytes_max} bytes, and {UPDATE_PAYLOAD_BYTES_MAX} fit "
            f"into a message: {mend}"
        )
