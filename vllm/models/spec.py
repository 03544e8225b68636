"""What a transformer is made of, as plain data.  A field is a number, a name or a choice; `build` turns it into modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from vllm.kv_cache.spec import BlockPattern
from vllm.layers.cross import Hearing
from vllm.layers.position_bias import Alibi, Buckets
from vllm.layers.rotary import Rope, Tempering
from vllm.models.spec_recurrent import (
    DeltaNetSpec,
    LightningSpec,
    LruSpec,
    Mamba2Spec,
    MambaSpec,
    NgramSpec,
    Scale,
    ShortConvSpec,
)
from vllm.ops.activations import Clamp

QkvLayout = Literal["split", "concat", "per_head", "per_group", "q_kv", "gate", "q_k"]
"""How a checkpoint stores q, k and v: three tensors; one, one after the other; one, head by head; one, the heads of a group,
then its k and v; q, and one of k and v head by head; three, and one of the gate; two,
of which k's is v's too."""
MlpLayout = Literal["split", "gate_up", "up_gate", "turns"]
"""How it stores a gate and what it is a gate of: two tensors; one, gate first; one, gate last; one, taking turns, row by row."""
ExpertLayout = Literal["each", "stacked", "transposed", "turns", "mxfp4", "flat", "apart"]
"""How it stores experts: each by itself, gate and up too; all in one tensor, [X, rows, width], gate above up; the same as [X,
width, rows]; the same with gate and up taking turns, row by row; rows that take turns, packed in MXFP4; gate,
up and down in three tensors, [X width, D]; the same, [X, width, D]."""


@dataclass(frozen=True, slots=True)
class PairsSpec:
    """Pairs of heads, of whose second one's result a share is taken from the first one's."""

    start: float
    """What the share would be if nothing were learned"""
    norm_eps: float
    """Of the norm behind"""


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """One layer's attention."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    rope: Rope | None = None
    window: int | None = None
    chunk: int | None = None
    """A token sees none before the last position that is a multiple of it."""
    chunks_before: int = 0
    """Or none before as many multiples before that"""
    blocks: BlockPattern | None = None
    """A head sees blocks of tokens, and not all of them."""
    tempering: Tempering | None = None
    causal: bool = True
    """A token sees only those before it; else all of its sequence, which is computed in one step then."""
    softcap: float = 0.0
    position_bias: Alibi | Buckets | None = None
    """What a score gets for the distance of query and key."""
    head_norm: Literal["", "head", "turned", "plain", "all"] = ""
    """q and k are normalised: each head by itself, before it is rotated or once it is, or without weights; or all heads of a token
    together."""
    own_norms: NormSpec | None = None
    """Each head of q and k has a norm of its own instead."""
    query_rank: int = 0
    """Queries are made of a product that is so narrow, and that is normalised; 0: they are made at once"""
    qkv_bias: bool = False
    k_bias: bool = True
    """Where q and v have one, k has one too."""
    out_bias: bool = False
    layout: QkvLayout = "split"
    gated: bool = False
    """The result is multiplied with a sigmoid of what q's matrix has behind each head."""
    gate_activation: Literal["sigmoid", "silu", "softplus"] = "sigmoid"
    """What it is multiplied with instead; the last one to the base of 2"""
    values: MoeSpec | None = None
    """v is made by experts of one product each, under the activation."""
    pairs: PairsSpec | None = None
    """Neighbouring heads are pairs, and their values are one's."""
    head_gated: bool = False
    """Each head's result is multiplied with a sigmoid of a number of its own."""
    clip: float | None = None
    """q, k and v are brought to between -clip and clip."""
    value_norm: bool = False
    """v's heads are normalised, without weights."""
    shares_cache_of: int | None = None
    """The layer whose keys and values it attends to; it has none of its own."""
    sinks: bool = False
    """Each head has a score, learned, to which nothing belongs."""


@dataclass(frozen=True, slots=True)
class LatentSpec:
    """One layer's attention by a latent that all heads share."""

    heads: int
    query_rank: int
    """Of the product that makes queries; 0: they are made at once"""
    latent: int
    plain: int
    """Of a query or key, the part without positions"""
    rotated: int
    """And the part with them"""
    value: int
    scale: float
    rope: Rope | None
    bias: bool = False
    """Of the products with x, and of the last"""
    norm_eps: float = 1e-6
    latent_scale: float = 1.0
    """What the normalised latent is multiplied with"""


