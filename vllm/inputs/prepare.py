"""From prompts and parameters to engine requests: tokenized, checked, with defaults filled in.

Everything is checked before the first request runs, so that a call either starts whole or not at all.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm.errors import ModelError, RequestError
from vllm.inputs.encoder import EncoderRules
from vllm.inputs.media.processor import MediaProcessor
from vllm.inputs.pooling import Tokens, cut_ids, settle, tokens_of
from vllm.inputs.prompts import Prompt
from vllm.inputs.tokenizer import Tokenizer, check_text
from vllm.messages import EngineRequest, Media
from vllm.pooling_params import Pooling, PoolingParams, PoolingTask
from vllm.sampling.limits import check_ids, check_request
from vllm.sampling_params import BeamSearchParams, SamplingParams
from vllm.seeds import derived_seed

Params = SamplingParams | BeamSearchParams
_NOTHING_GENERATED = SamplingParams(max_tokens=1)
"""What a pooled request has where others say how to generate."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may ask of this model."""

    vocab_size: int
    """The model's, which may have more entries than the tokenizer."""
    max_model_len: int
    max_logprobs: int = 20
    """Most log-probabilities per position; -1: the whole vocabulary."""
    num_unwritten: int = 0
    """How many tokens behind the vocabulary a prompt may have, which are never chosen"""

    @property
    def num_readable(self) -> int:
        """How many tokens a prompt may have."""
        return self.vocab_size + self.num_unwritten


def find_eos_token_ids(
    generation_config: Mapping[str, Any], config: Mapping[str, Any], tokenizer: Tokenizer | None
) -> tuple[int, ...]:
    """Return the model's end tokens: the tokenizer's, and those of generation_config.json, else of config.json.

    Some checkpoints write -1 for none.  Raises ModelError for what is no token id.
    """
    stored = generation_config.get("eos_token_id")
    if stored is None:
        stored = config.get("eos_token_id")
    listed = [] if stored is None else list(stored) if isinstance(stored, (list, tuple)) else [stored]
    if any(isinstance(token, bool) or not isinstance(token, int) for token in listed):
        raise ModelError(f"eos_token_id={stored!r} must be a token id or a list of them; correct the model's config")
    listed = [token for token in listed if token >= 0]
    own = tokenizer.eos_token_id if tokenizer is not None else None
    return tuple(dict.fromkeys(([] if own is None else [own]) + listed))


