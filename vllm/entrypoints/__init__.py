"""What people call: the offline `LLM`, the `vllm` command, chat templates."""
