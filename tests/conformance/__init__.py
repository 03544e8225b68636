"""Every architecture against transformers: the same checkpoint, the same tokens, the same logits, however it is computed."""
