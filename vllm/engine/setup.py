"""From options to a configuration: find the model, read what it says of itself, settle every default.

Nothing large is read and nothing is run: what can be wrong is refused here, by name, with the way out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm import env
from vllm.config import CacheConfig, EngineArgs, EngineConfig, MediaConfig, ModelConfig, SchedulerConfig
from vllm.device import choose_device, native_bfloat16, usable_cores
from vllm.errors import ConfigError, did_you_mean
from vllm.inputs.chat import ChatRenderer
from vllm.inputs.chat_template import find_templates
from vllm.inputs.encoder import EncoderRules
from vllm.inputs.media.item import MODALITIES
from vllm.inputs.media.processor import MediaProcessor
from vllm.inputs.prepare import Limits, Preparer, find_eos_token_ids
from vllm.inputs.tokenizer import Tokenizer, load_tokenizer
from vllm.loader.config import check_sizes, dtype_of, read_config, read_generation_config
from vllm.loader.find import find_model
from vllm.logging import get_logger
from vllm.messages import Prompts
from vllm.models.registry import architecture_of, find, media_of, media_tokens, read_as_they_stand
from vllm.models.tasks import native_length, resolve_pooling
from vllm.plugins import load_plugins
from vllm.pooling_params import PoolerConfig, Pooling

logger = get_logger(__name__)

DEFAULT_MODEL_PATH = Path(__file__).parent.parent / "assets" / "default_model"
_MEMORY_SHARE = {"cpu": 0.5, "cuda": 0.9}  # main memory is shared with everything else on the machine
_STEP_TOKENS = {"cpu": 512, "cuda": 8192}  # a longer step computes no faster, and makes others wait
_DTYPE_NAMES = {"half": "float16", "float": "float32"}
_TEXTS = "{% for message in messages %}{{ message.content }}{% endfor %}"
# For models that embed a text or a picture, and know of no conversations.
_ALONE: Mapping[str, str] = {
    "apart": "{% set text %}" + _TEXTS + "{% endset %}{% if text %}{{ bos_token }}{{ text }}{{ eos_token }}{% endif %}",
    "framed": _TEXTS,
}
# Sampling defaults that a generation config may set.
_SAMPLING_FIELDS = ("repetition_penalty", "temperature", "top_k", "top_p", "min_p", "max_new_tokens")


def resolve(args: EngineArgs) -> tuple[EngineConfig, Tokenizer | None]:
    """Return the configuration and the tokenizer that the arguments ask for."""
    load_plugins()
    path = _find(args, args.model, args.revision)
    device = choose_device(args.device)
    hf_config = read_config(
        path,
        trust_remote_code=args.trust_remote_code,
        code_revision=args.code_revision,
        hf_overrides=args.hf_overrides,
        own_architectures=read_as_they_stand(),
        by_transformers=args.model_impl == "transformers",
    )
    text_config = hf_config.get_text_config()
    check_sizes(path, lambda name: _field(text_config, name))
    generation = _generation_config(args, path)
    tokenizer_path = None
    tokenizer = None
    if not args.skip_tokenizer_init:
        tokenizer_path = path if args.tokenizer is None else _find(args, args.tokenizer, args.tokenizer_revision)
        tokenizer = load_tokenizer(
            tokenizer_path, trust_remote_code=args.trust_remote_code, code_revision=args.code_revision
        )
    max_model_len = _max_model_len(args, hf_config, path)
    pooling = _pooling(args, hf_config, path)
    model = ModelConfig(
        model=args.model,
        path=str(path),
        tokenizer_path=None if tokenizer_path is None else str(tokenizer_path),
        architecture=architecture_of(hf_config, args.model_impl),
        hf_config=hf_config,
        dtype=_dtype(args.dtype, dtype_of(hf_config), device),
        max_model_len=max_model_len,
        vocab_size=_field(text_config, "padded_vocab_size") or text_config.vocab_size,
        eos_token_ids=find_eos_token_ids(
            generation, {"eos_token_id": getattr(text_config, "eos_token_id", None)}, tokenizer
        ),
        default_sampling=_default_sampling(
            args.override_generation_config if args.generation_config == "vllm" else generation
        ),
        trust_remote_code=args.trust_remote_code,
        code_revision=args.code_revision,
        model_impl=args.model_impl,
        load_format=args.load_format,
        quantization=args.quantization,
        chat_template=args.chat_template,
        max_logprobs=args.max_logprobs,
        logprobs_mode=args.logprobs_mode,
        seed=args.seed,
        pooling=pooling,
        num_unwritten=_field(text_config, "additional_vocab_size") or 0,
        media=_media(args, hf_config),
        source=find(hf_config, args.model_impl).source,
        generation_config=generation,
    )
    scheduler = _scheduler(args, max_model_len, device)
    cache = CacheConfig(
        block_size=args.block_size,
        quantized=args.kv_cache_dtype == "int8",
        prefix_caching=args.enable_prefix_caching,
        memory_share=memory_share(args),
        memory_bytes=args.kv_cache_memory_bytes or (env.cpu_kvcache_bytes() if device == "cpu" else None),
        num_blocks=args.num_gpu_blocks_override,
    )
    return EngineConfig(
        model, scheduler, cache, device, cores=env.num_threads() or usable_cores(), args=args
    ), tokenizer


def _field(config: Any, name: str) -> Any:
    """Return a field of a configuration; None where it has none, or one for each layer."""
    try:
        return getattr(config, name, None)
    except Exception:  # transformers' own error for what differs from layer to layer is no AttributeError
        return None


def memory_share(args: EngineArgs) -> float:
    """Return the share of free memory that an engine may take."""
    return args.gpu_memory_utilization or _MEMORY_SHARE[choose_device(args.device)]


def make_preparer(model: ModelConfig, tokenizer: Tokenizer | None) -> Preparer:
    """Return what turns prompts into requests of a model."""
    limits = Limits(model.vocab_size, model.max_model_len, model.max_logprobs, model.num_unwritten)
    media = None
    if model.media is not None:
        folder = Path(model.tokenizer_path or model.path)
        media = MediaProcessor(folder, model.media, tokenizer, model.trust_remote_code)
    encoder = None
    if model.source:
        kept = find(model.hf_config, model.model_impl).body != ""
        encoder = EncoderRules.of(model.source, model.hf_config, model.generation_config, kept=kept)
    return Preparer(tokenizer, limits, eos_token_ids=model.eos_token_ids, seed=model.seed, media=media, encoder=encoder)


def make_chat_renderer(model: ModelConfig, preparer: Preparer) -> ChatRenderer:
    """Return what turns conversations into prompts, with the model's own templates."""
    tokenizer = preparer.tokenizer
    folder = model.tokenizer_path or model.path
    special = {} if tokenizer is None else tokenizer.special_tokens
    templates = find_templates(folder)
    if model.media is not None and model.media.prompts in _ALONE:
        templates = {"default": _ALONE[model.media.prompts]}
    return ChatRenderer(model.model or "the default model", templates, special, model.chat_template, preparer.media)


