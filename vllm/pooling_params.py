"""How one request wants hidden states pooled (`PoolingParams`), how a model pools (`PoolerConfig`, `Pooling`), and what
its texts are like (`PooledTexts`).

    hidden states ── pooling ──▶ one vector, or one per token ── head ──▶ embedding, or logits of classes ── activation

Names of both eras of the interface are taken; what a field means is said once, here.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from vllm.errors import ConfigError, RequestError
from vllm.names import take_names

PoolingTask = Literal["embed", "classify", "token_embed", "token_classify"]
"""What comes out: a vector, probabilities of classes, or one of these for every token."""
TASKS: tuple[PoolingTask, ...] = ("embed", "classify", "token_embed", "token_classify")
PoolingType = Literal["CLS", "LAST", "MEAN", "MEAN_SQRT_LEN", "WEIGHTED_MEAN", "MAX", "ALL", "STEP"]
"""Which hidden states count: the first token's, the last one's, the mean of all (or their sum over the root of their number,
or a mean that gives later tokens more weight), the largest values, each, or those of step tags."""
POOLING_TYPES: tuple[PoolingType, ...] = get_args(PoolingType)


@take_names(
    {"late_interaction_params": (None,)},
    {"output_kind": "a pooled request has one output", "additional_data": "no model here reads it"},
)
@dataclass
class PoolingParams:
    """What one request wants of a pooling model.

    Raises RequestError, a ValueError, for a value out of range, and TypeError (a wrong type or name) on construction.
    """

    truncate_prompt_tokens: int | None = None
    """Keep only the first this many prompt tokens, or the last ones where the tokenizer truncates on the left; -1: as
    many as the context length allows."""
    dimensions: int | None = None
    """Length of the embedding, for models trained to be cut (matryoshka)."""
    normalize: bool | None = None
    """Scale embeddings to length 1; by default as the model says."""
    use_activation: bool | None = None
    """Apply the activation to logits (softmax or sigmoid), or scale embeddings to length 1; by default as the model says."""
    softmax: bool | None = None
    """An older name of `use_activation` for classes."""
    activation: bool | None = None
    """Another older name of `use_activation` for classes."""
    step_tag_id: int | None = None
    """Only hidden states of this token count."""
    returned_token_ids: list[int] | None = None
    """Only these columns of the logits are returned."""
    task: PoolingTask | None = None
    """What is wanted; by default what the model is for."""
    skip_reading_prefix_cache: bool | None = None
    """Compute the whole prompt anew; by default only where every token's hidden state is needed."""
    extra_kwargs: dict[str, Any] | None = None
    """Free-form values for user extensions; not read by the engine."""

    def __post_init__(self) -> None:
        for name in ("truncate_prompt_tokens", "dimensions", "step_tag_id"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise TypeError(f"{name} must be an integer, got {value!r}")
        for name in ("normalize", "use_activation", "softmax", "activation", "skip_reading_prefix_cache"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, bool):
                raise TypeError(f"{name} must be true or false, got {value!r}")
        if self.truncate_prompt_tokens is not None and self.truncate_prompt_tokens != -1:
            _at_least("truncate_prompt_tokens", self.truncate_prompt_tokens, 1, ", or -1 for the context length")
        if self.dimensions is not None:
            _at_least("dimensions", self.dimensions, 1)
        if self.step_tag_id is not None:
            _at_least("step_tag_id", self.step_tag_id, 0)
        if self.task is not None and self.task not in TASKS:
            raise RequestError(f"task must be one of {', '.join(TASKS)}, got {self.task!r}", "task")
        self._check_returned()

    def clone(self) -> PoolingParams:
        """Return a copy; containers are shared."""
        return PoolingParams(**{f.name: getattr(self, f.name) for f in fields(self)})

    @property
    def activates(self) -> bool | None:
        """`use_activation` under any of its names; None: as the model says."""
        names = (self.use_activation, self.softmax, self.activation, self.normalize)
        return next((value for value in names if value is not None), None)

    def _check_returned(self) -> None:
        ids = self.returned_token_ids
        if ids is None:
            return
        if not isinstance(ids, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
            raise TypeError(f"returned_token_ids must be a list of token ids, got {ids!r}")
        if not ids or min(ids) < 0:
            raise RequestError("returned_token_ids must hold at least one id, none below 0", "returned_token_ids")


@take_names({"logit_mean": (None,), "logit_sigma": (None,), "logit_bias": (None,)})
@dataclass
class PoolerConfig:
    """What the user says about how a model pools, where that shall differ from what the checkpoint says."""

    pooling_type: PoolingType | None = None
    seq_pooling_type: PoolingType | None = None
    """`pooling_type` of one result for the whole prompt."""
    tok_pooling_type: PoolingType | None = None
    """`pooling_type` of a result for each token."""
    normalize: bool | None = None
    """Scale embeddings to length 1."""
    softmax: bool | None = None
    """Apply the activation to logits of classes."""
    activation: bool | None = None
    use_activation: bool | None = None
    """Both of these under today's name."""
    dimensions: int | None = None
    """Length of embeddings where a request asks for none."""
    step_tag_id: int | None = None
    returned_token_ids: list[int] | None = None
    enable_chunked_processing: bool | None = None
    """Embed prompts that are longer than the context piece by piece, and average."""
    max_embed_len: int | None = None
    """Tokens of a prompt at most where it is embedded piece by piece."""

    def __post_init__(self) -> None:
        for name in ("pooling_type", "seq_pooling_type", "tok_pooling_type"):
            value = getattr(self, name)
            if value is not None and value not in POOLING_TYPES:
                raise ConfigError(f"pooler_config: {name}={value!r} is not one of {', '.join(POOLING_TYPES)}")

    @property
    def activates(self) -> bool | None:
        """`use_activation` under any of its names; None: as the model says."""
        names = (self.use_activation, self.softmax, self.activation)
        return next((value for value in names if value is not None), None)


@dataclass(frozen=True, slots=True)
class PooledTexts:
    """How texts are prepared for a model that pools, and how what came of two of them is compared."""

    prompts: tuple[tuple[str, str], ...] = ()
    """Texts that go before a prompt, by name (sentence-transformers)."""
    default_prompt: str | None = None
    similarity: Literal["cosine", "dot", "euclidean", "manhattan"] = "cosine"
    """How two embeddings are compared."""
    lower_case: bool = False
    """Texts are lowered before they are tokenized (sentence-transformers)."""
    num_token_types: int = 0
    """Texts of a pair that the model can tell apart by a type of their tokens; below 2 it can't."""
    max_embed_len: int | None = None
    """Longer prompts than the context are embedded piece by piece, up to this many tokens; None: they are refused."""


@dataclass(frozen=True, slots=True)
class Pooling:
    """How a model pools, with everything settled.  Made once, by `vllm.models.tasks`."""

    tasks: tuple[PoolingTask, ...]
    """What may be asked for; the first is what is given where nothing is."""
    pooling_type: PoolingType
    concatenated: tuple[PoolingType, ...] = ()
    """Further types whose vectors follow."""
    width: int = 0
    """Length of embeddings before they are cut."""
    normalize: bool = True
    """Embeddings have length 1."""
    activation: Literal["softmax", "sigmoid", "none"] = "softmax"
    """Turns logits of classes into what is returned."""
    num_labels: int = 0
    """Classes of the head; 0: it has none."""
    label_tokens: tuple[int, ...] = ()
    """Tokens whose rows of the vocabulary are the head."""
    label_difference: bool = False
    """There are two such tokens, and one class: what the second has more than the first."""
    dimensions: int | None = None
    matryoshka: bool | tuple[int, ...] = False
    """Whether embeddings may be cut, and to which lengths if not to any."""
    step_tag_id: int | None = None
    returned_token_ids: tuple[int, ...] | None = None
    texts: PooledTexts = PooledTexts()
    """What becomes of texts before their tokens are pooled, and of embeddings afterwards."""

    @property
    def is_cross_encoder(self) -> bool:
        """Whether it scores a pair of texts in one prompt."""
        return self.num_labels == 1 and "classify" in self.tasks

    def keeps_all(self, params: PoolingParams) -> bool:
        """Whether a request's result depends on hidden states of other tokens than its last one."""
        task = params.task or self.tasks[0]
        return {self.pooling_type, *self.concatenated} != {"LAST"} or task.startswith("token_")


def _at_least(name: str, value: int, least: int, otherwise: str = "") -> None:
    if value < least:
        raise RequestError(f"{name} must be at least {least}{otherwise}, got {value}", name)
