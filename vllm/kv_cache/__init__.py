"""Host bookkeeping of the paged KV cache: which layer needs what (`spec`), which block is whose (`pool`, `cache`),
and which content a block holds (`hashing`).  No tensors here."""
