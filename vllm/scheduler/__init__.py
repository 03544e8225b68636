"""Who runs in a step, and how far.  No tensors here."""
