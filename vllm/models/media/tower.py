"""transformers' own encoder and projector of a model, run as they are, one item at a time.

The model is loaded without the layers of its text part, so that names and shapes of the checkpoint are transformers' affair.
One item at a time, since products of several at once may round otherwise: what a medium comes to would depend on its company.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vllm.errors import ModelError
from vllm.layers.placement import Placement
from vllm.loader.files import all_weight_files, weight_files
from vllm.loader.fill import fill
from vllm.loader.read import tensors
from vllm.messages import Array, Media, Modality
from vllm.models.media import layouts
from vllm.models.media.reading import Reader, Vocabulary, Zeros, read, replace_text, taken
from vllm.models.media.spec import MediaSpec
from vllm.names import named
from vllm.ops.memory import tensor_of
from vllm.weights import TensorPlace, Window


class Tower:
    """What turns media into embeddings."""

    def __init__(
        self, module: Any, width: int, dtype: torch.dtype, device: torch.device, tokens: Mapping[Modality, int]
    ) -> None:
        """`width` is that of an embedding.  `tokens`: modality → the token that stands in its place, where the module is asked by
        its `forward`; else none."""
        self.module = module
        self.tokens = tokens
        self.scale = 1.0
        """What embeddings are multiplied with, as the text's decoder does with whatever it reads"""
        self.width = width
        self.dtype = dtype
        self.device = device

    @property
    def num_bytes(self) -> int:
        """The memory that its weights take."""
        return sum(tensor.nbytes for tensor in (*self.module.parameters(), *self.module.buffers()))

    def encode(self, media: Media) -> list[Tensor]:
        """Return a medium's embeddings, then what is to be added after each of the first layers.  -> [n, D] each

        Raises ModelError if they are not as many as the prompt has places for.
        """
        features = self._tensors(media.features)
        if "embeds" in features:
            found = [features["embeds"].to(self.dtype)]
        elif token := self.tokens.get(media.modality):
            ids = features.pop("input_ids", torch.full((media.count,), token, device=self.device))
            found = [read(self.module, ids, features)]
        else:
            method = self._method(media.modality)
            found = embeddings_of(method(**taken(method, features)), self.width)
        for tensor in found:
            if tuple(tensor.shape) != (media.count, self.width):
                raise ModelError(
                    f"the tower made {tuple(tensor.shape)} of a {media.modality} that has {media.count} places of width "
                    f"{self.width}"
                )
        return found if self.scale == 1.0 else [tensor * self.scale for tensor in found]

    def positions(self, token_ids: list[int], media: list[Media]) -> tuple[Tensor, int]:
        """Return the positions of a prompt's tokens in time, height and width, and what is added to later ones' index.

        -> [3, n] int64
        """
        types = torch.zeros(1, len(token_ids), dtype=torch.int32)
        find = self._body.get_rope_index
        takes = inspect.signature(find).parameters
        facts: dict[str, list[Tensor]] = {}
        for one in media:
            for first, end in one.spans:
                types[0, first:end] = _TYPES[one.modality]
            for name, value in self._tensors(one.features).items():
                if name in takes and name != "input_ids":
                    facts.setdefault(name, []).append(value.cpu())
        grids = [name for name in takes if name.endswith("_grid_thw")]
        if grids and sum(len(facts.get(name, ())) for name in grids) < len(media):
            raise ModelError(
                "where tokens have positions in space, embeddings can't be given; give the media themselves"
            )
        given = {name: torch.cat(each) for name, each in facts.items()}
        found, shift = find(torch.tensor([token_ids]), mm_token_type_ids=types, **given)
        return found[:, 0], int(shift.flatten()[0])

    def _method(self, modality: str) -> Callable[..., Any]:
        name = f"get_{modality}_features"
        method: Callable[..., Any] | None = getattr(self.module, name, None)
        if method is None or "args" in inspect.signature(method).parameters:  # it hands on whatever it is given
            method = getattr(self._body, name, method)
        if method is None:
            raise ModelError(f"{type(self.module).__name__} of transformers has no tower for {modality} media")
        return method

    @property
    def _body(self) -> Any:
        """The model below the head; a tower by itself has none."""
        return getattr(self.module, "model", None) or getattr(self.module, "vlm", None) or self.module

    def _tensors(self, features: Mapping[str, Array]) -> dict[str, Tensor]:
        tensors = {}
        for name, array in features.items():
            tensor = tensor_of(array).to(self.device)
            tensors[name] = tensor.to(self.dtype) if tensor.is_floating_point() else tensor
        return tensors


class StatesTower(Tower):
    """What turns pictures into states that layers attend to."""

    def look(self, media: Media) -> tuple[Tensor, Tensor]:
        """Return a picture's states, and which of them are of tiles without picture.  -> [n, D], [n] bool"""
        features = self._tensors(media.features)
        vision = self._body.vision_model
        seen = vision(**taken(vision.forward, features)).last_hidden_state  # [1, 1, tiles, patches, …]
        states = self._body.multi_modal_projector(seen).reshape(-1, self.width)
        if len(states) != media.length:
            raise ModelError(f"the tower made {len(states)} states of a picture that has room for {media.length}")
        return states, (features["aspect_ratio_mask"].flatten() == 0).repeat_interleave(seen.shape[-2])


