"""`broker plan check`: everything that is wrong with a plan's file, before anything is sent.

The file holds sections of broker.toml, all or some of them, and the words of the lanes (`broker.lanes`). Where reading
a configuration ends with the first mistake, this goes on: a key that is wrong is told and left out, and what is left
is looked at as if it were the whole.
"""

from __future__ import annotations

import difflib
import tomllib
from typing import TYPE_CHECKING, Any, Final, get_type_hints

import msgspec
from msgspec import Struct

from broker import lanes
from broker.aggregate.rules import RULES
from broker.config import Aggregate, Config, ConfigError, Model, Recipe, Round
from broker.lanes import Contradiction, CreditWords, PlanWords, PrivacyWords, Wish
from broker.plans import UPDATE_BYTES_MIN, plan_of
from broker.versions import frame_under
from engine.models.graph import ModelError
from wire.messages import MODEL_FILE, PARAMS_FILE, Plan

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.cost import Cost
    from broker.store import Store
    from engine.frame import Frame

_READ: Final[dict[str, type[Struct]]] = {"plan": Recipe, "round": Round, "aggregate": Aggregate, "model": Model}


class Asked(Struct, frozen=True):
    """What a file asks for, as far as it can be read; a section that it lacks is None."""

    wish: Wish
    plan: Recipe
    round: Round
    aggregate: Aggregate
    train: str | None


def read_plan(text: str, base: Config | None) -> tuple[Asked, list[Contradiction]]:
    """Read a plan's file over the configuration `base`; what it asks for, and everything that is wrong in itself."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        tree, wrong = {}, [Contradiction("this is not TOML", "the file", str(error), "mend this line")]
    else:
        wrong = [told for section, table in tree.items() for told in _misread(section, table)]
    sound = {section: _sound(section, table) for section, table in tree.items() if isinstance(table, dict)}
    made: dict[str, Any] = {
        name: msgspec.structs.replace(getattr(base, name) if base else _READ[name](), **sound.get(name, {}))
        for name in ("plan", "round", "aggregate")
    }
    words = {name: _words(name, tree.get(name)) for name in lanes.RESERVED}
    rule, recipe, round_ = made["aggregate"].rule, made["plan"], made["round"]
    wish = Wish(
        plan=PlanWords(**{"lane": recipe.lane, **words["plan"]}),
        privacy=PrivacyWords(**words["privacy"]),
        credits=CreditWords(**words["credits"]),
        rule_ranks=rule in RULES and RULES[rule].needs_dense,
        carries_all=recipe.keep_rate == 1 and not recipe.update_bytes_max,
        mode=round_.mode,
        cohort_max=round_.cohort_max,
    )
    asked = Asked(wish, recipe, round_, made["aggregate"], sound.get("model", {}).get("train"))
    return asked, [*wrong, *_at_odds(asked), *lanes.contradictions(wish)]


def fit(asked: Asked, base: Config, store: Store) -> tuple[Plan | None, Frame | None, list[Contradiction]]:
    """The plan for the fleet's newest version, how its numbers are read, and what of the plan that model forbids."""
    manifest = store.manifest()
    if manifest is None:
        raise ConfigError(f"{store.place} holds no model: make a new directory with broker init")
    train = asked.train or base.model.train
    try:
        frame = frame_under(manifest, train, store)
    except ModelError as error:
        return None, None, [Contradiction(f"train = {train!r}", "[model] train", str(error), "name what the model has")]
    model = msgspec.structs.replace(base.model, train=train)
    config = msgspec.structs.replace(base, plan=_without_told(asked), model=model, aggregate=Aggregate())
    try:
        plan = plan_of(config, manifest, frame)
    except ConfigError as error:
        why, _, mend = str(error).rpartition(": ")
        return None, frame, [Contradiction("no plan comes of it", "[plan]", why or mend, mend)]
    return plan, frame, _too_large(plan)


def summary(asked: Asked, plan: Plan, cost: Cost, store: Store) -> dict[str, Any]:
    """What the plan means for the fleet, in plain values. Bytes of a round are expected, not measured."""
    lane = asked.wish.lane
    devices = len(store.fleet())
    taking_part = min(devices, asked.round.cohort_max) if asked.round.cohort_max else devices
    update_bytes = cost.payload_bytes + cost.around_bytes
    return {
        "lane": plan.lane,
        "support": lane.support,
        "values": lane.values,
        "privacy": lane.privacy,
        "rule": asked.aggregate.rule,
        "train": plan.train,
        "num_params": plan.num_params,
        "keep_count": plan.keep_count,
        "update_bytes": update_bytes,
        "update_bytes_max": cost.payload_bytes_max + cost.around_bytes,
        "trainer_arena_bytes": plan.trainer_arena_bytes,
        "trainer_memory_bytes_max": plan.trainer_memory_bytes_max,
        "devices": taking_part,
        "round_bytes_up": taking_part * update_bytes,
        "round_bytes_down": devices * _version_bytes(store),
    }


def sentences(found: Mapping[str, Any]) -> list[str]:
    """What an operator reads of a `summary`."""
    sizes = f"about {found['update_bytes']:,} bytes, {found['update_bytes_max']:,} at most, signature and MQTT included"
    needed, allowed = found["trainer_arena_bytes"] / 2**20, found["trainer_memory_bytes_max"] >> 20
    carried = f"{found['round_bytes_up']:,} bytes up, {found['round_bytes_down']:,} bytes of model down"
    return [
        f"Lane {found['lane']}: {found['support']}; {found['values']}; {found['privacy']}.",
        f"Trains {found['train']}: {found['keep_count']:,} of {found['num_params']:,} parameters in an update at most.",
        f"An update: {sizes}.",
        f"Memory of a training: {needed:.1f} MB for numbers, of the {allowed} MB that its process may have.",
        f"A round of {found['devices']} devices: {carried}, expected.",
    ]