def _find(args: EngineArgs, name: str, revision: str | None) -> Path:
    if not name:
        return DEFAULT_MODEL_PATH
    return find_model(name, revision, args.download_dir, args.hf_token, args.load_format)


def _generation_config(args: EngineArgs, path: Path) -> dict[str, Any]:
    source = path if args.generation_config in ("auto", "vllm") else Path(args.generation_config)
    if source is not path and not (source / "generation_config.json").is_file():
        raise ConfigError(
            f"generation_config={args.generation_config!r} is no folder with a generation_config.json; give one, "
            "'auto' for the model's, or 'vllm' for none"
        )
    _check_generation_names(args.override_generation_config)
    return read_generation_config(source) | args.override_generation_config


def _check_generation_names(overrides: dict[str, Any]) -> None:
    if not overrides:
        return
    from transformers import GenerationConfig

    known = list(GenerationConfig().to_dict())  # type: ignore[no-untyped-call]
    for name in overrides:
        if name not in known:
            raise ConfigError(f"override_generation_config has an unknown field {name!r}.{did_you_mean(name, known)}")


def _default_sampling(generation: dict[str, Any]) -> dict[str, Any]:
    """The sampling parameters that a generation config sets."""
    found = {name: generation[name] for name in _SAMPLING_FIELDS if generation.get(name) is not None}
    if "max_new_tokens" in found:
        found["max_tokens"] = found.pop("max_new_tokens")
    return found


def _dtype(wanted: str, stored: str | None, device: str) -> str:
    """Settle the dtype.  float32 checkpoints run in bfloat16 where the device computes it natively."""
    if wanted != "auto":
        return _DTYPE_NAMES.get(wanted, wanted)
    stored = stored or "float32"
    if stored not in ("float32", "float16", "bfloat16"):
        raise ConfigError(f"the checkpoint's dtype {stored} can't be run; choose one with dtype=")
    if stored == "float32" and native_bfloat16(device):
        logger.info("the checkpoint is float32 and runs in bfloat16; dtype='float32' keeps it")
        return "bfloat16"
    return stored


