"""Architectures by the names that a checkpoint's config.json gives them: a body, and what its head is for.

    Qwen2ForSequenceClassification = the body of Qwen2ForCausalLM + ForSequenceClassification, a head of classes

Knowing names needs no torch; what an architecture is made of is imported when it is asked for.  `ModelRegistry` takes
architectures that are not part of this package.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vllm.errors import ConfigError, ModelError, did_you_mean
from vllm.messages import Modality
from vllm.models.architectures import ARCHITECTURES, ENCODERS, FALLBACKS, HEADS, PACKED_FORMATS, SEQ2SEQ
from vllm.models.foreign_names import DECODERS, SPEECH, UNFIT
from vllm.models.media.kinds import KINDS, PAIRS
from vllm.models.media.spec import MediaSpec
from vllm.pooling_params import Pooling

if TYPE_CHECKING:
    from vllm.layers.placement import Placement
    from vllm.layers.transformer import Transformer
    from vllm.models.spec import TransformerSpec

Definition = str | Callable[..., Any]
"""What an architecture is made of: a function from its config to a `TransformerSpec`, or a subclass of `Transformer` that
takes (config, placement, max_model_len); or where that is, as "package.module:name", imported when it is needed."""

_BOTH_WAYS = ("Bidirectional", "Encoder", "Bi")
"""Ends of base names of decoders whose tokens see those behind them too: nvidia's, and two of LLM2Vec."""

_registered: dict[str, Definition] = {}
_media: dict[str, MediaSpec] = {}

_COLBERT_BASES = {"bert": "Bert", "distilbert": "DistilBert", "modernbert": "ModernBert", "xlm-roberta": "XLMRoberta"}
"""Model type → base of an `HF_ColBERT`."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """What an architecture's name says."""

    name: str
    base: str
    body: Definition
    """What it is made of; "" if transformers computes it."""
    head: str
    """generate, embed, classify, token_classify, token_embed, reward or process_reward"""
    both_ways: bool = False
    """It is a decoder by build, but its tokens see those behind them too."""
    sees: bool = False
    """It is computed by transformers and takes media."""
    is_pair: bool = False
    """A text and a picture are embedded by towers of transformers, each by its own."""
    source: Literal["", "text", "audio"] = ""
    """What its encoder reads, where it has one beside its decoder"""

    @property
    def is_encoder(self) -> bool:
        return self.base in ENCODERS or (not self.body and self.head != "generate")


class ModelRegistry:
    """Architectures by name: those of this package, and those that are registered, which go first.

        ModelRegistry.register_model("TidalForCausalLM", "tidal.family:tidal")

    A registered architecture is known to the process that registers it.  A server's engine has a process of its own, so
    for `vllm serve` the call belongs into a plugin (`vllm.plugins`).
    """

    @staticmethod
    def register_model(name: str, definition: Definition) -> None:
        """Say what the architecture that config.json calls `name` is made of.  Raises ConfigError for what can't be that."""
        if isinstance(definition, str):
            module, colon, attribute = definition.partition(":")
            if not (colon and attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))):
                raise ConfigError(f"register_model({name!r}, {definition!r}): a text must be 'package.module:name'")
        elif not callable(definition):
            raise ConfigError(
                f"register_model({name!r}, {definition!r}): give a function from a config to a TransformerSpec, a subclass "
                "of Transformer, or where one is, as 'package.module:name'"
            )
        _registered[name] = definition

    @staticmethod
    def register_media(name: str, media: MediaSpec) -> None:
        """Say how the architecture that config.json calls `name`, and that is registered as a model, takes media."""
        _media[name] = media

    @staticmethod
    def get_supported_archs() -> list[str]:
        """Return the names of the architectures that generate, and of all that are registered."""
        return sorted({*ARCHITECTURES, *SEQ2SEQ, *_registered})


def read_as_they_stand() -> frozenset[str]:
    """Return the names of architectures whose config.json needs no class: transformers may know none."""
    era = {name for name, body in ARCHITECTURES.items() if body.startswith("era")}
    return frozenset(_registered) | era | {_base(name) + head for name in era for head in HEADS}


