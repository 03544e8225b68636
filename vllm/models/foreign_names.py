"""Architectures that generate and that transformers' own modules compute here, each found right by the conformance suite."""

DECODERS: frozenset[str] = frozenset([])

ONE_BY_ONE: frozenset[str] = frozenset([])
"""Those whose module can't take several tokens on top of what it remembers: after its first chunk a prompt is computed token
by token."""
