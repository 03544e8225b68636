"""The server: HTTP in front of an engine that runs in a process of its own.

    bytes ─▶ connection ─▶ App ─▶ guard ─▶ route ─▶ handler ─▶ Engine
             (uvicorn)            key, limits        │
    bytes ◀────────────────── Reply | EventStream ◀──┘

An endpoint family is a module that exports its `ROUTES`; `routes.py` lists them.  Nothing in here imports torch.
"""
