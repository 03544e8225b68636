"""Options: what the user gives (`EngineArgs`) and what the engine runs with (`EngineConfig`).

One field of EngineArgs is one keyword of `LLM(...)`, one flag of the command line and one line of documentation.
`EngineConfig` is frozen; it is made once, by `vllm.engine.setup.resolve`, from the arguments and the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from vllm.errors import ConfigError, did_you_mean
from vllm.names import take_names
from vllm.pooling_params import PoolerConfig, Pooling

if TYPE_CHECKING:  # help is shown without msgspec
    from vllm.messages import Modality, Prompts

DTYPES = ("auto", "bfloat16", "float16", "half", "float32", "float")
LOGPROBS_MODES = ("raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits")
TASKS = ("auto", "generate", "embed", "embedding", "classify", "reward", "score", "transcription")
RUNNERS = ("auto", "generate", "pooling")
CONVERSIONS = ("auto", "none", "embed", "classify", "reward")
DEFAULT_MODEL = ""
"""No model named: the tiny model that is part of the package."""


def option(default: Any, doc: str, choices: tuple[Any, ...] | None = None) -> Any:
    """Declare a field of EngineArgs with its line of documentation."""
    metadata = {"doc": doc, "choices": choices}
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


# Names of the interface whose feature is not built yet, with the values that mean "not used".
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "tokenizer_mode": ("auto", "hf", "slow", None),  # there is one implementation
    "pipeline_parallel_size": (1, None),
    "data_parallel_size": (1, None),
    "quantization_config": (None,),
    "enable_lora": (False, None),
    "speculative_config": (None,),
    "spec_method": (None,),
    "spec_model": (None,),
    "spec_tokens": (None,),
    "speculative_model": (None,),
    "num_speculative_tokens": (None,),
    "structured_outputs_config": (None, {}),
    "kv_transfer_config": (None,),
    "cpu_offload_gb": (0, None),
    "enable_sleep_mode": (False, None),
    "enable_prompt_embeds": (False, None),
    "logits_processors": (None, []),
    "config_format": ("auto", "hf", None),
    "enable_expert_parallel": (False, None),
    "rope_scaling": (None, {}),
    "rope_theta": (None,),
    "hf_config_path": (None,),
    "model_loader_extra_config": (None, {}),
    "worker_cls": ("auto", None),
    "worker_extension_cls": ("", None),
    "scheduler_cls": (None,),
    "calculate_kv_scales": (False, None),
    "additional_config": (None, {}),
    "enable_prompt_adapter": (False, None),
    "enable_lora_bias": (False, None),
    "qlora_adapter_name_or_path": (None,),
    "kv_offloading_size": (None,),
    "guided_decoding": (None,),
    "reasoning_parser": ("", None),
    "kv_sharing_fast_prefill": (False, None),
}

_GPU_ONLY = "it tunes a GPU"
_DEPTH = "the next step is decided while one is computed wherever that is of use"
_PROCESSES = "one process runs the model"
_KERNELS = "the fastest attention kernels that can serve the model are chosen"
WITHOUT_EFFECT: dict[str, str] = {
    "async_scheduling": _DEPTH,
    "enforce_eager": "no steps are recorded",
    "served_model_name": "there is no server",
    "disable_log_stats": "statistics are not logged",
    "swap_space": "a preempted request is computed again, not swapped",
    "max_seq_len_to_capture": _GPU_ONLY,
    "disable_custom_all_reduce": _GPU_ONLY,
    "compilation_config": "nothing is compiled",
    "attention_config": _KERNELS,
    "attention_backend": _KERNELS,
    "profiler_config": "there is no profiler",
    "distributed_executor_backend": _PROCESSES,
    "worker_use_ray": _PROCESSES,
    "disable_async_output_proc": _PROCESSES,
    "use_v2_block_manager": "there is one block manager",
    "max_lora_rank": "LoRA is off",
    "max_loras": "LoRA is off",
    "lora_modules": "LoRA is off",
    "guided_decoding_backend": "no structured output is asked for",
    "disable_sliding_window": "a window frees memory and costs nothing",
    "num_scheduler_steps": "every step is scheduled",
    "multi_step_stream_outputs": "every step is scheduled",
    "max_num_partial_prefills": "prompts share a step's token budget in order of arrival",
    "max_long_partial_prefills": "prompts share a step's token budget in order of arrival",
    "long_prefill_token_threshold": "prompts share a step's token budget in order of arrival",
    "disable_log_requests": "requests are not logged",
    "enable_return_routed_experts": "routing is not recorded",
    "return_sampling_mask": "the mask is not recorded",
    "preemption_mode": "a preempted request is computed again",
    "num_lookahead_slots": "there is no speculation",
    "quantization_param_path": "the cache is not quantized",
    "collect_detailed_traces": "there is no tracing",
    "otlp_traces_endpoint": "there is no tracing",
    "max_prompt_adapters": "prompt adapters are off",
    "max_prompt_adapter_token": "prompt adapters are off",
    "fully_sharded_loras": "LoRA is off",
    "lora_dtype": "LoRA is off",
    "lora_extra_vocab_size": "LoRA is off",
    "long_lora_scaling_factors": "LoRA is off",
    "max_cpu_loras": "LoRA is off",
    "default_mm_loras": "LoRA is off",
    "scheduler_delay_factor": "a prompt starts as soon as there is room",
    "max_parallel_loading_workers": "one process loads the model",
    "renderer_num_workers": "prompts are tokenized in one batch",
    "tokenizer_pool_size": "prompts are tokenized in one batch",
    "tokenizer_pool_type": "prompts are tokenized in one batch",
    "tokenizer_pool_extra_config": "prompts are tokenized in one batch",
    "ray_workers_use_nsight": _PROCESSES,
    "data_parallel_backend": _PROCESSES,
    "override_neuron_config": "it is for another device",
    "disable_mm_preprocessor_cache": "the model reads text",
    "mm_encoder_tp_mode": "the model reads text",
    "skip_mm_profiling": "the model reads text",
    "logits_processor_pattern": "no server takes processors by name",
    "use_tqdm_on_load": "the bar shows how loading goes",
    "disable_cascade_attn": "there is no cascade attention",
    "enable_log_requests": "requests are not logged",
    "show_hidden_metrics_for_version": "there are no metrics",
    "disable_hybrid_kv_cache_manager": "layers that need different memory always have it",
    "ignore_patterns": "only the files that are needed are downloaded",
}


@take_names(UNSUPPORTED, WITHOUT_EFFECT)
@dataclass
class EngineArgs:
    """The options of an engine; None stands for an option's default.

    Beside the fields it takes the names of the interface in UNSUPPORTED and WITHOUT_EFFECT.  Raises ConfigError for a
    value that cannot work, TypeError for an unknown name.
    """

    model: str = option(DEFAULT_MODEL, "Folder or Hub name of the model; none: the tiny model inside the package.")
    task: str = option("auto", "What the model is for; an older way to say runner and convert.", TASKS)
    runner: str = option(
        "auto",
        "What the model does: generate, or pooling (embed, classify, score); auto: what it was made for.",
        RUNNERS,
    )
    convert: str = option(
        "auto", "What a model that generates is turned into where it shall pool; auto: what its files say.", CONVERSIONS
    )
    pooler_config: dict[str, Any] = option({}, "How the model pools, where that differs from what its files say.")
    override_pooler_config: dict[str, Any] = option({}, "An older name of pooler_config.")
    tokenizer: str | None = option(None, "Folder or Hub name of the tokenizer; by default the model's.")
    skip_tokenizer_init: bool = option(False, "Load no tokenizer; prompts are token ids and outputs have no text.")
    trust_remote_code: bool = option(False, "Run Python code that comes with the checkpoint.")
    dtype: str = option(
        "auto",
        "Type of weights and activations; auto: the checkpoint's, float32 becoming bfloat16 where the device has it.",
        DTYPES,
    )
    device: str = option("auto", "Where the model runs; auto: on a GPU if there is one.", ("auto", "cuda", "cpu"))
    tensor_parallel_size: int = option(1, "Devices that share the weights, each with a process of its own.")
    revision: str | None = option(None, "Branch, tag or commit of the model on the Hub.")
    tokenizer_revision: str | None = option(None, "Branch, tag or commit of the tokenizer on the Hub.")
    code_revision: str | None = option(
        None, "Branch, tag or commit of the checkpoint's Python code, where that is in a repository of its own."
    )
    model_impl: str = option(
        "auto",
        "Whose modules compute the model: vllm, transformers (slower), or auto: transformers' where there are no others.",
        ("auto", "vllm", "transformers"),
    )
    hf_token: str | bool | None = option(None, "Token for the Hub; True: the stored one.")
    hf_overrides: dict[str, Any] = option({}, "Values that replace fields of the model's config.json.")
    download_dir: str | None = option(None, "Where downloads are kept; by default the Hub's own cache.")
    load_format: str = option(
        "auto", "auto: safetensors, else .bin; dummy: random weights.", ("auto", "safetensors", "pt", "dummy")
    )
    quantization: str | None = option(
        None,
        "Convert weights while they are loaded: int8 (one scale per row), int4 (one per 32 weights), on GPUs fp8 too. "
        "On a processor products round activations to 8 bits then.",
        (None, "int8", "int4", "fp8"),
    )
    generation_config: str = option(
        "auto", "Where default sampling parameters come from: auto (the model), vllm (none), or a folder."
    )
    override_generation_config: dict[str, Any] = option({}, "Values that replace fields of the generation config.")
    chat_template: str | None = option(None, "Chat template (text or path) used instead of the model's.")
    max_model_len: int | None = option(
        None, "Tokens of prompt and output at most; by default what the model was made for."
    )
    seed: int = option(0, "Seed of requests that have none of their own.")
    block_size: int = option(16, "Tokens per cache block.", (8, 16, 32, 64, 128))
    kv_cache_dtype: str = option(
        "auto", "How keys and values are kept: auto, as the model computes; int8, a scale per token.", ("auto", "int8")
    )
    enable_prefix_caching: bool = option(True, "Reuse cached blocks of equal prompt beginnings.")
    gpu_memory_utilization: float | None = option(
        None, "Share of the free memory that weights and cache may take; by default 0.5 on a CPU, 0.9 on a GPU."
    )
    kv_cache_memory_bytes: int | None = option(None, "Bytes of KV cache, instead of what is computed.")
    num_gpu_blocks_override: int | None = option(
        None, "Blocks per cache group, instead of what is computed (for tests)."
    )
    max_num_seqs: int = option(256, "Sequences computed in one step at most.")
    max_num_batched_tokens: int | None = option(
        None,
        "Tokens computed in one step at most; by default 512 on a CPU, 8192 on a GPU, or max_model_len where prompts may not be split.",
    )
    enable_chunked_prefill: bool = option(True, "Split long prompts over several steps.")
    limit_mm_per_prompt: dict[str, Any] = option(
        {}, "How many media a prompt may have, by modality: image, video, audio; by default any number."
    )
    mm_processor_kwargs: dict[str, Any] = option({}, "Options for the model's processor of media.")
    mm_processor_cache_gb: float = option(1.0, "GiB of processed media that are kept in case they come again.")
    allowed_local_media_path: str = option("", "Folder whose files prompts may name as media; none: no files are read.")
    allowed_media_domains: list[str] = option(
        [],
        "Hosts that media may be fetched from, private ones too; none: all hosts of the internet, and no private ones.",
    )
    scheduling_policy: str = option(
        "fcfs", "fcfs: first come, first served; priority: lower values first.", ("fcfs", "priority")
    )
    max_logprobs: int = option(20, "Log-probabilities per position that a request may ask for; -1: no limit.")
    logprobs_mode: str = option("raw_logprobs", "Which values logprobs are.", LOGPROBS_MODES)

    def __post_init__(self) -> None:
        for f in fields(self):
            if getattr(self, f.name) is None:
                setattr(self, f.name, f.default if f.default_factory is MISSING else f.default_factory())
            if isinstance(value := getattr(self, f.name), PoolerConfig):
                setattr(self, f.name, {name: item for name, item in asdict(value).items() if item is not None})
            choices, value = f.metadata["choices"], getattr(self, f.name)
            if choices is not None and value not in choices:
                raise ConfigError(
                    f"{f.name}={value!r} is not one of {', '.join(map(repr, choices))}.{did_you_mean(str(value), map(str, choices))}"
                )
        for name in (
            "max_model_len",
            "max_num_seqs",
            "max_num_batched_tokens",
            "kv_cache_memory_bytes",
            "num_gpu_blocks_override",
            "tensor_parallel_size",
        ):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(f"{name}={value!r} must be an integer of at least 1")
        if isinstance(self.max_logprobs, bool) or not isinstance(self.max_logprobs, int) or self.max_logprobs < -1:
            raise ConfigError(
                f"max_logprobs={self.max_logprobs!r} must be an integer of at least 0, or -1 for no limit"
            )
        if self.gpu_memory_utilization is not None and not 0.0 < self.gpu_memory_utilization <= 1.0:
            raise ConfigError(f"gpu_memory_utilization={self.gpu_memory_utilization} must be in (0, 1]")


@dataclass(frozen=True, slots=True)
class MediaConfig:
    """How a model takes media."""

    token_ids: Mapping[Modality, int]
    """Modality that it takes → the token that an embedding has in a prompt; -1: transformers computes the model, and all
    media of a prompt are prepared together"""
    limits: Mapping[str, int] = field(default_factory=dict)
    """Modality → how many a prompt may have; without an entry any number"""
    options: Mapping[str, Any] = field(default_factory=dict)
    """For the processor, with every item"""
    beside: tuple[int, ...] = ()
    """Further tokens of media whose embeddings are the tower's"""
    prompts: Prompts = "pieces"
    """How the processor fills prompts in"""
    reads_text: bool = False
    """What a medium becomes depends on its prompt's text"""
    notices: str = ""
    """A feature of pictures that the sounds of their prompt get, empty"""
    whole_prompt: bool = False
    """All tokens of a prompt with media see each other"""
    across: bool = False
    """All tokens of a prompt's media see each other, and not the texts between them"""
    states: int = 0
    """How many states layers attend to of a medium; 0: what is made of it enters in its place"""
    processor: str = ""
    """Where what prepares media is, if it is not transformers'"""
    folder: str = ""
    """Whose files prompts may name"""
    hosts: tuple[str, ...] = ()
    """That media may be fetched from; none: all that are public"""
    cache_bytes: int = 1 << 30
    """What is kept of items that may come again"""

    @property
    def modalities(self) -> tuple[Modality, ...]:
        return tuple(self.token_ids)

    @property
    def together(self) -> bool:
        """All media of a prompt are prepared at once, with its text."""
        return -1 in self.token_ids.values()


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The model that runs."""

    model: str
    """As the user named it."""
    path: str
    tokenizer_path: str | None
    architecture: str
    hf_config: Any
    dtype: str
    max_model_len: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    default_sampling: dict[str, Any]
    """Sampling defaults of the generation config."""
    trust_remote_code: bool
    code_revision: str | None
    model_impl: str
    load_format: str
    quantization: str | None
    """What weights are quantized to while they are loaded."""
    chat_template: str | None
    max_logprobs: int
    logprobs_mode: str
    seed: int
    pooling: Pooling | None = None
    """How it pools; None: it generates."""
    num_unwritten: int = 0
    """How many tokens behind its vocabulary it reads, which it never chooses."""
    media: MediaConfig | None = None
    """How it takes media; None: it takes text only."""
    source: Literal["", "text", "audio"] = ""
    """What its encoder reads, text or audio, where it has one beside its decoder"""
    generation_config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tokenizer(self) -> str | None:
        return self.tokenizer_path


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Who may run together, and for how long."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    chunked_prefill: bool = True
    policy: str = "fcfs"
    chose_step_tokens: bool = False
    """The user chose max_num_batched_tokens."""
    whole_media: bool = False
    """The tokens of a medium see each other, so they are computed in one step."""
    source_tokens: int | None = None
    """How many tokens there is room for of what an encoder beside the decoder read."""


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """The KV cache before its size is known."""

    block_size: int
    quantized: bool
    """Keys and values are kept as 8-bit integers."""
    prefix_caching: bool
    memory_share: float
    memory_bytes: int | None
    num_blocks: int | None
    free_bytes: int | None = None
    """What `memory_share` is a share of; None: what is free when the model is loaded."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Everything an engine runs with."""

    model: ModelConfig
    scheduler: SchedulerConfig
    cache: CacheConfig
    device: str
    cores: int
    args: EngineArgs
    """What it was made of."""

    @property
    def tensor_parallel_size(self) -> int:
        return self.args.tensor_parallel_size
