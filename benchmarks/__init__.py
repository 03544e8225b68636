"""Our engine beside its peers: same checkpoints, same work, in turns.  `python -m benchmarks --help` says how."""
