"""An accelerometer on the I2C bus: three numbers in m/s² a sample. Needs the extra `hedgerow[i2c]`, which is smbus2.

Two chips that makers have: ADXL345 (Analog Devices, data sheet rev. G: registers 0x2D, 0x31, 0x32) and MPU-6050
(InvenSense, register map rev. 4.2: 0x6B, 0x1C, 0x3B), each at its usual address, in its smallest range but one.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from edge_agent.sources.settings import SourceError
from edge_agent.sources.windower import HOLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

GRAVITY: Final = 9.80665  # m/s²
FAILURES_MAX: Final = 100  # reads in a row that fail: then it is gone
PERIOD_S_MIN: Final = 0.001


class Chip(NamedTuple):
    """How one kind of chip is spoken to."""

    address: int
    wake: tuple[tuple[int, int], ...]  # (register, value), to be written in this order
    first: int  # of six registers with x, y and z, 16 bits each
    order: str  # of their bytes, as NumPy writes it
    step: float  # m/s² of one unit


CHIPS: Final = {
    "adxl345": Chip(0x53, ((0x31, 0x09), (0x2D, 0x08)), 0x32, "<i2", GRAVITY / 256),  # ±4 g, full resolution; measure
    "mpu6050": Chip(0x68, ((0x6B, 0x00), (0x1C, 0x08)), 0x3B, ">i2", GRAVITY / 8192),  # awake; ±4 g
}


class Accelerometer:
    """A sample every `period_s` from the chip of this name on this bus. Raises SourceError where it cannot be had."""

    def __init__(self, bus: int, chip: str, period_s: float, drop: Callable[[str], None]) -> None:
        self._chip, self._period_s, self._drop = CHIPS[chip], max(period_s, PERIOD_S_MIN), drop
        self._where = f"{chip} on I2C bus {bus}"
        self._bus = _open(bus, self._chip, self._where)
        self._is_open = True

    def pieces(self) -> Iterator[NDArray[np.float32]]:
        """See `edge_agent.sources.source.Source`."""
        failures, due_s = 0, time.monotonic()
        while self._is_open:
            try:
                data = bytes(self._bus.read_i2c_block_data(self._chip.address, self._chip.first, 6))
            except OSError as error:
                failures += 1
                self._drop("not read")
                if failures > FAILURES_MAX:
                    raise SourceError(f"{self._where} answers no more: {error.strerror or error}") from error
                yield HOLE
            else:
                failures = 0
                yield np.frombuffer(data, self._chip.order).astype(np.float32) * np.float32(self._chip.step)
            due_s = max(due_s + self._period_s, time.monotonic() - self._period_s)
            time.sleep(max(0.0, due_s - time.monotonic()))

    def close(self) -> None:
        """See `edge_agent.sources.source.Source`."""
        self._is_open = False
        self._bus.close()


def _open(number: int, chip: Chip, where: str) -> Any:
    """The bus, with the chip awake."""
    try:
        from smbus2 import SMBus
    except ImportError as error:
        raise SourceError("reading I2C needs smbus2: install it with pip install 'hedgerow[i2c]'") from error
    try:
        bus = SMBus(number)
        for register, value in chip.wake:
            bus.write_byte_data(chip.address, register, value)
    except OSError as error:
        raise SourceError(f"cannot wake the {where}: {error.strerror or error}; is I2C on (raspi-config)?") from error
    return bus
