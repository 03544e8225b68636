"""What is asked: random prompts of a given length, or those of a file.

random     words drawn at random, so many tokens of them
sharegpt   a JSON list of {"conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}, …]}:
           the first message is the prompt, the length of the answer is how much is asked for
jsonl      a line per request, {"prompt": …} or {"messages": […]}, and "max_tokens" if a line has its own
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm.errors import ConfigError

if TYPE_CHECKING:  # help is shown without what the room of inputs needs
    from vllm.inputs.tokenizer import Tokenizer

NAMES = ("random", "sharegpt", "jsonl", "custom")
_FEWEST_WORDS = 20
_TRIES = 20
_SHORTEST = 4  # tokens; shorter conversations are noise


@dataclass(frozen=True, slots=True)
class Sample:
    """One request to be."""

    prompt: str
    num_prompt: int = 0
    """Tokens of the prompt; 0 where nobody has counted."""
    max_tokens: int | None = None
    messages: list[dict[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which samples."""

    name: str
    path: str | None
    count: int
    input_len: int
    output_len: int | None
    range_ratio: float
    prefix_len: int
    seed: int


def add_sample_options(parser: argparse.ArgumentParser, count: int, input_len: int, output_len: int) -> None:
    """Add what says which samples are wanted; the numbers are defaults."""
    group = parser.add_argument_group("requests")
    group.add_argument("--dataset-name", choices=NAMES, default="random", help="what is asked (default: %(default)s)")
    group.add_argument(
        "--dataset-path", metavar="FILE", help="file of the prompts, for sharegpt and jsonl (also: custom)"
    )
    group.add_argument("--num-prompts", type=int, default=count, help="number of requests (default: %(default)s)")
    group.add_argument(
        *("--input-len", "--random-input-len"),
        type=int,
        default=input_len,
        help="tokens of a random prompt (default: %(default)s)",
    )
    group.add_argument(
        *("--output-len", "--random-output-len", "--sharegpt-output-len", "--custom-output-len"),
        type=int,
        default=None,
        help=f"tokens of each answer at most (default: the file's, else {output_len})",
    )
    group.add_argument(
        "--random-range-ratio",
        type=float,
        default=0.0,
        help="random lengths differ by this share, below 1 (default: none)",
    )
    group.add_argument(
        "--random-prefix-len", type=int, default=0, help="tokens that all random prompts begin with, beside --input-len"
    )
    group.add_argument("--seed", type=int, default=0, help="of everything drawn (default: %(default)s)")
    parser.set_defaults(default_output_len=output_len)


def wanted_samples(options: argparse.Namespace) -> Wanted:
    """Return what the options ask for.  Raises ConfigError for what cannot be."""
    output_len = options.output_len
    if options.dataset_name == "random" and output_len is None:
        output_len = options.default_output_len
    for flag, value, least in (
        ("--num-prompts", options.num_prompts, 1),
        ("--input-len", options.input_len, 1),
        ("--output-len", output_len, 1),
        ("--random-prefix-len", options.random_prefix_len, 0),
    ):
        if value is not None and value < least:
            raise ConfigError(f"{flag} must be at least {least}, got {value}")
    if not 0.0 <= options.random_range_ratio < 1.0:
        raise ConfigError(f"--random-range-ratio must be in [0, 1), got {options.random_range_ratio}")
    if options.dataset_name == "random" and options.dataset_path:
        raise ConfigError("--dataset-path is for a file; name its form with --dataset-name sharegpt or jsonl")
    if options.dataset_name != "random" and not options.dataset_path:
        raise ConfigError(f"--dataset-name {options.dataset_name} needs the file: --dataset-path")
    return Wanted(
        "jsonl" if options.dataset_name == "custom" else options.dataset_name,
        options.dataset_path,
        options.num_prompts,
        options.input_len,
        output_len,
        options.random_range_ratio,
        options.random_prefix_len,
        options.seed,
    )


def make_samples(wanted: Wanted, tokenizer: Tokenizer | None, default_output_len: int) -> list[Sample]:
    """Return `wanted.count` samples, the same for the same seed.  A file that has fewer is gone through again.

    Raises ConfigError for a file that cannot be read, and where lengths cannot be told without a tokenizer.
    """
    if tokenizer is None and wanted.name != "jsonl":
        raise ConfigError(f"--dataset-name {wanted.name} counts tokens; name the model's folder with --tokenizer")
    draw = random.Random(wanted.seed)
    if wanted.name == "random":
        assert tokenizer is not None
        return _random(wanted, tokenizer, draw)
    path = Path(wanted.path or "").expanduser()
    if wanted.name == "sharegpt":
        assert tokenizer is not None
        found = _sharegpt(path, wanted, tokenizer, draw)
    else:
        found = _jsonl(path, wanted, tokenizer, default_output_len)
    if not found:
        raise ConfigError(f"{path} has no request that can be used")
    return [found[index % len(found)] for index in range(wanted.count)]


