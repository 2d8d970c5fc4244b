"""Every bound of the contract, in one place: first what the specification fixes, then what we chose.

A specification constant may never change within `fl/v1`; an implementation constant may differ between two
programs that still understand each other.
"""

from typing import Final

# Specification: the smallest common denominator of the MQTT services we promise to work with.
PAYLOAD_BYTES_MAX: Final = 120_000  # AWS IoT and Alibaba stop at 128 kB; we leave room for their headers
TOPIC_SLASHES_MAX: Final = 7
CHUNK_BYTES_MAX: Final = 96 * 1024  # a chunk plus its envelope stays below PAYLOAD_BYTES_MAX
UPDATE_PAYLOAD_BYTES_MAX: Final = 100_000
FILE_BYTES_MAX: Final = 64 * 1024 * 1024
FILE_CHUNKS_MAX: Final = 1024
FILES_MAX: Final = 4
OPERATORS_MAX: Final = 64
WANT_RANGES_MAX: Final = 16
WANT_CHUNKS_MAX: Final = 8  # how many chunks one want may ask for; a device asks again for the rest
CBOR_DEPTH_MAX: Final = 6
CBOR_ITEMS_MAX: Final = 8192
PARAMS_MAX: Final = 16 * 1024 * 1024
EXAMPLES_MAX: Final = 1_000_000
REASON_CHARS_MAX: Final = 160
TRAIN_CHARS_MAX: Final = 512
NONCE_BYTES_MAX: Final = 32
REQUEST_BYTES_MAX: Final = 1024  # of a request for a certificate; 220 is usual
CERTIFICATE_BYTES_MAX: Final = 2048
COIN_SIDES: Final = 2**32  # of the coin that decides who is drawn (wire/coin.py)

# Implementation: ours, and safe to change.
KEEPALIVE_S: Final = 45  # a dead device is noticed within 68 s (1.5 x keepalive, MQTT 3.1.1 section 3.1.2.10)
IN_FLIGHT_MAX: Final = 4
RECONNECT_MS_MIN: Final = 500
RECONNECT_MS_MAX: Final = 15 * 60 * 1000
RESEND_MS_MIN: Final = 4_000
RESEND_MS_MAX: Final = 15 * 60 * 1000