_TYPES = {"image": 1, "video": 2, "audio": 3}


def embeddings_of(output: Any, width: int) -> list[Tensor]:
    """Return what transformers' towers give in one form: embeddings, and those for deeper layers.  -> [n, D] each"""
    deep = getattr(output, "deepstack_features", None)
    if isinstance(output, tuple) and len(output) == 2 and isinstance(output[1], list):  # older versions
        output, deep = output
    for name in ("pooler_output", "last_hidden_state"):
        if getattr(output, name, None) is not None:
            output = getattr(output, name)
            break
    return [_joined(part, width) for part in (output, *(deep or ()))]


def _joined(part: Any, width: int) -> Tensor:
    if isinstance(part, (list, tuple)):
        return torch.cat([_joined(one, width) for one in part])
    joined: Tensor = part.reshape(-1, width)
    return joined


def load_tower(
    architecture: str,
    media: MediaSpec,
    config: Any,
    folder: Path | None,
    placement: Placement,
    entry: nn.Module,
) -> Tower:
    """Load all of a model but its text part, of which `entry` is the first; without a folder its weights are random.

    Raises ModelError if transformers can't, or weights are missing.
    """
    import transformers

    kind: Any = getattr(transformers, media.module or architecture, None)
    if kind is None:
        raise ModelError(f"{architecture} is not known to transformers {transformers.__version__}")
    missing: list[str] = []
    dtype = placement.dtype
    options = {"dtype": dtype} | ({"attn_implementation": media.attention} if media.attention else {})
    try:
        if folder is None or media.layout:
            module = kind._from_config(_without_text(config), **options)
            missing = _filled(module, media.layout, folder) if folder is not None else []
        else:
            with _in_silence():  # it would warn of all that is of the text part
                module, found = kind.from_pretrained(
                    folder, config=_without_text(config), output_loading_info=True, **options
                )
            missing = sorted(found["missing_keys"])
    except Exception as error:  # each class refuses in its own way
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{architecture}: transformers can't load its tower: {reason}") from error
    if missing:
        raise ModelError(
            f"{folder}: the checkpoint and its config.json do not fit; {len(missing)} weights of the tower are not in it: "
            f"{', '.join(missing[:5])}"
        )
    width = config.get_text_config().hidden_size
    instead: dict[str, Callable[[], nn.Module]] = {
        "forward": partial(Reader, Zeros(width, dtype)),
        "sum": lambda: Reader(Vocabulary(entry).table),
        "vocabulary": partial(Vocabulary, entry),
        "states": nn.Identity,
        "method": nn.Identity,
    }
    replace_text(module, instead[media.reads](), media.decoder)
    tokens = media.tokens(config) if media.reads in ("forward", "sum") else {}
    make = StatesTower if media.reads == "states" else Tower
    return make(module.to(placement.device).eval().requires_grad_(False), width, dtype, placement.device, tokens)


def _filled(module: Any, layout: str, folder: Path) -> list[str]:
    """Fill a module with a checkpoint's tensors; return the names that are missing, those of the text part aside."""
    found = getattr(layouts, layout)(tensors(weight_files(folder)))
    state = {name: tensor.to(module.dtype) for name, tensor in found}
    lacking = module.load_state_dict(state, strict=False)
    if lacking.unexpected_keys:
        raise ModelError(f"{folder}: the tower has no place for {', '.join(lacking.unexpected_keys[:5])}")
    return sorted(name for name in lacking.missing_keys if "language_model." not in name and name != "lm_head.weight")


@contextmanager
def _in_silence() -> Iterator[None]:
    """Have transformers neither warn nor show bars."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def load_own_tower(media: MediaSpec, config: Any, folder: Path | None, placement: Placement) -> Tower:
    """Load a tower of another package, a module that is made of the config.  Raises ModelError if that can't be."""
    module = named(media.tower)(config).to(device=placement.device, dtype=placement.dtype).eval().requires_grad_(False)
    if folder is not None:
        windows = [Window(f"tower.{name}", TensorPlace(tensor)) for name, tensor in module.state_dict().items()]
        found = tensors(all_weight_files(folder, config))
        found = getattr(layouts, media.layout)(found) if media.layout else found
        fill(windows, found, ("*",), where=str(folder))
    return Tower(module, config.get_text_config().hidden_size, placement.dtype, placement.device, {})


def _without_text(config: Any) -> Any:
    """Return a config whose text part has no layers."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    text.num_hidden_layers = 0
    for name, value in vars(text).items():
        if name.endswith("layer_types") and isinstance(value, list):
            setattr(text, name, [])
    return config
