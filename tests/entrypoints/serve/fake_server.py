"""A server in a process of its own, in front of a fake engine: `python -m tests.entrypoints.serve.fake_server ARGS ENGINE`.

ARGS are the fields of ServerArgs, ENGINE attributes of FakeEngine, both as JSON.  `load_seconds` is how long it loads.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from tests.entrypoints.serve.fakes import FakeEngine, FakeLoaded
from vllm.config import EngineArgs
from vllm.entrypoints.serve.lineup import one_model
from vllm.entrypoints.serve.server import run_server
from vllm.entrypoints.serve.settings import ServerArgs
from vllm.errors import ModelError, VllmError


class LoadingEngine(FakeEngine):
    load_seconds = 0.0
    cannot_load: str | None = None

    async def start(self) -> None:
        await asyncio.sleep(self.load_seconds)
        if self.cannot_load is not None:
            raise ModelError(self.cannot_load)
        self.state, self.ready = "ready", FakeLoaded()

    async def stop(self, timeout: float) -> None:
        print("stopped", json.dumps({"aborted": len(self.aborted), "finished": len(self.finished)}), flush=True)


def main(server_args: dict[str, Any], attributes: dict[str, Any]) -> int:
    def make(_: EngineArgs) -> LoadingEngine:
        engine = LoadingEngine(attributes.pop("script", "one two three four five six seven eight"))
        engine.state, engine.ready = "loading", None
        for name, value in attributes.items():
            setattr(engine, name, value)
        return engine

    try:
        args = ServerArgs(**server_args)
        return run_server([one_model(EngineArgs(model="acme/tiny"), args)], args, make)
    except VllmError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1]), json.loads(sys.argv[2])))
