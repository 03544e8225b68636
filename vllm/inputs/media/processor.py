"""From the media of a prompt to what a tower takes, and to the tokens that keep their places.

    "Look: <image> Nice."  +  picture   ─▶   Look : ▢ ▢ ▢ ▢ Nice .   +   pixel_values, …

transformers' processor of the model does it for one item at a time, alone: so an item that comes again is known again, in
whatever company.  What takes an item's place in the text is read off the text that the processor hands to its tokenizer.
"""

from __future__ import annotations

import functools
import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vllm.config import MediaConfig
from vllm.errors import ModelError, RequestError
from vllm.inputs.media.assemble import load_processor
from vllm.inputs.media.fetch import Fetcher, Reach
from vllm.inputs.media.item import MediaItem, Prepared, Sound
from vllm.inputs.media.places import filled, led, pieces, placed, respelled, spliced
from vllm.inputs.media.sound import at_rate
from vllm.inputs.media.tensors import array_of
from vllm.inputs.tokenizer import Tokenizer
from vllm.messages import Media, Modality
from vllm.names import named

_ARGUMENTS: dict[Modality, str] = {"image": "images", "video": "videos", "audio": "audio"}
_OF_TEXT = (
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "mm_token_type_ids",
    "cross_attention_mask",
    "labels",
    "text_replacement_offsets",
)
"""What processors return that is not of the media."""


class OwnProcessor(Protocol):
    """What a package brings that has a model of its own."""

    placeholders: Mapping[Modality, str]
    """Modality → what marks the place of a medium in a prompt"""

    def prepare(self, modality: Modality, data: Any, **options: Any) -> tuple[str, Mapping[str, Any]]:
        """Return what takes the placeholder's place in the text, and the tensors that the tower takes, by name.

        `data` is as in `MediaItem`.  Whatever it raises is told to the sender.
        """

    # It may have more:
    #
    # among(count) -> Mapping[str, Any]   options of an item that is one of so many, unless somebody says otherwise
    # spelled: Mapping[Modality, str]     patterns of what people write for placeholders too; a group in one is their number
    # begins: str                         what a prompt with media begins with, and no other special tokens are added
    # leads: bool                         next come all media, wherever their places are marked
    # apart: bool                         texts between media are tokenized each by itself, with special tokens