def find(config: Any, impl: str = "auto") -> Architecture:
    """Return the first of a config's architectures that is supported.  Raises ModelError if there is none.

    `impl` says whose modules compute it: vllm, transformers, or auto, transformers' where there are no others.
    """
    names = list(config.architectures or ())
    if impl == "transformers":
        if not names:
            raise ModelError("model_impl='transformers': the config names no architecture")
        return _foreign(names[0])
    for name in names:
        if found := _parse(name, config):
            media = media_of(name)
            if found.is_encoder or (media is not None and media.sees in ("prompt", "all")):
                return found
            return replace(found, both_ways=found.both_ways or _sees_both_ways(config))
    for name in names if impl == "auto" else ():
        if _generates_by_transformers(name, config) or comes_with(config, "AutoModelForCausalLM"):
            return _foreign(name)
    seeing = next((name for name in names if impl == "auto" and _sees_by_transformers(name)), None)
    if seeing is not None:
        return _foreign(seeing)
    for name in names if impl == "auto" else ():
        if _source(name):
            return _foreign(name)
    if unfit := next((name for name in names if name in UNFIT), None):
        raise ModelError(f"{unfit} is not supported: {UNFIT[unfit]}")
    known = {*ModelRegistry.get_supported_archs(), *DECODERS}
    hint = did_you_mean(names[0], known) if names else " The config names no architecture."
    raise ModelError(
        f"architectures={names} are not supported.{hint} `vllm models` lists those that are; model_impl='transformers' tries "
        "transformers' own module"
    )


def _foreign(name: str) -> Architecture:
    source: Literal["", "text", "audio"] = "" if name in DECODERS else _source(name)
    return Architecture(
        name, _base(name), "", "generate", sees=not source and _sees_by_transformers(name), source=source
    )


def _sees_by_transformers(name: str) -> bool:
    """Whether transformers has a model of that name that takes media and generates."""
    from transformers.models.auto import modeling_auto as auto

    tables = ("MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES", "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES")
    return name not in UNFIT and any(name in getattr(auto, table, {}).values() for table in tables)


def _source(name: str) -> Literal["", "text", "audio"]:
    """Return what the encoder of a model of transformers reads that has a decoder too; "" if there is none of that name."""
    from transformers.models.auto import modeling_auto as auto

    if name in auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values():
        return "text"
    return "audio" if name in SPEECH else ""


def _generates_by_transformers(name: str, config: Any) -> bool:
    """Whether transformers' module of that name is known to generate; an encoder's does if it is told that it is a decoder."""
    base = _base(name)
    is_encoder = base in ENCODERS or base in FALLBACKS
    return name in DECODERS and (not is_encoder or bool(getattr(config, "is_decoder", False)))


def architecture_of(config: Any, impl: str = "auto") -> str:
    """Return the name of the config's architecture.  Raises ModelError if it is not supported."""
    return find(config, impl).name


def comes_with(config: Any, auto_class: str) -> bool:
    """Whether a checkpoint brings the code of its model, as a class for `AutoModel` or the like.

    That the code is trusted shows in that its config is there: without trust it would not have been loaded.
    """
    trusted = type(config).__module__.startswith("transformers_modules.")
    return trusted and auto_class in (getattr(config, "auto_map", None) or {})


def media_of(name: str) -> MediaSpec | None:
    """Return how an architecture takes media; None if it takes text only, or transformers computes it."""
    return _media.get(name) or KINDS.get(name)


def media_tokens(config: Any, impl: str = "auto") -> dict[Modality, int] | None:
    """Return the tokens that embeddings of media have in prompts, by modality; None for a model that takes text only.

    Where transformers computes it, they are its own affair: -1.
    """
    architecture = find(config, impl)
    if architecture.sees:
        return dict.fromkeys(_modalities(config), -1)
    if architecture.source == "audio":
        return {"audio": -1}
    if architecture.is_pair:  # a picture is one token
        return {"image": config.get_text_config().eos_token_id or 0}
    media = media_of(architecture.name)
    if media is None:
        return None
    return media.tokens(config)


def _modalities(config: Any) -> list[Modality]:
    """Return what transformers' processor of a model takes beside text."""
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    kind: Any = getattr(transformers, str(PROCESSOR_MAPPING_NAMES.get(config.model_type)), None)
    parts = " ".join(kind.get_attributes()) if kind is not None else "image_processor"
    marks: dict[Modality, tuple[str, ...]] = {
        "image": ("image_processor",),
        "video": ("video_processor",),
        "audio": ("feature_extractor", "audio_processor"),
    }
    return [modality for modality, names in marks.items() if any(name in parts for name in names)]


