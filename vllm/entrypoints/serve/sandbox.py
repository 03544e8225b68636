"""Templates that requests bring run in a process of their own.

Jinja's sandbox keeps a template from what it must not see, not from running for ever or from taking all memory; only a
process can be ended.  It costs a tenth of a second, for requests that are rare.

    {"model", "special_tokens", "messages", "options", "patience"} ─▶ python -m …sandbox ─▶ {"text"} | {"error", "param"}

What a template takes is counted in seconds of the processor, so that a busy machine does not make a good one fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import signal
import sys
from typing import Any

import msgspec

from vllm.errors import RequestError, VllmError
from vllm.inputs.chat import ChatOptions, ChatRenderer, Message

PATIENCE = 3.0
"""Seconds of the processor that a template may take."""
_DEADLINE = 10  # times as long its process may take by the clock, start included
_MEMORY = 512 * 2**20  # bytes that it may address


async def render_apart(
    turn: asyncio.Semaphore, renderer: ChatRenderer, messages: list[Message], options: ChatOptions
) -> str:
    """Return the text of a conversation by the template in `options`, in its turn.  Raises RequestError."""
    task = {
        "model": renderer.model,
        "special_tokens": renderer.special_tokens,
        "messages": messages,
        "options": dataclasses.asdict(options),
        "patience": PATIENCE,
    }
    too_long = f"the chat template took longer than {PATIENCE:g} seconds; send a simpler one"
    async with turn:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "vllm.entrypoints.serve.sandbox"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(PATIENCE * _DEADLINE):
                out, _ = await process.communicate(msgspec.json.encode(task))
        except TimeoutError:
            raise RequestError(too_long, "chat_template") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode == -signal.SIGPROF:
        raise RequestError(too_long, "chat_template")
    if process.returncode != 0:
        raise RequestError("the chat template took more memory than it may", "chat_template")
    result = msgspec.json.decode(out)
    if "error" in result:
        raise RequestError(result["error"], result["param"])
    return result["text"]


def _limit(patience: float) -> None:
    """Let this process take no more than it needs from now on."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        signal.setitimer(signal.ITIMER_PROF, patience)  # its signal ends a process that does not expect it


def _run(task: dict[str, Any]) -> dict[str, Any]:
    renderer = ChatRenderer(task["model"], {}, task["special_tokens"])
    try:
        return {"text": renderer.render(task["messages"], ChatOptions(**task["options"]))}
    except VllmError as error:
        return {"error": str(error), "param": getattr(error, "param", None) or "chat_template"}


if __name__ == "__main__":
    given = msgspec.json.decode(sys.stdin.buffer.read())
    _limit(given["patience"])
    sys.stdout.buffer.write(msgspec.json.encode(_run(given)))
