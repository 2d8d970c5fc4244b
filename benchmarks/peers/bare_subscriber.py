"""The least that anybody can do who receives updates: a paho subscriber that only counts.

    python bare_subscriber.py HOST PORT FILTER WARM COUNT

Prints "ready" when it is subscribed, and after WARM and COUNT messages of quality of service 1 the processor seconds
that the latter took.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion


class Counter:
    """Counts, and stops the clock."""

    def __init__(self, warm: int, count: int) -> None:
        self._left = warm + count
        self._count = count
        self._began_s = 0.0

    def on_message(self, client: Client, _data: object, _message: object) -> None:
        """One more."""
        self._left -= 1
        if self._left == self._count:
            self._began_s = time.process_time()
        if not self._left:
            print(time.process_time() - self._began_s, flush=True)
            client.disconnect()


def main() -> None:
    """Subscribe, count, tell."""
    host, port, topic, warm, count = sys.argv[1:6]
    client = Client(CallbackAPIVersion.VERSION2, client_id="bare")
    client.on_message = Counter(int(warm), int(count)).on_message

    def on_subscribe(*_: Any) -> None:
        print("ready", flush=True)

    client.on_subscribe = on_subscribe
    client.on_connect = lambda *_: client.subscribe(topic, qos=1)
    client.connect(host, int(port))
    client.loop_forever()


if __name__ == "__main__":
    main()