class MediaProcessor:
    """Prepares prompts with media for one model.  It may be called from several threads."""

    def __init__(
        self, folder: Path, config: MediaConfig, tokenizer: Tokenizer | None, trust_remote_code: bool = False
    ) -> None:
        """`folder` has the processor's files, which are read when the first medium comes."""
        self.folder = folder
        self.config = config
        self.tokenizer = tokenizer
        self.fetcher = Fetcher(Reach.of(config.folder, config.hosts))
        self._trust = trust_remote_code
        self._processor: Any = None
        self._listener: _Listener | None = None
        self._lock = threading.RLock()
        self._known: OrderedDict[bytes, Prepared] = OrderedDict()
        self._num_bytes = 0

    def check(self, given: Sequence[Modality], where: str) -> None:
        """Raise RequestError for media that the model doesn't take, or too many of them."""
        for modality in dict.fromkeys(given):
            if modality not in self.config.modalities:
                takes = ", ".join((*self.config.modalities, "text"))
                raise RequestError(f"{where}: has {modality} media; the model takes {takes}", "multi_modal_data")
            count, most = list(given).count(modality), self.config.limits.get(modality)
            if most is not None and count > most:
                raise RequestError(
                    f"{where}: has {count} {modality} items; at most {most} may be given (limit_mm_per_prompt)",
                    "multi_modal_data",
                )

    def prepare(
        self,
        text: str | None,
        token_ids: list[int] | None,
        items: Sequence[MediaItem],
        options: Mapping[str, Any],
        add_special_tokens: bool,
        where: str,
    ) -> tuple[list[int], list[Media]]:
        """Return a prompt's tokens, with those that keep places for media, and the media.

        `text` or else `token_ids` has a placeholder for each item.  Raises RequestError, in which `where` names the prompt.
        """
        self.check([item.modality for item in items], where)
        if self.tokenizer is None:
            raise RequestError(f"{where} has media, but the engine runs without a tokenizer", "multi_modal_data")
        among = getattr(self._own, "among", None)
        options = {**(among(len(items)) if among else {}), **self.config.options, **options}
        if self.config.prompts in ("apart", "framed"):
            return self._alone(text, items, options, where)
        if token_ids is not None and (self.config.together or self.config.prompts != "pieces"):
            raise RequestError(
                f"{where} has media and token ids; give its text, which the model's processor reads", "prompt"
            )
        if self.config.together:
            return self._together(text or "", items, options, add_special_tokens, where)
        read = text or "" if self.config.reads_text else ""
        prepared = [self._prepare(item, options, where, read) for item in items]
        if self.config.prompts != "pieces":
            tokens = self._read_by_processor(text, items, options, add_special_tokens, where)
        elif token_ids is None:
            tokens = self._filled(text or "", items, prepared, add_special_tokens, where)
        else:
            tokens = spliced(token_ids, items, prepared, self._marks(items, where), self.tokenizer, where)
        return tokens, placed(tokens, items, prepared, self.config, self.tokenizer, where, self._words())

    def _words(self) -> list[int]:
        """Return the tokens of media and around them, where all of a prompt's see each other; else none."""
        if not self.config.across:
            return []
        processor, _ = self._loaded()
        return [int(token) for token in processor.image_token_ids]

    def _filled(
        self, text: str, items: Sequence[MediaItem], prepared: Sequence[Prepared], add_special_tokens: bool, where: str
    ) -> list[int]:
        """Return the tokens of a text with stand-ins in the places of its placeholders."""
        assert self.tokenizer is not None
        marks = self._marks(items, where)
        for modality, pattern in getattr(self._own, "spelled", {}).items():
            text = respelled(text, pattern, self.placeholder(modality, where), where)
        if begin := getattr(self._own, "begins", ""):
            text, add_special_tokens = begin + text.removeprefix(begin), False
        if getattr(self._own, "leads", False):
            text = led(text, begin, [marks[item.modality] for item in items])
        if not getattr(self._own, "apart", False):
            return self.tokenizer.encode(filled(text, items, prepared, marks, where), add_special_tokens)
        parts = pieces(text, items, prepared, marks, where)
        return [token for index, part in enumerate(parts) for token in self.tokenizer.encode(part, index % 2 == 0)]

    def _marks(self, items: Sequence[MediaItem], where: str) -> dict[Modality, str]:
        """Return what marks the places of items, by modality."""
        return {item.modality: self.placeholder(item.modality, where) for item in items}

    def _alone(
        self, text: str | None, items: Sequence[MediaItem], options: Mapping[str, Any], where: str
    ) -> tuple[list[int], list[Media]]:
        """Return the token and the medium of a prompt that is nothing but a medium."""
        if text or len(items) > 1:
            raise RequestError(
                f"{where}: the model embeds a text or a single {items[0].modality}; give them as prompts of their own, with an "
                "empty text beside the medium",
                "multi_modal_data",
            )
        (item,) = items
        if hasattr(item.data, "is_floating_point"):
            raise RequestError(
                f"{where}: the model gives embeddings and takes none; give a picture", "multi_modal_data"
            )
        prepared = self._prepare(item, options, where)
        if self.config.prompts == "framed":
            assert self.tokenizer is not None
            tokens = self.tokenizer.encode(prepared.stand_in, False)
            return tokens, placed(tokens, items, [prepared], self.config, self.tokenizer, where)
        return [self.config.token_ids[item.modality]], [Media(item.modality, prepared.key, [(0, 1)], prepared.features)]

    def _together(
        self, text: str, items: Sequence[MediaItem], options: Mapping[str, Any], add_special_tokens: bool, where: str
    ) -> tuple[list[int], list[Media]]:
        """Have a prompt's text and media processed at once, for a model of transformers."""
        found = self._read_at_once(text, items, options, where)
        features = {
            name: array_of(value)
            for name, value in found.items()
            if name not in ("input_ids", "attention_mask", "labels") and _is_number(value)
        }
        tokens = [int(token) for token in np.asarray(found["input_ids"]).reshape(-1)]
        key = hashlib.sha256(b"".join(_key(item, options) for item in items)).digest()
        return tokens, [Media(items[0].modality, key, [], features)]

    def _read_by_processor(
        self,
        text: str | None,
        items: Sequence[MediaItem],
        options: Mapping[str, Any],
        add_special_tokens: bool,
        where: str,
    ) -> list[int]:
        """Return the tokens that the processor makes of a text with all of its media."""
        if any(hasattr(item.data, "is_floating_point") for item in items):
            raise RequestError(
                f"{where}: the model's processor makes its prompts of the media themselves; give those, not embeddings",
                "multi_modal_data",
            )
        special = {} if add_special_tokens else {"add_special_tokens": False}
        found = self._read_at_once(text or "", items, {**options, **special}, where)
        return [int(token) for token in np.asarray(found["input_ids"]).reshape(-1)]

    def _read_at_once(self, text: str, items: Sequence[MediaItem], options: Mapping[str, Any], where: str) -> Any:
        """Return what the processor makes of a prompt as a whole."""
        data: dict[str, list[Any]] = {}
        for item in items:
            data.setdefault(_ARGUMENTS[item.modality], []).append(self._raw(item))
        given = {**options, "sampling_rate": self._rate()} if "audio" in data else dict(options)
        with self._lock:
            processor, _ = self._loaded()
            return self._call(processor, items[0].modality, where, text=text, **data, **given)

    def framed(self, text: str, where: str) -> list[int]:
        """Return the tokens of a text, and of what the processor writes around it.  Raises RequestError."""
        with self._lock:
            processor, _ = self._loaded()
            found = self._call(processor, "image", where, text=[text])
        return [int(token) for token in np.asarray(found["input_ids"]).reshape(-1)]

    def heard(self, item: MediaItem, where: str) -> Media:
        """Return a sound as the encoder of a model of speech takes it.  Raises RequestError."""
        if not isinstance(item.data, Sound):
            raise RequestError(f"{where}: the model's encoder takes a sound", "multi_modal_data")
        key = _key(item, {})
        with self._lock:
            extractor = self._extractor
            sound = Sound(at_rate(item.data, int(extractor.sampling_rate)), int(extractor.sampling_rate))
            found = extractor(sound.samples, sampling_rate=sound.rate, return_tensors="pt")
        return Media("audio", key, [], {name: array_of(value) for name, value in found.items()})

    def window_seconds(self) -> float:
        """Return how long a sound the model hears at once."""
        with self._lock:
            return float(getattr(self._extractor, "chunk_length", 30))

    @functools.cached_property
    def _extractor(self) -> Any:
        """What makes features of sounds, for models whose encoder is all that takes them."""
        from transformers import AutoFeatureExtractor

        try:
            return AutoFeatureExtractor.from_pretrained(str(self.folder))
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ModelError(f"{self.folder}: what prepares sounds can't be loaded: {lines[0]}") from error

    def _call(self, processor: Any, modality: Modality, where: str, **given: Any) -> Any:
        try:
            return processor(return_tensors="pt", **given)
        except Exception as error:  # each processor refuses in its own way
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise RequestError(
                f"{where}: the model's processor refuses the {modality}: {reason}", "multi_modal_data"
            ) from error

    def _raw(self, item: MediaItem) -> Any:
        """Return an item as processors take it."""
        return self._resampled(item.data) if isinstance(item.data, Sound) else item.data

    # ── one item ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _prepare(self, item: MediaItem, options: Mapping[str, Any], where: str, text: str = "") -> Prepared:
        key = _key(item, {**options, "text": text} if text else options)
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
            prepared = self._process(key, item, options, where, text)
            self._known[key] = prepared
            self._num_bytes += prepared.num_bytes
            while self._num_bytes > self.config.cache_bytes and len(self._known) > 1:
                self._num_bytes -= self._known.popitem(last=False)[1].num_bytes
        return prepared

    def _process(self, key: bytes, item: MediaItem, options: Mapping[str, Any], where: str, text: str) -> Prepared:
        if hasattr(item.data, "is_floating_point"):
            assert self.tokenizer is not None
            stand_in = self.tokenizer.decode([self.config.token_ids[item.modality]], False) * len(item.data)
            return Prepared(key, stand_in, {"embeds": array_of(item.data)})
        if self._own is not None:
            stand_in, made = self._made_by_own(item, options, where)
            return Prepared(key, stand_in, {name: array_of(value) for name, value in made.items()})
        processor, listener = self._loaded()
        given = dict(options)
        if isinstance(item.data, Sound):
            given["sampling_rate"] = self._rate()
        given[_ARGUMENTS[item.modality]] = [self._raw(item)]
        if self.config.prompts not in ("apart", "framed"):
            given["text"] = text or self.placeholder(item.modality, where)
        found = self._call(processor, item.modality, where, **given)
        features = {
            name: array_of(value) for name, value in found.items() if name not in _OF_TEXT and _is_number(value)
        }
        return Prepared(key, listener.heard, features)

    def _made_by_own(self, item: MediaItem, options: Mapping[str, Any], where: str) -> tuple[str, Mapping[str, Any]]:
        assert self._own is not None
        try:
            return self._own.prepare(item.modality, item.data, **options)
        except Exception as error:  # another package's code
            raise RequestError(
                f"{where}: the model's processor refuses the {item.modality}: {error}", "multi_modal_data"
            ) from error

    @functools.cached_property
    def _own(self) -> OwnProcessor | None:
        """The processor that a package brings for its model."""
        if not self.config.processor:
            return None
        made: OwnProcessor = named(self.config.processor)(self.folder)
        return made

    def placeholder(self, modality: Modality, where: str = "the prompt") -> str:
        """Return what marks the place of a medium in a prompt; "" where the processor finds it by itself."""
        if self.config.prompts in ("bare", "apart", "framed"):
            return ""
        if self._own is not None:
            return self._own.placeholders[modality]
        processor, _ = self._loaded()
        found = getattr(processor, f"{modality}_token", None)
        if not isinstance(found, str):
            raise RequestError(f"{where}: the model's processor has no placeholder for {modality}", "multi_modal_data")
        return found

    def _loaded(self) -> tuple[Any, _Listener]:
        with self._lock:
            if self._listener is None:
                processor = load_processor(self.folder, self._trust)
                self._processor, self._listener = processor, _Listener(processor.tokenizer)
                processor.tokenizer = self._listener
            return self._processor, self._listener

    def _rate(self) -> int:
        processor, _ = self._loaded()
        extractor = getattr(processor, "feature_extractor", None) or processor.audio_processor
        return int(extractor.sampling_rate)

    def _resampled(self, sound: Sound) -> np.ndarray:
        """Return samples at the model's rate."""
        return at_rate(sound, self._rate())


class _Listener:
    """A tokenizer that remembers the text it was given."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.heard = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: Any = None, *others: Any, **options: Any) -> Any:
        self.heard = text if isinstance(text, str) else text[0]
        return self._tokenizer(text, *others, **options)


def _key(item: MediaItem, options: Mapping[str, Any]) -> bytes:
    """Return a name for an item's content and for how it is to be treated."""
    data = item.data
    if isinstance(data, Sound):
        shape, content = [data.rate, len(data.samples)], data.samples.tobytes()
    elif hasattr(data, "is_floating_point"):
        shape, content = list(data.shape), data.detach().float().contiguous().numpy().tobytes()
    elif hasattr(data, "getbands"):
        shape, content = list(data.size), data.tobytes()
    else:
        shape, content = list(data.shape), data.tobytes()
    kind = type(data).__name__
    name = json.dumps([item.modality, kind, shape, options], sort_keys=True, default=str).encode()
    return hashlib.sha256(name + b"\0" + content).digest()


def _is_number(value: Any) -> bool:
    return hasattr(value, "shape") or (
        isinstance(value, (list, tuple)) and np.asarray(value, dtype=object).dtype != object
    )
