"""Between the commands and the store: plain rows to show as a table or as JSON, and the wishes for rounds."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import msgspec

from broker.cohort import has_drawn
from broker.config import ConfigError
from broker.database import StoreError
from broker.effects import Choice, Ring, RoundRow
from broker.field import fading
from broker.groups import groups_of
from broker.roster import History
from broker.standing import ROUNDS_MAX
from wire.messages import Name, Traffic, digest_of, encode

if TYPE_CHECKING:
    from collections.abc import Collection

    from broker.config import Config, Rollout, Round
    from broker.cost import Cost
    from broker.effects import Mode
    from broker.rows import VersionRow
    from broker.store import Store
    from wire.messages import Manifest, Plan


class ViewError(Exception):
    """There is nothing to show. One line."""


def fleet_rows(store: Store, tags: Collection[str] = (), *, present: bool | None = None) -> list[dict[str, Any]]:
    """Every enrolled device with what was last heard of it, in the order of ids.

    Only those with all these tags; and, unless `present` is None, only those that are there, or that are not.
    """
    seen = {row.device_id: row for row in store.seen()}
    counted, called, histories = store.counted(), store.roster.tags(), store.roster.histories()
    rows = []
    for device_id, public_key in store.fleet().items():
        if not called.get(device_id, frozenset()).issuperset(tags):
            continue
        row = seen.get(device_id)
        history = histories.get(device_id, History())
        rows.append(
            {
                "device_id": device_id,
                "public_key": public_key,
                "present": row.present if row else False,
                "seen_unix_s": row.seen_unix_s if row else None,
                "software": row.software if row else "",
                "num_examples": row.num_examples if row else None,
                "model_version": row.model_version if row else None,
                "work": row.work if row else "",
                "reason": row.reason if row else "",
                "updates_counted": counted.get(device_id, 0),
                "tags": sorted(called.get(device_id, ())),
                "updates_finished": history.finished,
                "updates_late": history.late,
                "last_round_id": history.last_round_id,
            }
        )
    return [row for row in rows if present is None or row["present"] == present]


def device_row(store: Store, fleet: str, device_id: str) -> dict[str, Any]:
    """One device's line of `fleet_rows`, and what it was offered; ViewError when it is not enrolled.

    Of the rounds that were offered to all, those count that drew it: their coins are thrown again.
    """
    row = next((row for row in fleet_rows(store) if row["device_id"] == device_id), None)
    if row is None:
        raise ViewError(f"{device_id} is not enrolled: see broker fleet list")
    row["rounds_offered"] = store.roster.histories().get(device_id, History()).offered
    row["rounds_drawn"] = sum(bool(each.nonce) and has_drawn(each, fleet, device_id) for each in store.rounds())
    return row


def call_device(store: Store, device_id: str, tags: Collection[str]) -> None:
    """Give a device these tags, and no others; ViewError when it is not enrolled, or for what is no tag."""
    for tag in tags:
        check_tag(tag)
    with store.transaction():
        if device_id not in store.fleet():
            raise ViewError(f"{device_id} is not enrolled: see broker fleet list")
        store.roster.call(device_id, tags)


def check_tag(tag: str) -> str:
    """Return the tag; ViewError for anything else."""
    try:
        return msgspec.convert(tag, type=Name)
    except msgspec.ValidationError as error:
        raise ViewError(f"{tag!r} is no tag: write 1 to 64 letters, digits, '.', '_' and '-'") from error


def tags_of(text: str) -> tuple[str, ...]:
    """The tags in "outdoor,north"; ViewError for what can be none."""
    return tuple(check_tag(tag) for tag in text.split(",") if tag)


def byte_rows(store: Store, tags: Collection[str] = ()) -> dict[str, Any]:
    """The bytes of every enrolled device since it was enrolled, as it counts them, their sum, and our own count.

    Only of the devices with all these tags; our own count is of all.

    `per_counted` is all bytes of a device, both ways, for each of its updates that some version counts. Our own count
    is of the times when a round was open: what came up from devices, what went down to them.
    """
    told, counted, names = store.traffic(), store.counted(), Traffic.__struct_fields__
    called, devices = store.roster.tags(), []
    for device_id in store.fleet():
        if not called.get(device_id, frozenset()).issuperset(tags):
            continue
        traffic, when = told.get(device_id, (None, None))
        counts = msgspec.structs.asdict(traffic) if traffic else dict.fromkeys(names)
        devices.append(_with_sums({"device_id": device_id, "told_unix_s": when, **counts}, counted.get(device_id, 0)))
    heard = [row for row in devices if row["told_unix_s"] is not None]
    total = _with_sums({name: sum(row[name] for row in heard) for name in names}, sum(r["counted"] for r in heard))
    own = store.versions()
    coordinator = {"bytes_up": sum(row.bytes_up for row in own), "bytes_down": sum(row.bytes_down for row in own)}
    return {"devices": devices, "total": total, "coordinator": coordinator}


def _with_sums(row: dict[str, Any], counted: int) -> dict[str, Any]:
    known = row["update_up"] is not None
    up = sum(row[name] for name in Traffic.__struct_fields__ if name.endswith("_up")) if known else None
    down = sum(row[name] for name in Traffic.__struct_fields__ if name.endswith("_down")) if known else None
    each = (up + down) / counted if up is not None and down is not None and counted else None
    return {**row, "bytes_up": up, "bytes_down": down, "counted": counted, "per_counted": each}


def drift_rows(store: Store, tags: Collection[str] = ()) -> list[dict[str, Any]]:
    """How good the model is in the field, the whole fleet and each group, or only the groups of these tags."""
    found = [msgspec.to_builtins(each) for each in fading(store.updates(), groups_of(store.roster.tags()))]
    for row in found:
        for window in filter(None, (*row["windows"], row["best"])):
            window["accuracy"] = window["correct"] / window["count"]
    return [row for row in found if not tags or row["group"] in tags]


def round_rows(store: Store) -> list[dict[str, Any]]:
    """Every round with how many updates of it are stored, and how many counted, oldest first."""
    updates, unwanted = store.updates(), store.unwanted_rounds()
    rows = []
    for row in store.rounds():
        own = [update for update in updates if update.round_id == row.round_id]
        shown = msgspec.structs.asdict(row)
        del shown["plan"]
        shown["choice"], shown["ring"] = msgspec.to_builtins(row.choice), msgspec.to_builtins(row.ring)
        shown["kind"] = "trial" if row.is_trial else "training"
        if row.is_cancelled:
            shown["status"], shown["model_version"] = "cancelled", 0
        elif row.round_id in unwanted:
            shown["status"] = "cancelling"
        if row.is_trial:
            shown["model_version"] = 0  # it makes none
        shown["plan_digest"] = digest_of(encode(row.plan))
        shown["updates_stored"] = len(store.stages.trials(round_id=row.round_id)) if row.is_trial else len(own)
        shown["updates_counted"] = sum(update.counted_in is not None for update in own)
        rows.append(shown)
    return rows


def version_rows(store: Store) -> list[dict[str, Any]]:
    """Every model version with its score, here and in the field, oldest first."""
    field = store.field_scores()
    return [_version_row(row, field.get(row.model_version, (0, 0))) for row in store.versions()]


def _version_row(row: VersionRow, field: tuple[int, int]) -> dict[str, Any]:
    return {**msgspec.structs.asdict(row), "field_correct": field[0], "field_count": field[1]}


def plan_row(plan: Plan) -> dict[str, Any]:
    """A plan's fields, and the digest by which offers name it."""
    return {**msgspec.structs.asdict(plan), "digest": digest_of(encode(plan))}


