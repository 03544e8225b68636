"""Names for the content of full blocks: chained sha256.

A block's hash covers every token from the start of its sequence, so equal hashes mean equal context.  The chain's root
carries the cache salt: requests with different salts never share.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence


def chain_root(salt: str | None) -> bytes:
    """Return what the first block's hash is chained to."""
    return hashlib.sha256(b"vllm" if salt is None else b"vllm\0" + salt.encode("utf-8", "surrogatepass")).digest()


def extend_chain(
    hashes: list[bytes],
    root: bytes,
    tokens: list[int],
    block_size: int,
    num_blocks: int,
    named: Sequence[tuple[int, int, bytes]] = (),
) -> None:
    """Append to `hashes` until it names the first `num_blocks` full blocks of `tokens`.

    `named` are ranges [first, end) of tokens that look alike and stand for something else, each with a name for that.
    """
    parent = hashes[-1] if hashes else root
    for block in range(len(hashes), num_blocks):
        begin, stop = block * block_size, (block + 1) * block_size
        content = array("q", tokens[begin:stop]).tobytes()
        names = b"".join(name for first, end, name in named if first < stop and end > begin)
        parent = hashlib.sha256(parent + content + names).digest()
        hashes.append(parent)
