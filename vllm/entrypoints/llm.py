"""`LLM`: a model to call from Python, without a server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from vllm.config import EngineArgs
from vllm.engine.llm_engine import LLMEngine
from vllm.engine.output_processor import shown_tokens
from vllm.entrypoints.offline import Bar, Runs, refuse
from vllm.entrypoints.pooling import PoolingCalls
from vllm.errors import ConfigError, RequestError
from vllm.inputs.chat import ChatOptions
from vllm.inputs.prepare import Params
from vllm.inputs.prompts import Prompt, PromptType, parse_prompts
from vllm.inputs.tokenizer import hf_tokenizer
from vllm.messages import EngineRequest
from vllm.outputs import BeamSearchOutput, BeamSearchSequence, CompletionOutput, RequestOutput
from vllm.sampling_params import BeamSearchParams, RequestOutputKind, SamplingParams

Priorities = int | list[int] | None
_METHODS = {
    "embed": "LLM.embed",
    "classify": "LLM.classify",
    "token_embed": 'LLM.encode(…, pooling_task="token_embed")',
    "token_classify": "LLM.reward",
}


class LLM(PoolingCalls):
    """A model with its tokenizer and its cache.

    >>> from vllm import LLM, SamplingParams
    >>> llm = LLM()  # the tiny model inside the package; else a folder or a name on the Hub
    >>> (output,) = llm.generate("Hello, my name is", SamplingParams(temperature=0, max_tokens=5), use_tqdm=False)
    >>> len(output.outputs[0].token_ids)
    5
    >>> llm.close()
    """

    def __init__(self, model: str | Path = "", tokenizer: str | Path | None = None, **options: Any) -> None:
        """Load a model.  Options are the fields of `EngineArgs`.

        Raises TypeError for an unknown option, ConfigError for one that cannot work, ModelError for a model that is
        missing, damaged or not supported.
        """
        tokenizer = None if tokenizer is None else str(tokenizer)
        args = EngineArgs(model=str(model), tokenizer=tokenizer, **options)
        self.llm_engine = LLMEngine.from_engine_args(args, progress=True)
        self._runs = Runs(self.llm_engine)
        self._renderer = self.llm_engine.chat_renderer()

    @classmethod
    def from_engine_args(cls, args: EngineArgs) -> LLM:
        return cls(**{name: getattr(args, name) for name in args.__dataclass_fields__})

    def generate(
        self,
        prompts: PromptType | Sequence[PromptType] | None = None,
        sampling_params: Params | Sequence[Params] | None = None,
        prompt_token_ids: list[int] | list[list[int]] | None = None,
        use_tqdm: Bar = True,
        lora_request: None = None,
        prompt_adapter_request: None = None,
        guided_options_request: None = None,
        priority: Priorities = None,
        *,
        tokenization_kwargs: None = None,
        mm_processor_kwargs: dict[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Continue prompts; return one output per prompt, in their order.

        `sampling_params` is for all prompts, or a list with one for each; by default what the model recommends.  With
        BeamSearchParams the outputs of a prompt are its beams, best first.  Raises RequestError or TypeError, before
        anything runs, for a prompt or parameter that cannot work.
        """
        refuse(
            lora_request=lora_request,
            prompt_adapter_request=prompt_adapter_request,
            guided_options_request=guided_options_request,
            tokenization_kwargs=tokenization_kwargs,
        )
        parsed = parse_prompts(prompts, prompt_token_ids)
        if mm_processor_kwargs:
            parsed = [replace(p, processor_options={**mm_processor_kwargs, **p.processor_options}) for p in parsed]
        return self._run(self._prepare(parsed, sampling_params, priority), use_tqdm)

    def chat(
        self,
        messages: list[Any],
        sampling_params: Params | Sequence[Params] | None = None,
        use_tqdm: Bar = True,
        lora_request: None = None,
        chat_template: str | None = None,
        chat_template_content_format: str = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        *,
        priority: Priorities = None,
        tokenization_kwargs: None = None,
        mm_processor_kwargs: dict[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer a conversation, or a list of them, rendered by the model's chat template or the given one.

        Raises ModelError if there is no template, RequestError for messages that cannot be rendered.
        """
        refuse(lora_request=lora_request, tokenization_kwargs=tokenization_kwargs)
        self._check_generates()
        options = ChatOptions(
            chat_template=chat_template,
            chat_template_content_format=chat_template_content_format,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=tools,
            chat_template_kwargs=chat_template_kwargs or {},
            mm_processor_kwargs=mm_processor_kwargs or {},
        )
        prompts = self._renderer.prompts(messages, options)
        return self._run(self._prepare(prompts, sampling_params, priority), use_tqdm)

    def beam_search(
        self,
        prompts: PromptType | Sequence[PromptType],
        params: BeamSearchParams,
        lora_request: None = None,
        use_tqdm: Bar = False,
        concurrency_limit: int | None = None,
    ) -> list[BeamSearchOutput]:
        """Search for the most likely continuations; return `beam_width` sequences per prompt, prompt included.

        `concurrency_limit` is the number of prompts searched at a time; by default as many as fit.
        """
        refuse(lora_request=lora_request)
        if not isinstance(params, BeamSearchParams):
            raise TypeError(f"params must be BeamSearchParams, got {params!r}")
        if concurrency_limit is not None and concurrency_limit < 1:
            raise RequestError(
                f"concurrency_limit must be at least 1, or None for no limit, got {concurrency_limit}",
                "concurrency_limit",
            )
        requests = self._prepare(parse_prompts(prompts), params, None)
        size = concurrency_limit or len(requests)
        chunks = (requests[first : first + size] for first in range(0, len(requests), size))
        outputs = [output for chunk in chunks for output in self._run(chunk, use_tqdm)]
        return [self._with_prompt(output, params) for output in outputs]

    def get_tokenizer(self) -> Any:
        """Return the model's tokenizer as transformers loads it."""
        model = self.llm_engine.model_config
        if model.tokenizer_path is None:
            raise ConfigError("skip_tokenizer_init=True: there is no tokenizer")
        return hf_tokenizer(
            model.tokenizer_path, trust_remote_code=model.trust_remote_code, code_revision=model.code_revision
        )

    def get_default_sampling_params(self) -> SamplingParams:
        """Return the sampling parameters that the model's generation config recommends."""
        return SamplingParams.from_optional(**self.llm_engine.model_config.default_sampling)

    def reset_prefix_cache(self) -> bool:
        """Forget cached prompt beginnings."""
        return self.llm_engine.reset_prefix_cache()

    def close(self) -> None:
        """Free model and cache.  Calling it twice does no harm."""
        self.llm_engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _check_generates(self) -> None:
        pooling = self.llm_engine.model_config.pooling
        if pooling is not None:
            methods = ", ".join(_METHODS[task] for task in pooling.tasks)
            raise ConfigError(
                f"this model pools and generates nothing; use {methods}.  If it can generate as well, it does when loaded "
                'with task="generate"'
            )

    def _prepare(
        self, prompts: Sequence[Prompt], params: Params | Sequence[Params] | None, priority: Priorities
    ) -> list[EngineRequest]:
        """Check everything before anything runs."""
        self._check_generates()
        params = self.get_default_sampling_params() if params is None else params
        priorities = [priority] * len(prompts) if isinstance(priority, int) else priority
        ids = self._runs.ids(len(prompts))
        requests = self.llm_engine.preparer.prepare(prompts, params, priority=priorities, request_ids=ids)
        shared = {id(request.params): request.params for request in requests}
        finals = {key: _final_only(params) for key, params in shared.items()}
        for request in requests:
            request.params = finals[id(request.params)]
        return requests

    def _run(self, requests: Sequence[EngineRequest], use_tqdm: Bar) -> list[RequestOutput]:
        return cast("list[RequestOutput]", self._runs.run(requests, use_tqdm))

    def _with_prompt(self, output: RequestOutput, params: BeamSearchParams) -> BeamSearchOutput:
        prompt, tokenizer = output.prompt_token_ids or [], self.llm_engine.tokenizer

        def text(beam: CompletionOutput) -> str | None:
            shown = [*prompt, *shown_tokens(beam.token_ids, beam.finish_reason, params)]
            return None if tokenizer is None else tokenizer.decode(shown, params.skip_special_tokens)

        return BeamSearchOutput(
            [
                BeamSearchSequence(
                    tokens=[*prompt, *beam.token_ids],
                    logprobs=beam.logprobs or [],
                    cum_logprob=beam.cumulative_logprob or 0.0,
                    text=text(beam),
                    finish_reason=beam.finish_reason,
                    stop_reason=beam.stop_reason,
                )
                for beam in output.outputs
            ]
        )


def _final_only(params: SamplingParams) -> SamplingParams:
    """Nobody looks at unfinished outputs here."""
    params = params.clone()
    params.output_kind = RequestOutputKind.FINAL_ONLY
    return params