class Preparer:
    """Makes the engine requests of one model.  Requests are numbered from 0 in the order they are prepared."""

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        limits: Limits,
        *,
        eos_token_ids: tuple[int, ...] = (),
        seed: int = 0,
        media: MediaProcessor | None = None,
        encoder: EncoderRules | None = None,
    ) -> None:
        """`tokenizer` is None for an engine that takes and gives token ids only, `media` for a model that takes text only,
        `encoder` for one without an encoder beside its decoder; `seed` is the engine's."""
        self.tokenizer = tokenizer
        self.limits = limits
        self.eos_token_ids = eos_token_ids
        self.seed = seed
        self.media = media
        self.encoder = encoder
        self._numbers = itertools.count()

    def prepare(
        self,
        prompts: Sequence[Prompt],
        params: Params | Sequence[Params],
        *,
        priority: Sequence[int] | None = None,
        request_ids: Sequence[str] | None = None,
    ) -> list[EngineRequest]:
        """Return one request per prompt.  `params` is for all of them, or a list with one for each.

        Raises RequestError naming the prompt's position; then no request has been made.
        """
        each = _one_each("sampling params", params, len(prompts))
        priorities = _priorities(priority, len(prompts))
        ids = None if request_ids is None else _one_each("request ids", request_ids, len(prompts))
        distinct = {id(param): param for param in each}
        for param in distinct.values():
            self._check_params(param)
        words = {key: self._bad_words(param) for key, param in distinct.items()}
        encoders = [Prompt()] * len(prompts)
        if self.encoder is not None:
            pairs = [self.encoder.split(prompt, f"prompt {i}") for i, prompt in enumerate(prompts)]
            encoders, prompts = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        elif any(prompt.encoder for prompt in prompts):
            raise RequestError("encoder_prompt: the model has no encoder; give 'prompt'", "encoder_prompt")
        token_ids, media = self._tokenize(prompts)
        if self.encoder is not None:
            token_ids = [self.encoder.begun(tokens) for tokens in token_ids]
            media = self._read(encoders)
        cut = [
            _truncated(tokens, param, self.limits, media=bool(found) and self.encoder is None)
            for tokens, param, found in zip(token_ids, each, media, strict=True)
        ]
        most = self.limits.max_model_len - 1
        for position, tokens in enumerate(cut):
            limit = f"max_model_len={most + 1} leaves room for {most:,}"
            self._check_tokens(tokens, position, most, limit, media[position])
        arrival = time.monotonic()
        requests = []
        for i, (prompt, param) in enumerate(zip(prompts, each, strict=True)):
            number = next(self._numbers)
            requests.append(
                EngineRequest(
                    id=str(number) if ids is None else ids[i],
                    token_ids=cut[i],
                    params=_shared_params(param),
                    prompt=prompt.text,
                    beam=param if isinstance(param, BeamSearchParams) else None,
                    eos_token_ids=self.eos_token_ids,
                    seed=self._seed_of(param, number),
                    priority=priorities[i],
                    arrival=arrival,
                    cache_salt=prompt.cache_salt,
                    bad_words_ids=words[id(param)],
                    media=media[i],
                    encoder_prompt=encoders[i].text,
                )
            )
        return requests

    def prepare_pooling(
        self,
        prompts: Sequence[Prompt],
        params: PoolingParams | Sequence[PoolingParams] | None,
        *,
        task: PoolingTask | None,
        pooling: Pooling,
        request_ids: Sequence[str] | None = None,
        priority: Sequence[int] | None = None,
    ) -> list[EngineRequest]:
        """Return one request per prompt, for a model that pools.  Otherwise as `prepare`.

        `task` is what the caller is for; None: what the parameters say, else what the model is for.  A prompt has up to
        max_model_len tokens, or max_embed_len where long ones are embedded piece by piece.
        """
        each = _one_each("pooling params", PoolingParams() if params is None else params, len(prompts))
        priorities = _priorities(priority, len(prompts))
        ids = None if request_ids is None else _one_each("request ids", request_ids, len(prompts))
        settled = {id(param): settle(param, task, pooling) for param in each}
        most, limit = self.limits.max_model_len, f"max_model_len={self.limits.max_model_len:,} is the most"
        if pooling.texts.max_embed_len is not None and all(param.task == "embed" for param in settled.values()):
            most = pooling.texts.max_embed_len
            limit = f"max_embed_len={most:,} is the most"
        asked = (param.truncate_prompt_tokens for param in each)
        keeps = [most if keep == -1 else keep for keep in asked]
        tokens = self._encode(prompts, keeps, pooling.texts.lower_case)
        media: list[list[Media]] = [[] for _ in prompts]
        for i, prompt in enumerate(prompts):
            if self.media is None:
                _refuse_media(prompt, i)
            elif prompt.media:
                ids_of, media[i] = self._with_media(prompt, i)
                tokens[i] = Tokens(ids_of, [0] * len(ids_of))
            elif self.media.config.prompts == "framed" and prompt.token_ids is None:
                ids_of = self.media.framed(prompt.text or "", f"prompt {i}")
                tokens[i] = Tokens(ids_of, [0] * len(ids_of))
        has_types = pooling.texts.num_token_types > 1
        arrival = time.monotonic()
        requests = []
        for i, (prompt, param) in enumerate(zip(prompts, each, strict=True)):
            self._check_tokens(tokens[i].ids, i, most, limit, media[i])
            requests.append(
                EngineRequest(
                    id=str(next(self._numbers)) if ids is None else ids[i],
                    token_ids=tokens[i].ids,
                    params=_NOTHING_GENERATED,
                    prompt=prompt.text,
                    pooling=settled[id(param)],
                    priority=priorities[i],
                    arrival=arrival,
                    cache_salt=prompt.cache_salt,
                    token_types=tokens[i].types if has_types and any(tokens[i].types) else [],
                    media=media[i],
                )
            )
        return requests

    def _encode(self, prompts: Sequence[Prompt], keeps: Sequence[int | None], lower_case: bool) -> list[Tokens]:
        """Tokenize texts and pairs of texts, each cut to what is to be kept of it."""
        usual = "right" if self.tokenizer is None else self.tokenizer.truncation_side
        sides = [prompt.truncation_side or usual for prompt in prompts]
        result = [cut_ids(p.token_ids or [], keep, side) for p, keep, side in zip(prompts, keeps, sides, strict=True)]
        for special in (True, False):
            texts_at = [i for i, p in enumerate(prompts) if p.token_ids is None and not p.media]
            chosen = [i for i in texts_at if prompts[i].add_special_tokens is special]
            if not chosen:
                continue
            if self.tokenizer is None:
                raise RequestError(
                    f"prompt {chosen[0]} is a text, but the engine runs without a tokenizer; give token ids", "prompt"
                )
            texts: list[str | tuple[str, str]] = []
            for i in chosen:
                text, pair = prompts[i].text or "", prompts[i].pair
                check_text(text + (pair or ""), f"prompt {i}")
                if lower_case:
                    text, pair = text.lower(), None if pair is None else pair.lower()
                texts.append(text if pair is None else (text, pair))
            for i, encoding in zip(chosen, self.tokenizer.encode_pairs(texts, special), strict=True):
                result[i] = tokens_of(encoding, keeps[i], sides[i])
        return result

    def _read(self, prompts: Sequence[Prompt]) -> list[list[Media]]:
        """Return what the encoder reads of prompts: a text, or a sound."""
        assert self.encoder is not None
        if self.encoder.reads == "audio":
            if self.media is None:
                raise RequestError("the engine has no processor of sounds", "multi_modal_data")
            sounds = [self.media.heard(prompt.media[0], f"prompt {i}") for i, prompt in enumerate(prompts)]
            return [self.encoder.sound(sound) for sound in sounds]
        tokens, _ = self._tokenize(prompts)
        for position, ids in enumerate(tokens):
            most = self.encoder.max_len or self.limits.max_model_len
            self._check_tokens(ids, position, most, f"its encoder reads at most {most:,}")
        return [self.encoder.text(ids) for ids in tokens]

    def tokens(self, prompt: Prompt) -> list[int]:
        """Return the tokens of a prompt, those included that keep places for media.  Raises RequestError."""
        return self._tokenize([prompt])[0][0]

    def _tokenize(self, prompts: Sequence[Prompt]) -> tuple[list[list[int]], list[list[Media]]]:
        """Tokenize the texts, all with the same treatment of special tokens in one go, and prepare the media."""
        result = [prompt.token_ids or [] for prompt in prompts]
        media: list[list[Media]] = [[] for _ in prompts]
        for position, prompt in enumerate(prompts):
            if self.media is None:
                _refuse_media(prompt, position)
            elif prompt.media:
                result[position], media[position] = self._with_media(prompt, position)
        texts = [i for i, prompt in enumerate(prompts) if prompt.token_ids is None and not prompt.media]
        if texts and self.tokenizer is None:
            raise RequestError(
                f"prompt {texts[0]} is a text, but the engine runs without a tokenizer; give prompt_token_ids", "prompt"
            )
        for special in (True, False):
            chosen = [position for position in texts if prompts[position].add_special_tokens is special]
            if not chosen or self.tokenizer is None:
                continue
            for position in chosen:
                check_text(prompts[position].text or "", f"prompt {position}")
            encoded = self.tokenizer.encode_batch([prompts[i].text or "" for i in chosen], special)
            for position, tokens in zip(chosen, encoded, strict=True):
                result[position] = tokens
        return result, media

    def _with_media(self, prompt: Prompt, position: int) -> tuple[list[int], list[Media]]:
        """Return the tokens of a prompt with media, and the media."""
        where = f"prompt {position}"
        assert self.media is not None
        if prompt.token_ids is None:
            check_text(prompt.text or "", where)
        return self.media.prepare(
            prompt.text, prompt.token_ids, prompt.media, prompt.processor_options, prompt.add_special_tokens, where
        )

    def _check_tokens(
        self, tokens: list[int], position: int, most: int, limit: str, media: Sequence[Media] = ()
    ) -> None:
        """Raise RequestError for more than `most` tokens, which `limit` explains, or one that there is not."""
        limits = self.limits
        if not tokens:
            raise RequestError(f"prompt {position} is empty: it has no tokens; give at least one", "prompt")
        if len(tokens) > most:
            raise RequestError(
                f"prompt {position} has {len(tokens):,} tokens, but {limit}; shorten it, set truncate_prompt_tokens, or "
                f"raise {limit.partition('=')[0]}",
                "prompt",
            )
        if media:  # what stands in a medium's place is no token of the vocabulary in some models
            taken = {place for one in media for first, end in one.spans for place in range(first, end)}
            tokens = [0 if place in taken else token for place, token in enumerate(tokens)]
        most_tokens = limits.num_readable
        if min(tokens) < 0 or max(tokens) >= most_tokens:
            index, token = next((i, t) for i, t in enumerate(tokens) if not 0 <= t < most_tokens)
            raise RequestError(
                f"prompt {position} has token id {token} at index {index}, but the model's vocabulary has "
                f"{most_tokens:,} entries; give ids from 0 to {most_tokens - 1}",
                "prompt_token_ids",
            )

    def _check_params(self, params: Params) -> None:
        if isinstance(params, BeamSearchParams):
            if params.beam_width > self.limits.vocab_size:
                raise RequestError(
                    f"beam_width={params.beam_width} is more than the vocabulary of {self.limits.vocab_size} entries",
                    "beam_width",
                )
            return
        if not isinstance(params, SamplingParams):
            raise TypeError(f"sampling_params must be SamplingParams or BeamSearchParams, got {params!r}")
        check_request(params, vocab_size=self.limits.vocab_size, max_logprobs=self.limits.max_logprobs)
        if self.tokenizer is None:
            for name in ("stop", "bad_words"):
                if getattr(params, name):
                    raise RequestError(
                        f"{name} needs a tokenizer, and the engine runs without one; use token ids", name
                    )

    def _bad_words(self, params: Params) -> list[list[int]]:
        if isinstance(params, BeamSearchParams) or not params.bad_words or self.tokenizer is None:
            return []
        variants = [ids for word in params.bad_words for ids in spellings(word, self.tokenizer)]
        for ids in variants:
            check_ids("bad_words", ids, self.limits.vocab_size)
        return variants

    def _seed_of(self, params: Params, number: int) -> int:
        if isinstance(params, SamplingParams) and params.seed is not None:
            return params.seed
        return derived_seed(f"{self.seed}:{number}")


