"""What `LLM` does with a model that pools: embeddings, classes, scores, rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from vllm.engine.llm_engine import LLMEngine
from vllm.entrypoints.offline import Bar, Runs, refuse
from vllm.errors import ConfigError, ModelError, RequestError, did_you_mean
from vllm.inputs.chat import ChatRenderer
from vllm.inputs.chat_template import load_chat_template
from vllm.inputs.pooling import MADE_FOR, Pieces, Pooled, check_task, with_text_before
from vllm.inputs.prompts import Prompt, PromptType, parse_prompts
from vllm.inputs.score import Scorer, texts_of
from vllm.messages import EngineRequest
from vllm.outputs import (
    ClassificationOutput,
    ClassificationRequestOutput,
    EmbeddingOutput,
    EmbeddingRequestOutput,
    PoolingOutput,
    PoolingRequestOutput,
    ScoringOutput,
    ScoringRequestOutput,
)
from vllm.pooling_params import Pooling, PoolingParams, PoolingTask

Prompts = PromptType | Sequence[PromptType]
AnyParams = PoolingParams | Sequence[PoolingParams] | None
_TOKENIZATION = ("add_special_tokens", "truncate_prompt_tokens", "truncation", "max_length")


class PoolingCalls:
    """The methods of `LLM` for models that pool.

    All take `pooling_params` for all prompts, or a list with one for each; `truncate_prompt_tokens` keeps so many tokens
    of each prompt (-1: as many as the context has); `tokenization_kwargs` may hold that, `add_special_tokens`, or
    `truncation` and `max_length`.  All raise ConfigError for a model that generates, and RequestError or TypeError,
    before anything runs, for what cannot work.
    """

    llm_engine: LLMEngine
    _runs: Runs
    _renderer: ChatRenderer

    def encode(
        self,
        prompts: Prompts | None = None,
        pooling_params: AnyParams = None,
        use_tqdm: Bar = True,
        lora_request: None = None,
        prompt_adapter_request: None = None,
        *,
        pooling_task: PoolingTask | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        truncate_prompt_tokens: int | None = None,
        prompt_token_ids: list[int] | list[list[int]] | None = None,
    ) -> list[PoolingRequestOutput[PoolingOutput]]:
        """Pool prompts; return what came out as float32 tensors, [N] or, with a row for each token, [n, N].

        `pooling_task` says what is wanted; by default what the model is for.  A prompt for which the model computed no
        finite numbers has an `error` and no data.
        """
        refuse(lora_request=lora_request, prompt_adapter_request=prompt_adapter_request)
        pooling = self._pooling("encode", pooling_task or "embed")
        parsed, params = _tokenization(
            parse_prompts(prompts, prompt_token_ids), pooling_params, tokenization_kwargs, truncate_prompt_tokens
        )
        return [
            PoolingRequestOutput(
                output.request_id,
                PoolingOutput(torch.tensor(output.outputs.data)),
                output.prompt_token_ids,
                num_cached_tokens=output.num_cached_tokens,
                error=output.error,
            )
            for output in self._pool(parsed, params, pooling_task, pooling, use_tqdm)
        ]

    def embed(
        self,
        prompts: Prompts,
        *,
        use_tqdm: Bar = True,
        pooling_params: AnyParams = None,
        lora_request: None = None,
        prompt_adapter_request: None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        truncate_prompt_tokens: int | None = None,
    ) -> list[EmbeddingRequestOutput]:
        """Return an embedding for each prompt.

        A text that a model of sentence-transformers wants before prompts is put there.
        """
        refuse(lora_request=lora_request, prompt_adapter_request=prompt_adapter_request)
        pooling = self._pooling("embed", "embed")
        parsed, params = _tokenization(
            parse_prompts(prompts), pooling_params, tokenization_kwargs, truncate_prompt_tokens
        )
        return [
            EmbeddingRequestOutput(
                output.request_id,
                EmbeddingOutput(output.outputs.data.tolist()),
                output.prompt_token_ids,
                num_cached_tokens=output.num_cached_tokens,
            )
            for output in _sound(self._pool(parsed, params, "embed", pooling, use_tqdm))
        ]

    def classify(
        self,
        prompts: Prompts,
        *,
        use_tqdm: Bar = True,
        pooling_params: AnyParams = None,
        lora_request: None = None,
        prompt_adapter_request: None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        truncate_prompt_tokens: int | None = None,
    ) -> list[ClassificationRequestOutput]:
        """Return the probabilities of the model's classes for each prompt."""
        refuse(lora_request=lora_request, prompt_adapter_request=prompt_adapter_request)
        pooling = self._pooling("classify", "classify")
        parsed, params = _tokenization(
            parse_prompts(prompts), pooling_params, tokenization_kwargs, truncate_prompt_tokens
        )
        return [
            ClassificationRequestOutput(
                output.request_id,
                ClassificationOutput(output.outputs.data.tolist()),
                output.prompt_token_ids,
                num_cached_tokens=output.num_cached_tokens,
            )
            for output in _sound(self._pool(parsed, params, "classify", pooling, use_tqdm))
        ]

    def reward(
        self,
        prompts: Prompts,
        *,
        use_tqdm: Bar = True,
        pooling_params: AnyParams = None,
        lora_request: None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        truncate_prompt_tokens: int | None = None,
    ) -> list[PoolingRequestOutput[PoolingOutput]]:
        """Return the rewards of each prompt: one for each token or step, or one for all of it, as the model has it."""
        pooling = self._pooling("reward", "token_classify")
        task: PoolingTask = "token_classify" if "token_classify" in pooling.tasks else pooling.tasks[0]
        if task == "embed":
            check_task("token_classify", pooling)
        return self.encode(
            prompts,
            pooling_params,
            use_tqdm,
            lora_request,
            pooling_task=task,
            tokenization_kwargs=tokenization_kwargs,
            truncate_prompt_tokens=truncate_prompt_tokens,
        )

    def score(
        self,
        data_1: Any,
        data_2: Any,
        /,
        *,
        truncate_prompt_tokens: int | None = None,
        use_tqdm: Bar = True,
        pooling_params: PoolingParams | None = None,
        lora_request: None = None,
        prompt_adapter_request: None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        chat_template: str | Path | None = None,
    ) -> list[ScoringRequestOutput]:
        """Return how well texts go together: one with one or with each of many, or as many of both, one by one.

        A reranker reads both texts, in its tokenizer's form of pairs or in that of `chat_template`, which gets messages
        in the roles "query" and "document".  For a model that embeds it is the cosine of two embeddings, for one that
        embeds tokens the sum of the best matches of the first text's tokens.
        """
        refuse(lora_request=lora_request, prompt_adapter_request=prompt_adapter_request)
        pooling = self._pooling("score", "classify", made_for="score")
        scorer = Scorer(self.llm_engine.preparer, pooling, self._renderer)
        media = self._renderer.media
        both = [texts_of(data_1, "data_1", media), texts_of(data_2, "data_2", media)]
        given = PoolingParams() if pooling_params is None else pooling_params
        if not isinstance(given, PoolingParams):
            raise TypeError(f"pooling_params must be PoolingParams, got {given!r}")
        parsed, params = _tokenization(
            [prompt for side in both for prompt in side], given, tokenization_kwargs, truncate_prompt_tokens
        )
        scoring = scorer.prepare(
            parsed[: len(both[0])],
            parsed[len(both[0]) :],
            cast(PoolingParams, params),
            template=load_chat_template(chat_template),
        )
        outputs = _sound(self._run_pooled(scoring.requests, pooling, use_tqdm))
        return [
            ScoringRequestOutput(
                outputs[pair[-1]].request_id,
                ScoringOutput(score),
                scoring.tokens(index),
                num_cached_tokens=sum(outputs[position].num_cached_tokens for position in pair),
            )
            for index, (pair, score) in enumerate(zip(scoring.pairs, scoring.scores(outputs), strict=True))
        ]

    def _pooling(self, method: str, task: PoolingTask, made_for: str = "") -> Pooling:
        """Return how the model pools.  Raises ConfigError if it generates."""
        pooling = self.llm_engine.model_config.pooling
        if pooling is None:
            raise ConfigError(
                f"LLM.{method} is for models that pool, and this one is loaded to generate; load it with "
                f'task="{made_for or MADE_FOR.get(task, task)}" (or runner="pooling")'
            )
        return pooling

    def _pool(
        self,
        prompts: list[Prompt],
        params: AnyParams,
        task: PoolingTask | None,
        pooling: Pooling,
        use_tqdm: Bar,
    ) -> list[Pooled]:
        if (task or pooling.tasks[0]) == "embed":
            prompts = with_text_before(prompts, pooling.texts)
        requests = self.llm_engine.preparer.prepare_pooling(prompts, params, task=task, pooling=pooling)
        return self._run_pooled(requests, pooling, use_tqdm)

    def _run_pooled(self, requests: Sequence[EngineRequest], pooling: Pooling, use_tqdm: Bar) -> list[Pooled]:
        """Run requests, those that are too long piece by piece."""
        for request, name in zip(requests, self._runs.ids(len(requests)), strict=True):
            request.id = name
        pieces = Pieces(requests, self.llm_engine.model_config.max_model_len, pooling)
        return pieces.join(cast("list[Pooled]", self._runs.run(pieces.requests, use_tqdm)))


