"""A list of kernel calls that is written down first, and given its memory afterwards.

Whoever compiles a model (`engine/program.py`) asks for *rooms*, arrays that have a shape but no place yet, and records
calls of kernels upon them. The number of a call is a moment in time; a room lives from the first call that names it to
the last. Once the recording is over, `engine/memory.py` lays all rooms into one arena, so that rooms whose lives do not
overlap share their bytes. So how many bytes a training needs is known exactly, before a byte of it is taken.

The first dimension of a *batched* room is the number of examples; the arena is laid out for the largest batch, and a
smaller one uses the front of each room. Kernels get plain NumPy views into the arena.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.kernels._jit import bind
from engine.memory import Buffer, place

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


@dataclass(eq=False, slots=True)
class Room:
    """An array to be: `shape` is without the batch; `root` is the room whose bytes it shows in another shape."""

    label: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    batched: bool
    root: Room | None = None
    first: int = -1
    last: int = -1
    content: NDArray[Any] | None = None  # what it holds from the start; such a room lives for ever

    def seen_as(self, shape: tuple[int, ...]) -> Room:
        """Give the same bytes under another shape (per example, if batched) of as many entries."""
        assert prod(shape) == prod(self.shape), f"{self.label}: {self.shape} cannot be seen as {shape}"
        if shape == self.shape:
            return self
        return Room(self.label, shape, self.dtype, self.batched, self.root or self)

    def bytes_of(self, batch: int) -> int:
        """How many bytes it takes with room for `batch` examples."""
        return int(prod(self.shape)) * self.dtype.itemsize * (batch if self.batched else 1)


@dataclass(frozen=True, slots=True)
class Late:
    """An argument that is worked out anew for every step, from the number of the step and this `number`."""

    number: int


@dataclass(eq=False)
class Tape:
    """The recording: rooms and calls, in order. `answers` are the calls whose results a run hands back."""

    rooms: list[Room] = field(default_factory=list)
    calls: list[tuple[Any, tuple[Any, ...]]] = field(default_factory=list)

    def room(self, label: str, shape: tuple[int, ...], dtype: Any, *, batched: bool = False) -> Room:
        """Ask for an array that holds nothing yet."""
        made = Room(label, tuple(int(n) for n in shape), np.dtype(dtype), batched)
        self.rooms.append(made)
        return made

    def constant(self, label: str, content: NDArray[Any]) -> Room:
        """Ask for an array that holds `content` from the start and lives for ever (weights, tables, counts)."""
        made = self.room(label, content.shape, content.dtype)
        made.content = content
        return made

    def call(self, kernel: Any, *arguments: Any) -> int:
        """Record one call; give its number."""
        moment = len(self.calls)
        for argument in arguments:
            if isinstance(argument, Room):
                self.touch(argument, moment)
        self.calls.append((kernel, arguments))
        return moment

    def touch(self, room: Room, moment: int) -> None:
        """Say that `room` is in use at `moment`."""
        root = room.root or room
        root.first = moment if root.first < 0 else min(root.first, moment)
        root.last = max(root.last, moment)

    def places(self, batch: int) -> tuple[dict[int, int], int]:
        """Give the offset of each room (by identity) in an arena for `batch` examples, and the size of that arena."""
        used = [room for room in self.rooms if room.last >= 0 or room.content is not None]
        end = len(self.calls)
        buffers = [
            Buffer(
                room.label, room.bytes_of(batch), *((0, end) if room.content is not None else (room.first, room.last))
            )
            for room in used
        ]
        offsets, total = place(buffers)
        return {id(room): offset for room, offset in zip(used, offsets, strict=True)}, total


class Arena:
    """The memory of one tape for batches of up to `batch`, and its calls bound to it."""

    def __init__(self, tape: Tape, batch: int) -> None:
        self.tape = tape
        self.batch = batch
        self.offsets, self.num_bytes = tape.places(batch)
        # kernels like their rows on cache lines; NumPy promises 16 bytes only
        raw = np.zeros(self.num_bytes + 64, dtype=np.uint8)
        self._bytes = raw[-raw.ctypes.data % 64 :][: self.num_bytes]
        for room in tape.rooms:
            if room.content is not None:
                np.copyto(self.array(room), room.content)

    def array(self, room: Room, count: int | None = None) -> NDArray[Any]:
        """Give the room as an array; a batched one holds `count` examples (all it can, if None)."""
        examples = self.batch if count is None else count
        start = self.offsets[id(room.root or room)]
        part = self._bytes[start : start + room.bytes_of(examples)].view(room.dtype)
        return part.reshape((examples, *room.shape) if room.batched else room.shape)

    def bound(self, count: int, late: Callable[[int], Any]) -> list[Callable[[], Any]]:
        """Bind every call for batches of `count` examples; `late` works out `Late` arguments when a call is made."""
        return [self._bind(kernel, arguments, count, late) for kernel, arguments in self.tape.calls]

    def _bind(
        self, kernel: Any, arguments: tuple[Any, ...], count: int, late: Callable[[int], Any]
    ) -> Callable[[], Any]:
        given = [self.array(one, count) if isinstance(one, Room) else one for one in arguments]
        if not any(isinstance(one, Late) for one in given):
            bound: Callable[[], Any] = bind(kernel, *given) if hasattr(kernel, "bind") else partial(kernel, *given)
            return bound
        return lambda: kernel(*(late(one.number) if isinstance(one, Late) else one for one in given))