def version_row(store: Store, version: int) -> dict[str, Any]:
    """One version with its files and the updates that it counts; ViewError when there is none."""
    manifest = manifest_of(store, version)
    row = next(row for row in version_rows(store) if row["model_version"] == version)
    row["model"], row["num_params"] = manifest.model, manifest.num_params
    row["files"] = [
        {"name": file.name, "size_bytes": file.size_bytes, "digest": file.digest} for file in manifest.files
    ]
    members = [update for update in store.updates() if update.counted_in == version]
    row["updates"] = [msgspec.structs.asdict(update) for update in members]
    row["trials"] = [msgspec.structs.asdict(trial) for trial in store.stages.trials(model_version=version)]
    return row


def wish_promoted(store: Store, version: int) -> None:
    """Let the candidate be the fleet's version, whatever its trials say; ViewError when it is no candidate."""
    stage = _stage_of(store, version)
    if stage != "candidate":
        raise ViewError(f"version {version} is {stage}: only a candidate can be promoted")
    store.stages.wish(version, "promote")


def wish_restored(store: Store, version: int | None) -> int:
    """Let the fleet go back to the numbers of `version`, by default those before the newest; the version meant.

    ViewError when it is not there, is no longer kept, or was never the fleet's.
    """
    newest = store.versions()[-1]
    wanted = newest.parent_version if version is None else version
    stage = _stage_of(store, wanted)
    if wanted == newest.model_version or stage != "promoted":
        raise ViewError(
            f"version {wanted} is {'the newest' if stage == 'promoted' else stage}: name an older, promoted one"
        )
    for file in manifest_of(store, wanted).files:
        store.blob(file.digest)  # StoreError where it is too old
    store.stages.wish(wanted, "restore")
    return wanted


def _stage_of(store: Store, version: int) -> str:
    manifest_of(store, version)
    return next(row.stage for row in store.versions() if row.model_version == version)


def manifest_of(store: Store, version: int) -> Manifest:
    """The manifest of one version; ViewError when there is none."""
    manifest = store.manifest(version)
    if manifest is None:
        raise ViewError(f"there is no version {version}: see broker model list")
    return manifest


