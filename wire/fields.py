"""What the fields of messages are made of: names, numbers, digests and texts, each with its bound."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta

from wire import limits

DeviceId: TypeAlias = Annotated[str, Meta(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?\Z")]
Digest: TypeAlias = Annotated[bytes, Meta(min_length=32, max_length=32)]  # SHA-256
Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**53)]
RoundId: TypeAlias = Annotated[int, Meta(ge=1, le=2**53)]
Version: TypeAlias = Annotated[int, Meta(ge=0, le=2**53)]
DurationMs: TypeAlias = Annotated[int, Meta(ge=1, le=366 * 24 * 3600 * 1000)]
Reason: TypeAlias = Annotated[  # no control characters: reasons are shown on terminals and written to logs
    str, Meta(max_length=limits.REASON_CHARS_MAX, pattern=r"^[^\x00-\x1f\x7f-\x9f]*\Z")
]
Name: TypeAlias = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
Train: TypeAlias = Annotated[  # last-3, bias-4, blocks-2, full, or a list of operators: 9:b,10:w/4,14:w
    str,
    Meta(
        max_length=limits.TRAIN_CHARS_MAX,
        pattern=r"^(?:full|(?:last|bias|blocks)-[1-9][0-9]{0,2}"
        r"|[0-9]{1,5}:(?:b|w(?:/[248])?)(?:,[0-9]{1,5}:(?:b|w(?:/[248])?))*)\Z",
    ),
]
Url: TypeAlias = Annotated[str, Meta(pattern=r"^(?:https?://[\x21-\x7e]{1,200})?\Z")]
Examples: TypeAlias = Annotated[int, Meta(ge=0, le=limits.EXAMPLES_MAX)]