def _random(wanted: Wanted, tokenizer: Tokenizer, draw: random.Random) -> list[Sample]:
    words = _words(tokenizer)
    prefix = [draw.choice(words) for _ in range(wanted.prefix_len)]
    samples = []
    for _ in range(wanted.count):
        length = wanted.prefix_len + _around(wanted.input_len, wanted.range_ratio, draw)
        text, count = _text(tokenizer, words, prefix, length, draw)
        samples.append(Sample(text, count, _around(wanted.output_len or 1, wanted.range_ratio, draw)))
    return samples


def _around(length: int, ratio: float, draw: random.Random) -> int:
    spread = int(length * ratio)
    return max(1, draw.randint(length - spread, length + spread))


def _words(tokenizer: Tokenizer) -> list[int]:
    """Return tokens that stay what they are when their text is tokenized again: words with a space before them."""
    ordinary = [token for token in range(tokenizer.vocab_size) if token not in tokenizer.special_ids]
    texts = {token: tokenizer.token_text(token) for token in ordinary}
    words = [token for token, text in texts.items() if text[:1] == " " and text[1:].isascii() and text[1:].isalpha()]
    return (
        words
        if len(words) >= _FEWEST_WORDS
        else [token for token, text in texts.items() if text.isprintable() and text]
    )


def _text(
    tokenizer: Tokenizer, words: list[int], prefix: list[int], length: int, draw: random.Random
) -> tuple[str, int]:
    """Return a text of `length` tokens as a server counts them, begin token included, or as near as it gets."""
    tokens = [*prefix, *(draw.choice(words) for _ in range(length - len(prefix)))]
    text, counted = "", 0
    for _ in range(_TRIES):
        text = tokenizer.decode(tokens)
        counted = len(tokenizer.encode(text))
        if counted == length:
            break
        kept = tokenizer.encode(text, add_special_tokens=False)
        missing = length - counted
        tokens = kept[:missing] if missing < 0 else [*kept, *(draw.choice(words) for _ in range(missing))]
    return text, counted


def _sharegpt(path: Path, wanted: Wanted, tokenizer: Tokenizer, draw: random.Random) -> list[Sample]:
    content = _json(path, _read(path))
    if not isinstance(content, list):
        raise ConfigError(f"{path} must hold a JSON list of conversations")
    pairs = []
    for entry in content:
        turns = entry.get("conversations") if isinstance(entry, dict) else None
        if isinstance(turns, list) and len(turns) >= 2 and all(isinstance(turn, dict) for turn in turns[:2]):
            pairs.append((str(turns[0].get("value", "")), str(turns[1].get("value", ""))))
    draw.shuffle(pairs)
    samples: list[Sample] = []
    for prompt, answer in pairs:
        if len(samples) == wanted.count:
            break
        num_prompt = len(tokenizer.encode(prompt)) if prompt else 0
        num_output = wanted.output_len or (len(tokenizer.encode(answer, False)) if answer else 0)
        if num_prompt >= _SHORTEST and num_output >= (_SHORTEST if wanted.output_len is None else 1):
            samples.append(Sample(prompt, num_prompt, num_output))
    return samples


def _jsonl(path: Path, wanted: Wanted, tokenizer: Tokenizer | None, default_output_len: int) -> list[Sample]:
    samples = []
    for number, line in enumerate(_read(path).split("\n"), 1):
        if not line.strip():
            continue
        entry = _json(path, line, number)
        prompt, messages = (entry.get("prompt"), entry.get("messages")) if isinstance(entry, dict) else (None, None)
        if not isinstance(prompt, str) and not isinstance(messages, list):
            raise ConfigError(f"{path}, line {number}: needs a text 'prompt' or a list 'messages'")
        if not isinstance(prompt, str):
            prompt = "\n".join(
                str(message.get("content", "")) for message in messages or [] if isinstance(message, dict)
            )
        own = entry.get("max_tokens", entry.get("output_tokens"))
        if own is not None and (not isinstance(own, int) or own < 1):
            raise ConfigError(f"{path}, line {number}: max_tokens must be an integer of at least 1, got {own!r}")
        count = len(tokenizer.encode(prompt)) if tokenizer else 0
        samples.append(Sample(prompt, count, wanted.output_len or own or default_output_len, messages))
    return samples


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"--dataset-path: {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"--dataset-path: {path} is not UTF-8 text: {error}") from None


def _json(path: Path, text: str, number: int | None = None) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        where = f"{path}, line {number}" if number else str(path)
        raise ConfigError(f"{where}: it is not JSON: {error}") from None