@dataclass(frozen=True, slots=True)
class RecallSpec:
    """Attention to a layer's own tokens, and by the same queries to what an earlier layer keeps; each head weighs the two by a
    product with its query."""

    attention: AttentionSpec
    recalled: int
    """Which layer"""


@dataclass(frozen=True, slots=True)
class TogetherSpec:
    """Mixers of one layer that read the same, and whose results are added."""

    mixers: tuple[Mixer, ...]


Mixer = (
    AttentionSpec
    | RecallSpec
    | LatentSpec
    | MambaSpec
    | Mamba2Spec
    | ShortConvSpec
    | DeltaNetSpec
    | LruSpec
    | LightningSpec
    | TogetherSpec
)
"""How a layer's tokens learn of those before them."""


@dataclass(frozen=True, slots=True)
class MlpSpec:
    """A feed-forward network."""

    width: int
    activation: str
    gated: bool = True
    up_bias: bool = False
    """Of the gate too."""
    down_bias: bool = False
    layout: MlpLayout = "split"
    clamp: Clamp | None = None
    """Bounds of gate and up"""
    sparsity: float = 0.0
    """The share of gates that are cut off, were they distributed normally."""
    poly_eps: float | None = None
    """Gates are not activated but a sum of their first powers, each normalised, with learned weights; what is added to the mean squares"""


@dataclass(frozen=True, slots=True)
class MoeSpec:
    """A mixture of feed-forward networks."""

    num_experts: int
    top_k: int
    width: int
    activation: str
    renormalize: bool
    """The chosen experts' weights sum to 1."""
    shared_width: int = 0
    """Of a network that every token passes beside those it chooses; 0: there is none."""
    shared_gate: bool = False
    """That network's result is weighted, token by token, by a sigmoid."""
    scores: Literal["softmax", "sigmoid"] = "softmax"
    """What experts are weighed by"""
    corrected: bool = False
    """Something learned is added to the scores that experts are chosen by, and not to those they are weighed by."""
    groups: int = 1
    """Of experts, of which a token chooses `top_groups` before it chooses experts"""
    top_groups: int = 1
    group_best: int = 2
    """How many of a group's scores are added up to choose it by"""
    scale: float = 1.0
    """Of the chosen experts' weights"""
    gated: bool = True
    """Experts, and what every token passes, have gates."""
    latent: int = 0
    """What a token is narrowed to for its experts, whose sum is widened again; 0: it is not"""
    layout: ExpertLayout = "each"
    bias: bool = False
    """Of the experts"""
    router_bias: bool = False
    clamp: Clamp | None = None
    """Bounds of the experts' gate and up"""
    shared_clamp: Clamp | None = None
    """And of those of what every token passes"""
    jitter: float = 0.0
    """Above 0: experts are chosen one after another, each weighed by the softmax over those not chosen yet whose scores fall
    behind by less than twice this, in proportion (sparsemixer)."""
    guided: bool = False
    """Chosen by what comes into the branch, before its norm; each expert's weight is multiplied with a number of its own."""
    identities: int = 0
    """How many more there are to choose that do nothing: they give a token back"""
    weighs_input: bool = False
    """A token's weights are multiplied with what experts read, and not with what they make of it."""


