"""From a config to a decoder that reads what a tower saw."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vllm.errors import ModelError
from vllm.layers.media import Seeing
from vllm.layers.placement import Placement
from vllm.models.media import texts
from vllm.models.media.kinds import KINDS, TEXT_FAMILIES
from vllm.models.media.spec import MediaSpec
from vllm.models.media.tower import load_own_tower, load_tower
from vllm.models.spec import AttentionSpec, TransformerSpec


def text_spec(config: Any) -> TransformerSpec:
    """Return the decoder of a model that takes media.  Raises ModelError if its text part is of no family."""
    media = next(KINDS[name] for name in config.architectures if name in KINDS)
    text = config.get_text_config()
    if media.sees in (
        "media",
        "prompt",
        "all",
    ):  # what is said about it there is how prompts are read, not the layers' nature
        text.use_bidirectional_attention = None
    spec = (getattr(texts, media.text) if media.text else _family_of(text))(text)
    if media.positions == "spatial":
        spec = replace(spec, layers=tuple(replace(layer, mixer=_spatial(layer.mixer, text)) for layer in spec.layers))
    # what is not of the text part is read by transformers, which also says if something is missing
    tied = getattr(config, "tie_word_embeddings", getattr(text, "tie_word_embeddings", False))
    tied = bool(tied) and not spec.entry.unwritten
    return replace(spec, tied=tied, ignored_names=("*",), picture_states=media.states(config))


def _family_of(text: Any) -> Callable[[Any], TransformerSpec]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from vllm.models.registry import family_of

    name = TEXT_FAMILIES.get(text.model_type) or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(text.model_type, "")
    found = family_of(name)
    if found is None:
        raise ModelError(f"a text part of the type {text.model_type!r} is of no family here")
    return found


def _spatial(mixer: Any, text: Any) -> Any:
    """Have a layer's rotary embedding share its pairs out to three positions."""
    if not isinstance(mixer, AttentionSpec) or mixer.rope is None or mixer.rope.sections:
        return mixer
    sections = tuple(text.rope_parameters.get("mrope_section") or ())
    if not sections:
        raise ModelError("the config's rope parameters have no mrope_section")
    spread = bool(text.rope_parameters.get("mrope_interleaved", False))
    return replace(mixer, rope=replace(mixer.rope, sections=sections, spread=spread))


def load_seeing(
    architecture: str,
    media: MediaSpec,
    config: Any,
    text: tuple[TransformerSpec, nn.Module],
    placement: Placement,
    folder: Path | None,
) -> Seeing:
    """Load what a model sees with; without a folder its weights are random.

    `text` is the decoder's spec, and what makes embeddings of its tokens.
    """
    spec, entry = text
    if media.tower:
        tower = load_own_tower(media, config, folder, placement)
    else:
        tower = load_tower(architecture, media, config, folder, placement, entry)
    if spec.entry.scales_media:
        tower.scale = spec.entry.scale
    deep = getattr(getattr(config, "vision_config", None), "deepstack_visual_indexes", None) or ()
    across = media.sees in ("media", "prompt")
    return Seeing(tower, len(deep), across or media.sees == "medium", across)


def text_tensors(
    tensors: Iterable[tuple[str, Tensor]], width: int, wanted: Collection[str]
) -> Iterator[tuple[str, Tensor]]:
    """Yield a checkpoint's tensors, those of the text part, of that width, under the names they have in a model of text.

    `wanted` are the names that the model has places for.
    """
    for name, tensor in tensors:
        if name.endswith(_HEADS):
            yield name.rpartition("language_model.")[2] if name.endswith(".output.weight") else "lm_head.weight", tensor
            continue
        prefix = next((prefix for prefix in _TEXT_PREFIXES if name.startswith(prefix)), "")
        name = "model." + name.removeprefix(prefix) if prefix else name
        for theirs, ours in () if name in wanted else _RENAMED:
            name = name.replace(theirs, ours)
        yield from [(name, tensor)] if name in wanted else _apart(name, tensor, width)


def _apart(name: str, tensor: Tensor, width: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the matrices of the experts that some checkpoints have in one tensor, [E, rows, width] or [E, width, rows]."""
    base, _, last = name.rpartition(".")
    if not base.endswith(".experts") or last not in ("gate_up_proj", "down_proj"):
        yield name, tensor
        return
    if last == "down_proj":  # its rows are as many as the model is wide
        down = tensor if tensor.shape[1] == width else tensor.mT
        yield from ((f"{base}.{index}.down_proj.weight", expert) for index, expert in enumerate(down))
        return
    gate, up = (tensor if tensor.shape[2] == width else tensor.mT).chunk(2, dim=1)
    for index in range(len(tensor)):
        yield f"{base}.{index}.gate_proj.weight", gate[index]
        yield f"{base}.{index}.up_proj.weight", up[index]


_TEXT_PREFIXES = (
    "vlm.model.language_model.",
    "vlm.language_model.model.",
    "vlm.language_model.",
    "model.language_model.model.",
    "model.language_model.",
    "language_model.model.",
    "language_model.",
    "model.text_model.",
    "text_model.",
    "language.model.",
    "llm.model.",
)
"""Where checkpoints have their text part, longest first."""
_HEADS = ("lm_head.weight", "language_model.output.weight")  # the second is internlm2's
_RENAMED = (
    (".experts.fc1.weight", ".experts.gate_up_proj"),
    (".experts.fc2.weight", ".experts.down_proj"),
    (".wte.embedding", ".wte.embedding.weight"),
)
"""What aria calls the matrices of its experts, and molmo its table of tokens"""