def build(
    config: Any,
    placement: Placement,
    max_model_len: int,
    pooling: Pooling | None = None,
    folder: Path | None = None,
    *,
    impl: str = "auto",
    dummy: bool = False,
) -> Transformer:
    """Make the model that a transformers config describes, for sequences of up to `max_model_len` tokens.

    With `pooling` it pools, as that says; what sentence-transformers keep in `folder` is part of it then.  Its weights are
    undefined until its windows are filled.  Raises ModelError for what is not supported.
    """
    from vllm.models.build import build_transformer
    from vllm.models.heads import Body, make_pooler

    architecture = find(config, impl)
    if architecture.source and not architecture.body:
        from vllm.models.fallback_seq2seq import build_foreign_seq2seq

        if pooling is not None:
            raise ModelError(f"{architecture.name} is computed by transformers' module, which generates; it can't pool")
        return build_foreign_seq2seq(architecture, config, placement, None if dummy else folder)
    if not architecture.body and architecture.head == "generate":
        from vllm.models.fallback_decoder import build_foreign_decoder

        if pooling is not None:
            raise ModelError(f"{architecture.name} is computed by transformers' module, which generates; it can't pool")
        return build_foreign_decoder(architecture, config, placement, max_model_len, None if dummy else folder)
    if architecture.is_pair:
        from vllm.models.media.pair import build_pair

        return build_pair(architecture, config, placement, pooling, folder)
    if not architecture.body:
        from vllm.models.fallback import build_fallback

        return build_fallback(architecture, config, placement, pooling, folder)
    if is_module(definition := load_definition(architecture)):
        return _build_module(architecture, definition, config, placement, max_model_len, pooling)
    spec = spec_of(config)
    if pooling is None:
        if not spec.is_causal:
            raise ModelError(f"{architecture.name}: its tokens see those behind them, so it can't generate; it pools")
        model = build_transformer(spec, placement, max_model_len)
    else:
        pooler = make_pooler(architecture, config, Body.of(spec), pooling, placement, folder)
        model = build_transformer(spec, placement, max_model_len, pooler)
    if media := media_of(architecture.name):
        from vllm.models.media.build import load_seeing

        text = (spec, model.entry)
        model.see(load_seeing(architecture.name, media, config, text, placement, None if dummy else folder))
    return model


def spec_of(config: Any) -> TransformerSpec:
    """Return the spec of a transformers config.  Raises ModelError for what is not supported."""
    from vllm.models.spec import TransformerSpec

    known = find(config)
    refuse_quantized(known, config)
    spec = load_definition(known)(config)
    if not isinstance(spec, TransformerSpec):
        raise ModelError(f"{known.name}: {known.body} returned a {type(spec).__name__} instead of a TransformerSpec")
    return _both_ways(spec) if known.both_ways else spec


def family_of(name: str) -> Callable[..., Any] | None:
    """Return the family of an architecture of text; None if it has none here."""
    if name not in ARCHITECTURES:
        return None
    return load_definition(Architecture(name, _base(name), _family(ARCHITECTURES[name]), "generate"))


def load_definition(architecture: Architecture) -> Callable[..., Any]:
    """Return what an architecture is made of.  Raises ModelError if it can't be imported."""
    if not isinstance(architecture.body, str):
        return architecture.body
    module, _, name = architecture.body.partition(":")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except Exception as error:  # a module's own code may raise anything
        raise ModelError(
            f"{architecture.name}: {architecture.body} cannot be imported ({type(error).__name__}: {error}); "
            "is its package installed?"
        ) from error
    return found


def is_module(definition: Callable[..., Any]) -> bool:
    """Whether an architecture is a module of its own, not a spec."""
    return isinstance(definition, type)


def _build_module(
    architecture: Architecture,
    module: Callable[..., Any],
    config: Any,
    placement: Placement,
    max_model_len: int,
    pooling: Pooling | None,
) -> Transformer:
    from vllm.layers.transformer import Transformer

    refuse_quantized(architecture, config)
    if pooling is not None:
        raise ModelError(
            f"{architecture.name} is a module of its own ({module.__module__}), which generates; to have it pool, "
            "describe it by a TransformerSpec"
        )
    model = module(config, placement, max_model_len)
    if not isinstance(model, Transformer):
        raise ModelError(
            f"{architecture.name}: {module.__qualname__} is no subclass of vllm.layers.transformer.Transformer"
        )
    return model


