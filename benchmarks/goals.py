"""What this engine is to reach, as data: so many times as fast as a peer, so large a share of the floor, so much memory.

A ratio is the median over rounds; a peer that was not measured leaves its goal open.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ours in a precision is at least `least` times as fast as a peer."""

    ours: str
    peer: str
    workload: str
    measure: str
    least: float
    why: str = ""
    """What is known of why it was missed."""


@dataclass(frozen=True, slots=True)
class Share:
    """Ours reaches at least `least` of the floor."""

    ours: str
    workload: str
    measure: str
    least: float
    why: str = ""


@dataclass(frozen=True, slots=True)
class Most:
    """A quantity of ours ("start_up" in seconds, "memory" in GB) is at most `most`."""

    ours: str
    quantity: str
    most: float


_MEMORY = "this machine's memory reads 35 or 60 GB/s from minute to minute, and turns fell into different minutes"
_ONE_ROW = (
    "the products of a layer are too small to reach the rate of a long read: 22 to 27 GB/s where a matrix of 200 MB "
    "reaches 33, and faster memory helps them less"
)
_BETWEEN = "between its products a layer takes 20 to 35 µs, and drawing a token 0.3 ms, of 30 ms a token"
_MANY_ROWS = "quantizing activations, attention and norms, which stay in bfloat16, take what the products leave"
_PREFILL = "attention and norms run beside the matrix products, which reach 0.94 of the roof"

RATIOS = (
    Ratio("ours-bf16", "vllm", "W1", "decode_rate", 1.6),
    Ratio("ours-bf16", "vllm-eager", "W1", "decode_rate", 1.6),
    Ratio("ours-bf16", "llamacpp-bf16", "W1", "decode_rate", 0.97, why=_MEMORY),
    Ratio("ours-int8", "llamacpp-q8_0", "W1", "decode_rate", 1.35),
    Ratio("ours-int8", "openvino-q8_0", "W1", "decode_rate", 1.35),
    Ratio("ours-int4", "llamacpp-q4_0", "W1", "decode_rate", 1.5),
    Ratio("ours-int4", "openvino-q4_0", "W1", "decode_rate", 1.5),
    Ratio("ours-bf16", "vllm", "W1", "first_token", 1.05),
    Ratio("ours-int8", "openvino-q8_0", "W1", "first_token", 1.3),
    Ratio("ours-bf16", "vllm", "W2", "output_rate", 1.15),
    Ratio("ours-int8", "openvino-q8_0", "W2", "output_rate", 1.4),
    Ratio("ours-int4", "openvino-q4_0", "W2", "output_rate", 1.3),
    Ratio("ours-bf16", "vllm", "W3", "first_token", 1.1),
    Ratio("ours-int8", "openvino-q8_0", "W3", "first_token", 1.3),
    Ratio("ours-bf16", "vllm", "W4", "total", 1 / 0.75, why=_PREFILL),
    Ratio("ours-bf16", "vllm", "W5", "output_rate", 1.1, why=_PREFILL),
    Ratio("ours-int8", "vllm", "W5", "output_rate", 1.8, why=_MANY_ROWS),
)
SHARES = (
    Share("ours-bf16", "W1", "decode_rate", 0.85, why=_BETWEEN),
    Share("ours-int8", "W1", "decode_rate", 0.80, why=_ONE_ROW),
    Share("ours-int4", "W1", "decode_rate", 0.70, why=_ONE_ROW),
    Share("ours-bf16", "W1", "first_token", 0.85, why=_PREFILL),
    Share("ours-int8", "W1", "first_token", 0.70, why=_MANY_ROWS),
    Share("ours-bf16", "W3", "first_token", 0.85, why=_PREFILL),
    Share("ours-int8", "W3", "first_token", 0.70, why=_MANY_ROWS),
    Share("ours-bf16", "W2", "output_rate", 0.80),
    Share("ours-bf16", "W5", "output_rate", 0.80),
)
LIMITS = (
    Most("ours-bf16", "start_up", 3.0),
    Most("ours-bf16", "memory", 1.6),
    Most("ours-int4", "memory", 0.8),
)