def _misread(section: str, table: object) -> list[Contradiction]:
    """Everything in one section that no configuration may have."""
    hints = get_type_hints(Config, include_extras=True)
    kind, words = hints.get(section), lanes.RESERVED.get(section)
    if (kind is None and words is None) or section == "directory":
        names = [*(name for name in hints if name != "directory"), *lanes.RESERVED]
        return [
            Contradiction("there is no such section", f"[{section}]", "nothing would read it", _meant(section, names))
        ]
    if not isinstance(table, dict):
        return [Contradiction("a value where a section is due", f"[{section}]", "it has keys", f"write [{section}]")]
    known = {**_hints(kind), **_hints(words)}
    told = []
    for key, value in table.items():
        where = f"[{section}] {key}"
        if key not in known:
            told.append(Contradiction("there is no such key", where, "nothing would read it", _meant(key, list(known))))
            continue
        also = _hints(Plan).get(key, Any) if section == "plan" and key not in _hints(words) else Any
        why = _unfit(value, known[key]) or _unfit(value, also)
        if why:
            told.append(Contradiction(f"{value!r}", where, why, "choose another value, or leave it out"))
    return told


def _meant(word: str, names: list[str]) -> str:
    close = difflib.get_close_matches(word, names, 1)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(names)}"


def _hints(kind: type[Struct] | None) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True) if kind else {}


def _unfit(value: object, hint: object) -> str:
    """Why the value is none of that type and bounds; empty when it is."""
    try:
        msgspec.convert(value, hint)
    except msgspec.ValidationError as error:
        return str(error)[:1].lower() + str(error)[1:]
    return ""


def _sound(section: str, table: Mapping[str, object]) -> dict[str, Any]:
    """What of a section can be used."""
    own = _hints(_READ.get(section))
    wire = _hints(Plan) if section == "plan" else {}
    return {
        key: msgspec.convert(value, own[key])
        for key, value in table.items()
        if key in own and not _unfit(value, own[key]) and not _unfit(value, wire.get(key, Any))
    }


def _words(section: str, table: object) -> dict[str, Any]:
    """The lanes' words of a section that can be read."""
    own = _hints(lanes.RESERVED[section])
    items = table.items() if isinstance(table, dict) else ()
    return {key: value for key, value in items if key in own and not _unfit(value, own[key])}


def _at_odds(asked: Asked) -> list[Contradiction]:
    """Values that are right each by itself, and wrong together or by their names."""
    told, round_, most = [], asked.round, asked.plan.update_bytes_max
    if asked.aggregate.rule not in RULES:
        known = _meant(asked.aggregate.rule, sorted(RULES))
        told.append(Contradiction(f"the rule {asked.aggregate.rule!r}", "[aggregate] rule", "there is none", known))
    if 0 < round_.cohort_max < round_.updates_min:
        what = f"{round_.cohort_max} devices that give {round_.updates_min} updates"
        where, why = "[round] cohort_max, updates_min", "a device gives one update a round, so it would never close"
        told.append(Contradiction(what, where, why, "let updates_min be no more than cohort_max"))
    if 0 < most < UPDATE_BYTES_MIN:
        why = "a signature and what is around it leave no room for values"
        mend = f"let it be {UPDATE_BYTES_MIN} at least, or 0, where keep_rate decides"
        told.append(Contradiction(f"an update of {most} bytes", "[plan] update_bytes_max", why, mend))
    if _owes_in_vain(asked):
        what, where = "what a device owes, in the hardened lane", "[plan] lane, momentum_correction, residual_decay"
        why = "the coordinator holds what each device said, and nothing is owed"
        told.append(Contradiction(what, where, why, "leave out momentum_correction and residual_decay"))
    return told


def _owes_in_vain(asked: Asked) -> bool:
    """Is what a device owes to be handled where none owes anything?"""
    recipe = asked.plan
    return asked.wish.lane.dense_state and (recipe.momentum_correction > 0 or recipe.residual_decay < 1)


def _without_told(asked: Asked) -> Recipe:
    """The recipe without what `_at_odds` has told of it, so that `plan_of` finds what else is wrong."""
    recipe = asked.plan
    if 0 < recipe.update_bytes_max < UPDATE_BYTES_MIN:
        recipe = msgspec.structs.replace(recipe, update_bytes_max=0)
    if _owes_in_vain(asked):
        recipe = msgspec.structs.replace(recipe, momentum_correction=0.0, residual_decay=1.0)
    return recipe


def _too_large(plan: Plan) -> list[Contradiction]:
    if plan.trainer_arena_bytes <= plan.trainer_memory_bytes_max:
        return []
    what = f"a training in {plan.trainer_memory_bytes_max >> 20} MB"
    why = f"its numbers alone take {-(-plan.trainer_arena_bytes // 2**20)} MB"
    where, mend = "[plan] trainer_memory_mb, batch_size", "train less, lower batch_size, or allow more memory"
    return [Contradiction(what, where, why, mend)]


def _version_bytes(store: Store) -> int:
    """What the newest version is to a device that has the one before: its patch, else its parameters; else all."""
    manifest = store.manifest()
    assert manifest is not None, "a plan was made of it"
    version = manifest.model_version
    if patches := store.patches(version - 1, version) if version > 1 else []:
        return sum(map(len, patches))
    wanted = {PARAMS_FILE} if version > 1 and manifest.base_version != version else {PARAMS_FILE, MODEL_FILE}
    return sum(file.size_bytes for file in manifest.files if file.name in wanted)
