"""Seeds that are made from other seeds."""

from __future__ import annotations

import hashlib


def derived_seed(source: str) -> int:
    """Return a seed that depends on every character of `source`: 63 bits, a signed 64-bit integer for everyone."""
    digest = hashlib.blake2b(source.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