@dataclass(frozen=True, slots=True)
class AssistantSpec:
    """A transformer block that several layers share: it reads hidden state and embedding, and the layer's mixer reads what it
    says beside the hidden state.  Its matrices have narrow ones beside them, which each use has for itself."""

    attention: AttentionSpec
    mlp: MlpSpec
    rank: int
    """Of the narrow matrices"""
    use: int
    """Which of all uses of such blocks this is"""
    place: str
    """What the names of the block's tensors have for {i}"""
    mixer_place: str
    """What those of the layer's mixer have"""
    adapts_attention: bool
    """There are narrow matrices beside q, k and v too."""


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One block."""

    mixer: Mixer | None
    """None in a block of nothing but a feed-forward, or that attends to pictures"""
    ffn: MlpSpec | MoeSpec | None
    block: Literal[
        "pre",
        "pre_ffn",
        "post",
        "after",
        "sandwich",
        "parallel",
        "parallel_one",
        "single",
        "ffn",
        "beside",
        "sandwich_beside",
        "assisted",
        "on_norm",
        "twice",
        "pre_cross",
        "post_cross",
        "pictures",
    ] = "pre"
    beside: MoeSpec | None = None
    """In a block of such a name: experts that read what the layer reads, or what its feed-forward reads.  In one that is two (twice),
    each with such a mixer and feed-forward: those that read what the first one's feed-forward reads, and are added at the end."""
    cross: AttentionSpec | None = None
    """In a block of such a name: attention to what an encoder made; of pictures, to what a tower did."""
    shares: tuple[float, float] | None = None
    """In a block on norms: what mixer and feed-forward are added to is multiplied with"""
    assistant: AssistantSpec | None = None
    """In a block that is assisted"""
    scaled: bool = False
    """The result is multiplied with a learned number."""
    normed: bool = False
    """The model's last norm stands behind it."""

    @property
    def attention(self) -> AttentionSpec:
        """The mixer of a layer that is known to be attention."""
        assert isinstance(self.mixer, AttentionSpec)
        return self.mixer


@dataclass(frozen=True, slots=True)
class NormSpec:
    """All norms of a model."""

    kind: Literal["rms", "layer"]
    eps: float
    offset: float = 0.0
    """Added to the weight."""
    groups: int = 1
    """Into how many parts, each normalised by itself, an rms norm cuts the model's width"""
    affine: bool = True
    """A layer norm has a weight, and a bias unless `bias` says otherwise."""
    bias: bool = True
    ending: str = "weight"
    """Of the names of rms norms' tensors"""


@dataclass(frozen=True, slots=True)
class PositionsSpec:
    """Position embeddings."""

    count: int
    offset: int = 0
    """The row of position 0."""
    waves: Literal["", "vaswani", "fairseq"] = ""
    """They are not learned but sines, then cosines, of frequencies from 1 down to 1 / 10000: exclusive, as the transformer's first paper
    has it, or inclusive."""


@dataclass(frozen=True, slots=True)
class PerLayerSpec:
    """Embeddings that tokens have for each layer."""

    vocab_size: int
    width: int
    """Of one layer's"""
    activation: str
    """Of what a layer weighs them by"""


@dataclass(frozen=True, slots=True)
class LanesSpec:
    """Hidden states of a token side by side, of which layers compute one.  https://arxiv.org/abs/2301.13310"""

    count: int
    active: int
    """Which one layers compute"""
    rank: int
    """Of the narrow product beside attention"""
    scaled: bool
    """What a layer's own embeddings are read by is scaled, element by element."""


@dataclass(frozen=True, slots=True)
class EntrySpec:
    """From token ids to the first hidden state."""

    vocab_size: int
    scale: float = 1.0
    scales_media: bool = False
    """So is what a tower makes, where the model sees or hears."""
    width: int | None = None
    """Of the embeddings, where it isn't the model's: tokens are projected alone (and back before the head that
    generates); with `norm` the normalised sum is."""
    positions: PositionsSpec | None = None
    token_types: int = 0
    """How many kinds of tokens there are embeddings for: which of a pair of texts one is of."""
    norm: bool = False
    """The sum of the embeddings is normalised."""
    per_layer: PerLayerSpec | None = None
    ngrams: NgramSpec | None = None
    hearing: Hearing | None = None
    """It has frames of sound in the place of tokens."""
    unwritten: int = 0
    """How many tokens more are read, which are never chosen; in a tensor of their own, where there is the role embed_unwritten"""


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """From the last hidden state to logits, where a model generates."""

    softcap: float = 0.0
    scale: float = 1.0
    """What logits are multiplied with."""
    bias: bool = False
    bias_name: str | None = None
    """The whole name of the bias where it isn't the matrix's with another end; of a table that serves as head too"""
    own_or_tied: bool = False
    """Checkpoints with and without a matrix of the head's own are around; without one it is the embedding's table."""
    unit: Literal["", "rows", "columns"] = ""
    """What of the matrix is brought to length 1"""
    never: tuple[int, ...] = ()
    """Tokens that are never chosen"""


@dataclass(frozen=True, slots=True)
class SkipSpec:
    """What comes into layer `source` is mixed into what comes into layer `target`, where its share of 1 is `share`."""

    source: int
    target: int
    share: float