def _pooling(args: EngineArgs, hf_config: Any, path: Path) -> Pooling | None:
    """Settle what the model is for; None: it generates."""
    given = args.override_pooler_config | args.pooler_config
    return resolve_pooling(
        hf_config,
        path,
        runner=args.runner,
        convert=args.convert,
        task=_task(args, hf_config),
        pooler_config=PoolerConfig(**given) if given else None,
        impl=args.model_impl,
    )


def _task(args: EngineArgs, hf_config: Any) -> str:
    """Settle the task; to transcribe is to generate, for a model that hears."""
    if args.task != "transcription":
        return args.task
    tokens = media_tokens(hf_config, args.model_impl) or {}
    if find(hf_config, args.model_impl).source != "audio" and "audio" not in tokens:
        name = architecture_of(hf_config, args.model_impl)
        raise ConfigError(f"task='transcription': {name} takes no sounds; use a model that does, or leave it out")
    return "generate"


def _media(args: EngineArgs, hf_config: Any) -> MediaConfig | None:
    """Settle how the model takes media; None: it takes text only."""
    token_ids = media_tokens(hf_config, args.model_impl)
    if token_ids is None:
        return None
    limits: dict[str, int] = {}
    for modality, most in args.limit_mm_per_prompt.items():
        if modality not in MODALITIES:
            raise ConfigError(
                f"limit_mm_per_prompt has {modality!r}; it takes {', '.join(MODALITIES)}.{did_you_mean(modality, MODALITIES)}"
            )
        count = most.get("count", 1) if isinstance(most, dict) else most
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise ConfigError(f"limit_mm_per_prompt[{modality!r}]={most!r} must be a number of media")
        limits[modality] = count
    cache_bytes = int(args.mm_processor_cache_gb * 2**30)
    architecture = find(hf_config, args.model_impl)
    media = media_of(architecture.name) if args.model_impl != "transformers" else None
    prompts: Prompts = "apart" if architecture.is_pair else "pieces"
    return MediaConfig(
        token_ids,
        limits,
        {**(media.options if media is not None else {}), **args.mm_processor_kwargs},
        beside=media.tokens_beside(hf_config) if media is not None else (),
        prompts=media.prompts if media is not None else prompts,
        reads_text=media is not None and media.reads_text,
        notices=media.notices if media is not None else "",
        whole_prompt=media is not None and media.sees == "prompt",
        across=media is not None and media.sees == "media",
        states=media.states(hf_config) if media is not None else 0,
        processor=media.processor if media is not None else "",
        folder=args.allowed_local_media_path,
        hosts=tuple(args.allowed_media_domains),
        cache_bytes=cache_bytes,
    )


def _max_model_len(args: EngineArgs, hf_config: Any, path: Path) -> int:
    """Settle the context length: what is asked for, at most what the model was made for."""
    known = native_length(hf_config, path)
    if args.max_model_len is None:
        if known is None:
            raise ConfigError("the checkpoint names no context length; set max_model_len")
        return known
    if known is not None and args.max_model_len > known and not env.allow_long_max_model_len():
        raise ConfigError(
            f"max_model_len={args.max_model_len} is more than the {known} tokens that the model was made for; use at "
            f"most {known}, or set VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 to try what comes beyond"
        )
    return args.max_model_len


def _scheduler(args: EngineArgs, max_model_len: int, device: str) -> SchedulerConfig:
    usual = _STEP_TOKENS[device]
    if args.max_num_batched_tokens is not None:
        step_tokens = args.max_num_batched_tokens
    else:
        step_tokens = usual if args.enable_chunked_prefill else max(usual, max_model_len)
    if not args.enable_chunked_prefill and step_tokens < max_model_len:
        raise ConfigError(
            f"max_num_batched_tokens={step_tokens} is less than max_model_len={max_model_len}, and prompts may not be "
            f"split; raise it to {max_model_len}, lower max_model_len, or leave enable_chunked_prefill on"
        )
    return SchedulerConfig(
        args.max_num_seqs,
        step_tokens,
        max_model_len,
        args.enable_chunked_prefill,
        args.scheduling_policy,
        chose_step_tokens=args.max_num_batched_tokens is not None,
    )