def _sound(outputs: list[Pooled]) -> list[Pooled]:
    """Return outputs all of which are there.  Raises ModelError if one failed."""
    for position, output in enumerate(outputs):
        if output.error is not None:
            raise ModelError(f"prompt {position} (request {output.request_id}): {output.error}")
    return outputs


def _tokenization(
    prompts: list[Prompt], params: AnyParams, options: Mapping[str, Any] | None, keep: int | None
) -> tuple[list[Prompt], AnyParams]:
    """Return prompts and parameters with what the caller says about how to tokenize."""
    options = dict(options or {})
    for name in options:
        if name not in _TOKENIZATION:
            raise RequestError(
                f"tokenization_kwargs: {name!r} is not known.{did_you_mean(name, _TOKENIZATION)}", "tokenization_kwargs"
            )
    if options.get("truncation"):
        keep = options.get("max_length", -1) if keep is None else keep
    keep = options.get("truncate_prompt_tokens") if keep is None else keep
    special = options.get("add_special_tokens", True)
    if not special:
        prompts = [replace(prompt, add_special_tokens=False) for prompt in prompts]
    if keep is not None:
        given = [PoolingParams() if params is None else params] if not isinstance(params, Sequence) else params
        changed = [_keeping(one, keep) for one in given]
        params = changed if isinstance(params, Sequence) else changed[0]
    return prompts, params


def _keeping(params: PoolingParams, keep: int) -> PoolingParams:
    changed = params.clone()
    changed.truncate_prompt_tokens = keep
    changed.__post_init__()  # checks it
    return changed