def refuse_quantized(architecture: Architecture, config: Any) -> None:
    """Raise ModelError if the checkpoint's weights are quantized in a way that its family doesn't read."""
    found = getattr(config, "quantization_config", None)
    if not found:
        return
    method = (found if isinstance(found, dict) else found.to_dict()).get("quant_method")
    if not architecture.body or method not in PACKED_FORMATS.get(architecture.name, ()):
        raise ModelError(
            f"{architecture.name}: quantized weights ({method}) are not supported; use a checkpoint without "
            "quantization_config"
        )


def _both_ways(spec: TransformerSpec) -> TransformerSpec:
    """Let the tokens of a decoder see those behind them, as far as its windows reach."""
    from vllm.models.spec import AttentionSpec

    if not all(isinstance(layer.mixer, AttentionSpec) for layer in spec.layers):
        raise ModelError("tokens of a recurrent layer can't see those behind them; use the model as it is, causal")

    def opened(attention: Any) -> Any:
        window = attention.window and attention.window + 1  # transformers counts it without the token itself here
        return replace(attention, causal=False, window=window) if attention.causal else attention

    layers = tuple(replace(layer, mixer=opened(layer.mixer)) for layer in spec.layers)
    return replace(spec, layers=layers)


def _sees_both_ways(config: Any) -> bool:
    text_config = config.get_text_config()
    both_ways = getattr(
        text_config, "use_bidirectional_attention", False
    )  # "vision": tokens of a picture among themselves
    return getattr(text_config, "is_causal", True) is False or both_ways is True or both_ways == "all"


def _parse(name: str, config: Any) -> Architecture | None:
    if name in _registered:
        head = next((head for end, head in HEADS.items() if name.endswith(end)), "generate")
        return Architecture(name, _base(name), _registered[name], head)
    if name in KINDS:
        head = "token_embed" if name.endswith("ForRetrieval") else "generate"
        body = "vllm.models.media.build:text_spec"
        return Architecture(name, _base(name), body, head, both_ways=KINDS[name].sees == "all")
    if name in ARCHITECTURES:
        return Architecture(name, _base(name), _family(ARCHITECTURES[name]), "generate")
    if name in SEQ2SEQ:
        source: Literal["text", "audio"] = "audio" if name in SPEECH else "text"
        return Architecture(name, _base(name), _family(SEQ2SEQ[name]), "generate", source=source)
    if name in PAIRS:
        return Architecture(name, _base(name), "", "embed", is_pair=True)
    if name == "HF_ColBERT":
        return _with_base(name, _COLBERT_BASES.get(config.model_type, ""), "token_embed")
    ends = [end for end in HEADS if name.endswith(end) and HEADS[end] != "generate"]
    found = (_with_base(name, name.removesuffix(end), HEADS[end]) for end in ends)
    known = next((architecture for architecture in found if architecture), None)
    if known is None and ends and comes_with(config, "AutoModel"):
        return Architecture(name, name.removesuffix(ends[0]), "", HEADS[ends[0]])
    return known


def _with_base(name: str, base: str, head: str) -> Architecture | None:
    """Return an architecture by the base of its name; None for a base that is not known."""
    if base in FALLBACKS:
        return Architecture(name, base, "", head)
    if base in ENCODERS:
        return Architecture(name, base, _family(ENCODERS[base]), head)
    end = next((end for end in _BOTH_WAYS if base.endswith(end)), "")
    base = base.removesuffix(end).removesuffix("Text")
    own = next((body for known, body in _registered.items() if _base(known) == base), None)
    body = own or next((_family(body) for known, body in ARCHITECTURES.items() if _base(known) == base), None)
    return Architecture(name, base, body, head, bool(end)) if body else None


def _family(body: str) -> str:
    return f"vllm.models.families.{body}"


def _base(name: str) -> str:
    """Return the base of an architecture's name; the name where it ends like none."""
    return next((name.removesuffix(end) for end in HEADS if name.endswith(end)), name)
