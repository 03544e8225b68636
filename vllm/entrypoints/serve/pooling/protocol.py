"""What the endpoints of models that pool take and give."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from vllm.entrypoints.serve.protocol import Count, Int, Messages, Positive, PromptTokensDetails
from vllm.entrypoints.serve.protocol import refusal as shared_refusal
from vllm.pooling_params import PoolingTask

Format = Literal["float", "base64", "bytes", "bytes_only"]
Dtype = Literal["float32", "float16", "bfloat16"]
Endianness = Literal["native", "little", "big"]
Side = Literal["left", "right"]
Document = str | dict[str, Any]
"""A text, an object with a "text", or one with "content": a text or parts with texts."""
Documents = Document | list[Document]
Vector = list[float]


class PooledRequest(Struct, kw_only=True):
    """The fields that all share."""

    model: str | None = None
    user: str | None = None
    priority: Int | None = None
    request_id: str | None = None
    truncate_prompt_tokens: Int | None = None
    """Keep so many tokens of each prompt; -1: as many as the context has."""
    truncation_side: Side | None = None
    """Where a prompt then loses tokens; by default where the model's tokenizer says."""
    add_special_tokens: bool | None = None
    cache_salt: str | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class PromptsRequest(PooledRequest, kw_only=True):
    """The fields of those that take prompts or a conversation."""

    input: str | list[str | int | list[int]] | None = None
    """A text, a list of token ids, or a list of these."""
    messages: Messages | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class EmbeddingRequest(PromptsRequest, kw_only=True):
    """POST /v1/embeddings."""

    dimensions: Positive | None = None
    encoding_format: Format | None = None
    embed_dtype: Dtype | None = None
    """The numbers that base64 and bytes hold."""
    endianness: Endianness | None = None
    normalize: bool | None = None
    use_activation: bool | None = None
    """The same as normalize."""
    prompt_name: str | None = None
    """Which of the model's own texts goes before each input; by default its default."""


class PoolingRequest(EmbeddingRequest, kw_only=True):
    """POST /pooling."""

    task: PoolingTask | None = None
    """By default what the model is for."""
    softmax: bool | None = None
    activation: bool | None = None


class ClassifyRequest(PromptsRequest, kw_only=True):
    """POST /classify."""

    use_activation: bool | None = None
    """False: give logits."""
    softmax: bool | None = None
    activation: bool | None = None


class ScoreRequest(PooledRequest, kw_only=True):
    """POST /score.  The two sides come under one of three pairs of names."""

    text_1: Documents | None = None
    text_2: Documents | None = None
    queries: Documents | None = None
    documents: Documents | None = None
    data_1: Documents | None = None
    data_2: Documents | None = None
    use_activation: bool | None = None
    softmax: bool | None = None
    activation: bool | None = None


class RerankRequest(PooledRequest, kw_only=True):
    """POST /rerank."""

    query: Document
    documents: list[Document]
    top_n: Count | None = None
    """How many of the best to return; 0: all."""
    return_documents: bool | None = None
    use_activation: bool | None = None
    softmax: bool | None = None
    activation: bool | None = None


class EmbedRequest(Struct, kw_only=True):
    """POST /v2/embed, as Cohere has it."""

    texts: list[str]
    model: str | None = None
    input_type: str | None = None
    """search_document, search_query, classification, clustering, or the name of one of the model's own prompts."""
    embedding_types: list[Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]] | None = None
    truncate: Literal["NONE", "START", "END"] | None = None
    """Where texts that are too long lose tokens; by default at the end."""
    output_dimension: Positive | None = None
    priority: Int | None = None


class PooledUsage(Struct):
    """Tokens that a request took."""

    prompt_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | UnsetType = UNSET


class Embedding(Struct):
    index: int
    object: Literal["embedding"]
    embedding: Vector | str


class Embeddings(Struct):
    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Embedding]
    usage: PooledUsage


class PooledData(Struct):
    index: int
    object: Literal["pooling"]
    data: list[Vector | float] | str


class PooledList(Struct):
    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[PooledData]
    usage: PooledUsage


class Classes(Struct):
    index: int
    label: str | None
    probs: Vector
    num_classes: int


class ClassesList(Struct):
    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Classes]
    usage: PooledUsage


class Score(Struct):
    index: int
    object: Literal["score"]
    score: float


class Scores(Struct):
    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Score]
    usage: PooledUsage


class RankedDocument(Struct):
    text: str


class Ranked(Struct):
    index: int
    relevance_score: float
    document: RankedDocument | UnsetType = UNSET


class SearchUnits(Struct):
    search_units: int


class InputTokens(Struct):
    input_tokens: int


class RankMeta(Struct):
    """What Cohere's clients look at."""

    billed_units: SearchUnits
    tokens: InputTokens


class Ranking(Struct):
    id: str
    model: str
    usage: PooledUsage
    meta: RankMeta
    results: list[Ranked]
    """Best first."""


class ApiVersion(Struct):
    version: str


class EmbedMeta(Struct):
    api_version: ApiVersion
    billed_units: InputTokens


class EmbeddingsByType(Struct):
    id: str
    embeddings: dict[str, list[Vector | str]]
    texts: list[str]
    meta: EmbedMeta
    response_type: Literal["embeddings_by_type"] = "embeddings_by_type"


_TEXT_ONLY = "the model takes text only"
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "images": (([],), _TEXT_ONLY),
    "inputs": (([],), f"{_TEXT_ONLY}; give texts"),
    "image": ((), _TEXT_ONLY),
    "data": ((), "there are no processors of other data; give input or messages"),
    "max_tokens_per_doc": ((), "documents can't be cut one by one; truncate_prompt_tokens cuts query and document"),
    "max_chunks_per_doc": ((), "documents are not cut into chunks; send smaller ones"),
    "rank_fields": (([], ["text"]), "a document is its text"),
    "late_chunking": ((False,), "each input is embedded by itself"),
}


def refusal(name: str, value: Any) -> str | None:
    """Return why a field can't be served, "" if it may be ignored, None if nobody knows it."""
    if name not in _REFUSED:
        return shared_refusal(name, value)
    harmless, reason = _REFUSED[name]
    return "" if value is None or value in harmless else reason
