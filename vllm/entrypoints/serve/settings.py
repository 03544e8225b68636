"""`ServerArgs`: the options of the server, beside those of the engine.

One field is one flag of `vllm serve` and one line of documentation, as in `vllm.config`.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import Any

from vllm.config import option
from vllm.errors import ConfigError, did_you_mean
from vllm.names import take_names
from vllm.sampling_params import MAX_N, MAX_STOP_STRINGS

# Names of the interface whose feature is not built yet, with the values that mean "not used".
SERVER_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "enable_auto_tool_choice": (False, None),
    "tool_call_parser": (None,),
    "tool_parser_plugin": ("", None),
    "tool_server": (None,),
    "reasoning_parser_plugin": ("", None),
    "middleware": ([], None),
    "lora_modules": (None, []),
    "prompt_adapters": (None, []),
    "chat_template_kwargs": (None, {}),
    "default_chat_template_kwargs": (None, {}),
    "api_server_count": (1, None),
    "headless": (False, None),
    "grpc": (False, None),
    "log_config_file": (None,),
    "enable_log_outputs": (False, None),
    "enable_log_deltas": (False, None),
    "max_num_queued_tokens": (None,),
    "ssl_check": (False, None),
    "enable_ssl_refresh": (False, None),
}

SERVER_WITHOUT_EFFECT: dict[str, str] = {
    "disable_log_requests": "requests are only logged with --enable-log-requests",
    "disable_uvicorn_access_log": "there is no access log",
    "disable_access_log_for_endpoints": "there is no access log",
    "disable_fastapi_docs": "/docs is a static page",
    "uvicorn_log_level": "VLLM_LOGGING_LEVEL sets the level",
    "disable_frontend_multiprocessing": "the engine always has a process of its own",
    "h11_max_incomplete_event_size": "max_header_bytes limits headers",
    "h11_max_header_count": "max_headers limits headers",
    "enable_request_id_headers": "every answer has the header X-Request-Id",
    "enable_server_load_tracking": "/load is always answered",
    "exclude_tools_when_tool_choice_none": "tools that may not be called are never shown to the model",
    "enable_prompt_logprobs": "they are always there to be asked for",
    "log_error_stack": "a fault of ours is always logged with its stack",
}

CONTENT_FORMATS = ("auto", "string", "openai")


@take_names(SERVER_UNSUPPORTED, SERVER_WITHOUT_EFFECT)
@dataclass
class ServerArgs:
    """The options of a server; None stands for an option's default.

    Beside the fields it takes the names of the interface in SERVER_UNSUPPORTED and SERVER_WITHOUT_EFFECT.  Raises
    ConfigError for a value that cannot work, TypeError for an unknown name.
    """

    host: str = option("0.0.0.0", "Address to listen on; 0.0.0.0 and :: are all addresses of the machine.")
    port: int = option(8000, "Port to listen on; 0: any free one.")
    uds: str | None = option(None, "Path of a unix socket to listen on, instead of host and port.")
    root_path: str = option("", "Path under which a proxy shows the server, as /llm.")
    served_model_name: list[str] = option(
        [], "Names that requests may call the model by, the first of which answers carry; by default the model's own."
    )
    unload_after: float = option(
        0.0,
        "Seconds without a request after which a model is unloaded; the next request waits until it is loaded; 0: never.",
    )
    api_key: list[str] = option([], "Keys of which a request must bring one, beside VLLM_API_KEY; none: no key.")
    allowed_origins: list[str] = option([], "Origins of web pages that may call the server (CORS); *: all.")
    allowed_methods: list[str] = option(["*"], "Methods that such pages may use.")
    allowed_headers: list[str] = option(["*"], "Headers that such pages may send.")
    allow_credentials: bool = option(False, "Let such pages send cookies and the like.")
    ssl_keyfile: str | None = option(None, "Key for TLS, a PEM file.")
    ssl_certfile: str | None = option(None, "Certificate for TLS, a PEM file with its chain.")
    ssl_keyfile_password: str | None = option(None, "Password of the key.")
    ssl_ca_certs: str | None = option(None, "Certificates of those who sign clients' certificates, a PEM file.")
    ssl_cert_reqs: int = option(0, "Clients' certificates: 0 not asked for, 1 optional, 2 required.", (0, 1, 2))
    ssl_ciphers: str | None = option(None, "Ciphers of TLS up to 1.2, as OpenSSL lists them.")
    chat_template_content_format: str = option(
        "auto", "The form of messages' contents that the chat template takes.", CONTENT_FORMATS
    )
    trust_request_chat_template: bool = option(
        False, "Let requests bring chat templates, which run in a sandbox with a time limit."
    )
    response_role: str = option("assistant", "The role of answers in chats.")
    return_tokens_as_token_ids: bool = option(False, "Write tokens of log-probabilities as token_id:N.")
    enable_prompt_tokens_details: bool = option(False, "Say in usage how many prompt tokens came from the cache.")
    enable_force_include_usage: bool = option(False, "End every stream with its usage, asked for or not.")
    enable_per_request_metrics: bool = option(False, "Answer with how long a request took, as metrics.")
    enable_tokenizer_info_endpoint: bool = option(False, "Answer GET /tokenizer_info.")
    enable_log_requests: bool = option(False, "Log a line per request.")
    max_log_len: int | None = option(None, "Characters of a prompt that are logged; by default none of it.")
    log_format: str = option("text", "The form of log lines.", ("text", "json"))
    otlp_traces_endpoint: str | None = option(
        None, "Where a collector of OpenTelemetry takes traces, as http://host:4318/v1/traces (the extra otel)."
    )
    disable_ui: bool = option(False, "Serve no chat page at /.")
    request_timeout: float | None = option(None, "Seconds after which a request is given up; by default never.")
    shutdown_timeout: float = option(30.0, "Seconds that running requests have to finish after SIGTERM.")
    keep_alive_timeout: float = option(75.0, "Seconds that an idle connection is kept.")
    header_timeout: float = option(20.0, "Seconds that a request's headers may take to arrive.")
    body_timeout: float = option(60.0, "Seconds that a request's body may take to arrive.")
    send_timeout: float = option(60.0, "Seconds that a client may leave an answer waiting, before it is hung up on.")
    max_body_bytes: int = option(32 * 2**20, "Bytes of a request's body at most.")
    max_header_bytes: int = option(64 * 2**10, "Bytes of a request's line and headers at most.")
    max_headers: int = option(100, "Headers of a request at most.")
    max_prompts: int = option(1024, "Prompts of a request at most.")
    max_inputs: int = option(2048, "Texts at most of a request to a model that pools.")
    max_n: int = option(MAX_N, "Outputs of a prompt at most (n and best_of).")
    max_stop_strings: int = option(MAX_STOP_STRINGS, "Stop strings of a request at most.")
    max_stop_length: int = option(1024, "Characters of a stop string at most.")
    max_stored_responses: int = option(1024, "Responses of /v1/responses that are kept to go on from; 0: none.")
    stored_response_lifetime: float = option(3600.0, "Seconds that such a response is kept.")
    max_concurrent_requests: int | None = option(
        None, "Requests that are worked on at a time, beyond which 503 is answered; by default as many as come."
    )
    max_num_queued_reqs: int | None = option(
        None, "Requests that wait for a place in the batch, beyond which 429 is answered; by default 4 x max_num_seqs."
    )

    def __post_init__(self) -> None:
        for f in fields(self):
            if getattr(self, f.name) is None:
                setattr(self, f.name, f.default if f.default_factory is MISSING else f.default_factory())
            if f.type.startswith("list") and isinstance(getattr(self, f.name), str):
                setattr(self, f.name, [getattr(self, f.name)])
            choices, value = f.metadata["choices"], getattr(self, f.name)
            if choices is not None and value not in choices:
                hint = did_you_mean(str(value), map(str, choices))
                raise ConfigError(f"{f.name}={value!r} is not one of {', '.join(map(repr, choices))}.{hint}")
        self._check_counts()
        if self.root_path:
            self.root_path = "/" + self.root_path.strip("/")
        if (self.ssl_keyfile or self.ssl_ca_certs) and not self.ssl_certfile:
            raise ConfigError("TLS needs a certificate; give ssl_certfile")
        if "" in self.api_key:
            raise ConfigError("api_key holds an empty key, which would let everybody in; leave it out")

    def _check_counts(self) -> None:
        most = {"port": 65535, "max_n": MAX_N, "max_stop_strings": MAX_STOP_STRINGS}
        least = dict.fromkeys(("port", "max_num_queued_reqs", "max_log_len", "max_stored_responses"), 0)
        for f in fields(self):
            value = getattr(self, f.name)
            if not f.type.startswith(("int", "float")) or f.name == "ssl_cert_reqs" or value is None:
                continue
            kinds = int if f.type.startswith("int") else (int, float)
            low = least.get(f.name, 1 if kinds is int else 0)
            if isinstance(value, bool) or not isinstance(value, kinds) or not value >= low:
                what = "an integer" if kinds is int else "a number"
                raise ConfigError(f"{f.name}={value!r} must be {what} of at least {low}")
            if value > most.get(f.name, value):
                raise ConfigError(f"{f.name}={value!r} must be at most {most[f.name]}")