@dataclass(frozen=True, slots=True)
class TransformerSpec:
    """A decoder or an encoder.

    `names` maps roles to the names of *checkpoint* tensors without their ending (.weight, .bias); {i} stands for the
    layer, {x} for the expert; of a layer that is two {i[0]} for it and {i[1]} for which.  Roles: embed, embed_unwritten (both with their endings then), positions, token_types, embed_norm, project_in, relative_bias, norm,
    project_out, head, of an entry that hears conv1 and conv2, and per layer q, k, v or qkv, o, q_norm, k_norm, cross_q, cross_k,
    cross_v, cross_o, norm_cross, recall, poly, xielu, value_router, value_expert and with its ending value_correction, pair_norm and with their endings pair_q1, pair_k1, pair_q2 and pair_k2, of pictures cross_q_norm, cross_k_norm and with their endings cross_gate and ffn_gate, norm1, norm1_after, norm2, norm2_after, attention_gate, sinks with its ending, norm_beside,
    gate, up or gate_up, down, router, expert_gate, expert_up, expert_down or with their endings experts_gate_up, experts_gate,
    experts_up, experts_down, correction, router_scale and expert_scales with their endings, shared_gate_up, shared_gate, shared_up,
    shared_down, shared_router, narrow, widen; of attention by a narrow query q_a_norm and q_b, of latent attention q_a too, kv_a, kv_a_norm, kv_b; of a recurrent
    layer enter or delta_q, delta_k and delta_v, enter_gate, control, beta, decay, decay_up, enter_gate_up, conv or conv_q, conv_k
    and conv_v, lru, select, spread, dt_norm, b_norm, c_norm, mixer_norm, leave, and with their endings a_log, skip, dt_bias; of
    n-grams ngram_embed and ngram_project, for each table {x}; of
    embeddings for each layer per_layer_embed, per_layer_project, per_layer_norm, and per layer per_layer_gate, per_layer_out,
    norm_per_layer; layer_scale with its ending; of lanes lane_in and lane_out for each {x} but the first, and per layer lane_norm,
    lane_router, lane_prediction, lane_correction, laurel_down, laurel_up, laurel_norm, lane_scale with its ending; of an
    assistant join, and for each of its uses {x} q_down, q_up, k_down, k_up,
    v_down, v_up, gate_up_down, gate_up_up.
    """

    entry: EntrySpec
    width: int
    layers: tuple[LayerSpec, ...]
    norm: NormSpec
    names: Mapping[str, str]
    tied: bool = True
    """The head that generates is the embedding's table."""
    final_norm: bool = True
    stored_layers: int | None = None
    """How many layers the checkpoint has, where there are more of them: a layer reads what one of the checkpoint does, whose number is
    what is left of its own by this.  They share matrices and norms."""
    head: HeadSpec = HeadSpec()
    branch_scale: float = 1.0
    """What the result of a block's branch is multiplied with before it is added."""
    scales: Mapping[str, Scale] = field(default_factory=dict)
    """Role → what its matrices are multiplied with: q, k, v, o, gate, up, down, leave"""
    norm_shifts: Mapping[str, float] = field(default_factory=dict)
    """Role → what the weights of its rms norms are less by in the checkpoint: norm, and those of blocks"""
    lanes: LanesSpec | None = None
    """With embeddings for each layer alone."""
    skips: tuple[SkipSpec, ...] = ()
    """Those with one target are mixed in one after another."""
    encoder: TransformerSpec | None = None
    """What reads a source, to whose result the layers' cross attention attends"""
    picture_states: int = 0
    """What a tower makes of a picture, where layers attend to that: so many hidden states"""
    transposed: bool = False
    """The checkpoint stores the layers' matrices as [in, out]."""
    base_prefix: str = "model."
    """What names lack in a checkpoint of the bare model, without its head."""
    ignored_names: tuple[str, ...] = ("*.rotary_emb.inv_freq",)
    """Shell-style patterns of checkpoint names that hold no weights of ours."""

    @property
    def is_causal(self) -> bool:
        """Whether no token sees one behind it."""
        return all(layer.mixer.causal for layer in self.layers if isinstance(layer.mixer, AttentionSpec))
