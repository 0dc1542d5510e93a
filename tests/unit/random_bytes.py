"""Random bytes that are given to pickle."""

from __future__ import annotations

from hypothesis import strategies as st

__all__ = ["harmless_bytes"]


def harmless_bytes(max_size: int) -> st.SearchStrategy[bytes]:
    """Return a strategy for bytes without PUT and LONG_BINPUT.

    With a random index they have pickle make a table of up to 64 GB, and fill it: 5 bytes take 13 s and 8 GB.
    """
    return st.binary(max_size=max_size).filter(lambda data: not {*b"pr"} & {*data})
