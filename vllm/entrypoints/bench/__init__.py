"""`vllm bench`: how fast is it?  `serve` asks a server; throughput, latency and startup load a model themselves."""
