"""What devices fetch, as far as the machine decides it: the manifest of a new version, and the answer to a want.

A version is the base file and the parameters; a round changes the parameters, and rarely the base. Who holds the
parameters of an older version, or a base file with them in it, may be sent a patch instead of chunks: of nothing, where
they are the wanted ones. Whether a patch pays is known only once it has been made, so the shell decides that. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from broker.effects import SendChunk, SendPatch
from wire import chunks, topics
from wire.limits import WANT_CHUNKS_MAX
from wire.messages import MODEL_FILE, PARAMS_FILE, Manifest

if TYPE_CHECKING:
    from broker.effects import Aggregated, Effect
    from wire.messages import Want


def manifest_after(manifest: Manifest, made: Aggregated) -> Manifest:
    """The manifest of the version that `made` makes of `manifest`'s; a new base begins a scale epoch."""
    changed = ({MODEL_FILE: made.model} if made.model else {}) | {PARAMS_FILE: made.params}
    kept = tuple(file for file in manifest.files if file.name not in changed)
    version = manifest.model_version + 1
    return Manifest(
        model=manifest.model,
        model_version=version,
        parent_version=manifest.model_version,
        num_params=manifest.num_params,
        files=(*kept, *(chunks.split(name, content) for name, content in changed.items())),
        scale_epoch=manifest.scale_epoch + bool(made.model),
        base_version=version if made.model else manifest.base_version,
        golden=made.golden,
        operators=made.operators,
    )


def restored(newest: Manifest, wanted: Manifest) -> Manifest:
    """The manifest of the version after `newest` that has the files of `wanted`: versions only grow.

    Whoever has those files fetches nothing. Another base begins a scale epoch, even if its scales were known before.
    """
    return replace(
        wanted,
        model_version=newest.model_version + 1,
        parent_version=wanted.model_version,
        scale_epoch=newest.scale_epoch + (base_of(newest) != base_of(wanted)),
    )


def base_of(manifest: Manifest) -> bytes:
    """The digest of a version's base file."""
    return next(file.digest for file in manifest.files if file.name == MODEL_FILE)


def answer(want: Want, manifest: Manifest | None, fleet: str, device_id: str) -> list[Effect]:
    """What a device is sent that wants a file of the newest version; nothing for another file."""
    file = next((f for f in manifest.files if f.digest == want.digest), None) if manifest else None
    if manifest is None or file is None:
        return []
    topic, count = topics.dn(fleet, device_id, "chunk"), len(file.chunk_digests)
    indexes = [index for r in want.ranges for index in range(r.first, min(r.first + r.count, count))]
    parts = tuple(SendChunk(topic, file, index) for index in indexes[:WANT_CHUNKS_MAX])
    if file.name == PARAMS_FILE and parts and 0 < want.base_version <= manifest.model_version:
        way = topics.dn(fleet, device_id, "patch")
        return [SendPatch(way, file, want.base_version, manifest.model_version, parts)]
    return list(parts)
