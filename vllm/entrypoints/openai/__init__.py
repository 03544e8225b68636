"""The door that the interface calls `vllm.entrypoints.openai`."""
