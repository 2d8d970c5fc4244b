"""What readers of bytes raise. Apart from `engine/codec/header.py`, so that it can be caught without the kernels."""


class CodecError(Exception):
    """Bytes that are no update, or numbers that cannot become one; the message says which and where."""