def current_plan(config: Config, store: Store, **changes: float | str) -> Plan:
    """The configured plan for the newest version, with `changes` to its recipe."""
    from broker.plans import plan_of  # brings the kernels, which no other view needs
    from broker.versions import frame_under

    manifest = store.manifest()
    if manifest is None:
        raise StoreError(f"{store.place} holds no model: make a new directory with broker init")
    return plan_of(config, manifest, frame_under(manifest, config.model.train, store), **changes)


def cost_of_plan(config: Config, store: Store, plan: Plan) -> Cost:
    """What one update of `plan` costs on the wire and here; measured now."""
    from broker.cost import cost_of
    from broker.versions import frame_under

    manifest = store.manifest()
    if manifest is None:
        raise StoreError(f"{store.place} holds no model: make a new directory with broker init")
    return cost_of(plan, frame_under(manifest, config.model.train, store))


def ask_for_rounds(
    config: Config,
    store: Store,
    *,
    count: int,
    lasts_ms: int | None = None,
    choice: Choice | None = None,
    mode: Mode | None = None,
    updates_min: int | None = None,
    updates_enough: int | None = None,
    cohort_max: int | None = None,
    oversample: float | None = None,
    **recipe: float | str | None,
) -> list[int]:
    """Let rounds wait in the store; None is what the configuration says. Returns their numbers."""
    plan = current_plan(config, store, **{key: value for key, value in recipe.items() if value is not None})
    asked = {
        "mode": mode,
        "updates_min": updates_min,
        "updates_enough": updates_enough,
        "cohort_max": cohort_max,
        "oversample": oversample,
    }
    wish = msgspec.structs.replace(config.round, **{key: each for key, each in asked.items() if each is not None})
    if 0 < wish.cohort_max < wish.updates_min:
        raise ConfigError(f"a round of {wish.cohort_max} devices cannot wait for {wish.updates_min} updates")
    invited, enough = cohort_of(wish)
    rings = config.rollout.rings
    row = RoundRow(
        0,
        plan,
        "waiting",
        wish.updates_min,
        invited,
        lasts_ms or wish.lasts_s * 1000,
        mode=wish.mode,
        updates_enough=enough,
        choice=choice or Choice(),
        ring=Ring(config.rollout.worse_rate, config.rollout.error_rate) if rings else None,
    )
    asked_for = store.ask_for([row, *trials_of(plan, config.rollout)] * count)
    return asked_for[:: 1 + len(rings)]


def trials_of(plan: Plan, rollout: Rollout) -> list[RoundRow]:
    """The rounds in which one ring after the other tries what a round of `plan` makes."""
    trial = msgspec.structs.replace(plan, lane="trial")
    last = len(rollout.rings) - 1
    return [
        RoundRow(
            0,
            trial,
            "waiting",
            min(devices, rollout.answers_min),
            devices,
            rollout.lasts_s * 1000,
            choice=Choice(tags=rollout.tags),
            ring=Ring(rollout.worse_rate, rollout.error_rate, is_last=number == last),
        )
        for number, devices in enumerate(rollout.rings)
    ]


def choice_of(tags: str, battery_rate_min: float, version_min: int, at_most: str | None) -> Choice:
    """Whom a round is for; ViewError for what cannot be asked. `tags` as in "outdoor,north", `at_most` as in 2/10."""
    named = tags_of(tags)
    found = re.fullmatch(r"([1-9]\d?)/([1-9]\d?)", at_most or "1/1")
    most, of_rounds = (int(found[1]), int(found[2])) if found else (0, 0)
    if found is None or of_rounds > ROUNDS_MAX or most > of_rounds:
        raise ViewError(
            f"{at_most!r} is no cap: write 2/10 for no more than 2 of the last 10 rounds, of {ROUNDS_MAX} at most"
        )
    cap = {"rounds_max": most, "rounds_of": of_rounds} if at_most else {}
    return Choice(tags=named, battery_rate_min=battery_rate_min, version_min=version_min, **cap)


def cohort_of(wish: Round) -> tuple[int, int]:
    """(how many devices are to be drawn, 0: all; with how many updates the round closes at once, 0: with all of them).

    A synchronous round invites more than it wants, and closes with those that it wanted (Bonawitz et al. 2019,
    section 9, arXiv:1902.01046); a buffered one waits for no more than there will be.
    """
    if wish.mode == "synchronous":
        return math.ceil(wish.cohort_max * wish.oversample), wish.cohort_max if wish.oversample > 1 else 0
    enough = max(wish.updates_min, wish.updates_enough)
    return wish.cohort_max, min(enough, wish.cohort_max) if wish.cohort_max else enough


def cancel_round(store: Store, round_id: int) -> bool:
    """Let a round be cancelled that has not ended; is it already? ViewError when it made a version, or is none."""
    with store.transaction():
        row = next((row for row in store.rounds() if row.round_id == round_id), None)
        if row is None:
            raise ViewError(f"there is no round {round_id}: see broker round list")
        if row.status == "closed" and not row.is_cancelled:
            raise ViewError(f"round {round_id} has closed already: it made version {row.model_version}")
        store.cancel_round(round_id)
    return row.is_cancelled