def spellings(word: str, tokenizer: Tokenizer) -> list[list[int]]:
    """Return the ways a vocabulary spells a word: at the start of a text, after a space, and inside another word."""
    bare = word.strip(" ")
    if not bare:
        raise RequestError(f"bad_words holds {word!r}, which has no letter; give a word", "bad_words")
    start, spaced, line, inside = tokenizer.encode_batch([bare, f" {bare}", "\n", f"\n{bare}"], False)
    found = [start, spaced]
    if inside[: len(line)] == line:
        found.append(inside[len(line) :])  # after a line break no tokenizer adds a space of its own
    unique = [list(ids) for ids in dict.fromkeys(map(tuple, found)) if ids]
    if not unique:
        raise RequestError(f"bad_words holds {word!r}, which this tokenizer has no tokens for", "bad_words")
    return unique


def _one_each(name: str, values: Any, num_prompts: int) -> list[Any]:
    """Return a list with a value per prompt; a single value is for all."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        return [values] * num_prompts
    if len(values) != num_prompts:
        raise RequestError(f"{num_prompts} prompts but {len(values)} {name}; give one for all, or one for each")
    return list(values)


def _priorities(priority: Sequence[int] | None, num_prompts: int) -> list[int]:
    priorities = [0] * num_prompts if priority is None else _one_each("priorities", priority, num_prompts)
    for value in priorities:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"priority must be an integer, got {value!r}")
    return priorities


def _refuse_media(prompt: Prompt, position: int) -> None:
    """Raise RequestError for a prompt with media, or with options for them, of a model that takes text only."""
    for name, given in (("multi_modal_data", prompt.media), ("mm_processor_kwargs", prompt.processor_options)):
        if given:
            raise RequestError(f"prompt {position} has {name!r}: the model takes text only", name)


def _truncated(tokens: list[int], params: Params, limits: Limits, *, media: bool) -> list[int]:
    keep = None if isinstance(params, BeamSearchParams) else params.truncate_prompt_tokens
    if keep is None:
        return tokens
    if media:
        raise RequestError(
            "truncate_prompt_tokens can't cut a prompt with media; leave it out", "truncate_prompt_tokens"
        )
    return tokens[-(limits.max_model_len - 1 if keep == -1 else keep) :]


def _shared_params(params: Params) -> SamplingParams:
    """A beam search's part that every request has."""
    if isinstance(params, SamplingParams):
        return params
    return SamplingParams(
        max_tokens=params.max_tokens,
        temperature=params.temperature,
        ignore_eos=params.ignore_eos,
        skip_special_tokens=params.skip_special_tokens,
        include_stop_str_in_output=params.include_stop_str_in_output,
    )
