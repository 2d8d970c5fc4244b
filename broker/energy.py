"""Energy: what learning adds to a board that is on anyway. Estimated from what a fleet did: no device measures it.

Learning adds `core_w` for each second that a core is busy, and the radio adds energy for each byte and for the time
that it is kept awake.

Where the figures come from (M: measured by the source; E: our estimate). We have read pidramble, raspberry.tips, and
Feeney and Nilsson only as others quote them:

- `idle_w` M, `core_w` M, a quarter of what `stress --cpu 4` adds: Pi 3B+ 1.9 and 5.1 W, Pi 4B 2.7 and 6.4 W, headless,
  Wi-Fi on and not connected (pidramble.com/wiki/benchmarks/power-consumption); Pi 5 3.0 and 8.8 W (raspberry.tips,
  "about"; a linear solver takes it to 11 W: geerlingguy/top500-benchmark, issue 18).
- Pi Zero 2 W: idle 0.6 W M (cnx-software.com, 2021-12-09). `core_w` E: a Pi Zero takes 1.2 W at full load (pidramble),
  a Zero 2 W 1.4 W more than a Zero W (M: andrejacobs.org, 2021), so 2.6 W with four busy cores. Raspberry Pi's
  documentation calls 350 mA, 1.8 W, typical when active.
- Wi-Fi, energy a byte: 1.9 µJ a byte and 420 µJ a packet sent, 0.42 and 330 received (M, for a card of 2001: Feeney and
  Nilsson, IEEE INFOCOM 2001), in packets of 1,000 bytes. We take it for an upper bound: newer radios are faster.
- Wi-Fi awake instead of in power save, 0.3 W: E.
- `core_ratio`, how many seconds a core there works for one here: E, by clock and width of the core against a server
  core of about 3 GHz that runs the same kernels. It is the weakest figure: who has a board, measures one training
  (`edge-agent bench`) and puts the quotient in its place.
- `START_CORE_S`, a training child before its first step (Python, NumPy, compiled kernels): M, in the demo, whose ten
  devices' 200 trainings took 277 s of such a server core and learned for a few seconds of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterable

WH_J: Final = 3600.0
ROUND_AWAKE_S: Final = 1.0  # that one round keeps a device's radio awake: five exchanges of 0.2 s (estimated)
START_CORE_S: Final = 1.4


class Radio(Struct, frozen=True):
    """A radio's cost beyond standing by."""

    up_j_per_byte: float
    down_j_per_byte: float
    awake_w: float


class Board(Struct, frozen=True):
    """One kind of device."""

    name: str
    idle_w: float
    core_w: float  # that one busy core adds
    cores: int
    core_ratio: float
    radio: Radio


WIFI: Final = Radio(up_j_per_byte=2.3e-6, down_j_per_byte=0.75e-6, awake_w=0.3)
BOARDS: Final = (
    Board("Pi Zero 2 W", idle_w=0.6, core_w=0.5, cores=4, core_ratio=14.0, radio=WIFI),
    Board("Pi 3B+", idle_w=1.9, core_w=0.8, cores=4, core_ratio=10.0, radio=WIFI),
    Board("Pi 4B", idle_w=2.7, core_w=0.925, cores=4, core_ratio=4.5, radio=WIFI),
    Board("Pi 5", idle_w=3.0, core_w=1.45, cores=4, core_ratio=2.0, radio=WIFI),
)


class Parts(NamedTuple):
    """Joules of one round, all devices together, by what they were for."""

    starting: float
    learning: float
    radio: float


def estimate(board: Board, passes: Iterable[int], example_core_s: float, bytes_up: int, bytes_down: int) -> Parts:
    """What a round took if every device were this board.

    `passes` are the examples of each device that took part, times their epochs; one takes `example_core_s` of a core
    of this machine.
    """
    trained = list(passes)
    awake_s = ROUND_AWAKE_S * len(trained)
    return Parts(
        joules(board, START_CORE_S * len(trained), 0, 0, 0.0),
        joules(board, example_core_s * sum(trained), 0, 0, 0.0),
        joules(board, 0.0, bytes_up, bytes_down, awake_s),
    )


def joules(board: Board, core_s: float, bytes_up: int, bytes_down: int, awake_s: float) -> float:
    """What learning adds to idle: `core_s` of this machine's cores, bytes over the radio, the radio awake."""
    radio = board.radio
    carried = radio.up_j_per_byte * bytes_up + radio.down_j_per_byte * bytes_down
    return board.core_w * board.core_ratio * core_s + carried + radio.awake_w * awake_s
