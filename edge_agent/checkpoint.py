"""The checkpoint: all that the agent's machine remembers, as one value. Pure.

An `Agent` that is built from a checkpoint decides from there on as the one that gave it would have: `story` relies on
it when it forgets the beginning of a life. It holds what came from the coordinator and from the host, and the outbox;
no key and no sample. Each part of the machine describes its own memory: the outbox's clock, presence, tries, download.
"""

from msgspec import Struct, field

from edge_agent.download import DownloadCheckpoint
from edge_agent.effects import Durable, Job, Reading
from edge_agent.outbox import OutboxCheckpoint
from edge_agent.presence import PresenceCheckpoint
from edge_agent.tries import TriesCheckpoint
from wire.messages import Manifest, Offer, Plan, Receipt


class Checkpoint(Struct, frozen=True):
    """The machine's memory; the defaults are those of a boot. The fields are the agent's own, without underscores."""

    durable: Durable
    reason: str = ""
    receipt: Receipt | None = None
    refused_count: dict[str, int] = field(default_factory=dict)
    reading: Reading = Reading()
    plans: dict[bytes, Plan] = field(default_factory=dict)
    manifest: Manifest | None = None
    offer: Offer | None = None
    offer_ends_ms: int = 0
    training: Job | None = None
    training_ends_ms: int = 0
    outbox: OutboxCheckpoint = OutboxCheckpoint()
    presence: PresenceCheckpoint = PresenceCheckpoint()
    tries: TriesCheckpoint = TriesCheckpoint()
    download: DownloadCheckpoint | None = None  # of `manifest`
