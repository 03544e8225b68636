"""Files of requests: read, answered by a model in this process or by a server."""
