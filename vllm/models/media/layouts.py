"""Checkpoints that have their own names for what is a tower of transformers: their tensors, under transformers' names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from torch import Tensor

_INTERNVL: Mapping[str, str] = {
    "vision_model.embeddings.class_embedding": "model.vision_tower.embeddings.cls_token",
    "vision_model.embeddings.position_embedding": "model.vision_tower.embeddings.position_embeddings",
    "vision_model.embeddings.patch_embedding.": "model.vision_tower.embeddings.patch_embeddings.projection.",
    "vision_model.encoder.layers.": "model.vision_tower.encoder.layer.",
    "mlp1.0.": "model.multi_modal_projector.layer_norm.",
    "mlp1.1.": "model.multi_modal_projector.linear_1.",
    "mlp1.3.": "model.multi_modal_projector.linear_2.",
}
_INTERNVL_LAYER: Mapping[str, str] = {
    ".attn.proj.": ".attention.projection_layer.",
    ".attn.q_norm.": ".attention.q_norm.",
    ".attn.k_norm.": ".attention.k_norm.",
    ".norm1.": ".layernorm_before.",
    ".norm2.": ".layernorm_after.",
    ".ls1": ".lambda_1",
    ".ls2": ".lambda_2",
}


def internvl_chat(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """InternVL as it was published: q, k and v of a layer are one tensor, one after the other."""
    for name, tensor in tensors:
        begin = next((begin for begin in _INTERNVL if name.startswith(begin)), None)
        if begin is None:
            continue
        name = _INTERNVL[begin] + name.removeprefix(begin)
        for theirs, ours in _INTERNVL_LAYER.items():
            name = name.replace(theirs, ours)
        before, is_qkv, after = name.partition(".attn.qkv.")
        if not is_qkv:
            yield name, tensor
            continue
        for part, each in zip("qkv", tensor.chunk(3), strict=True):
            yield f"{before}.attention.{part}_proj.{after}", each


def nvlm_d(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """NVLM-D: InternVL's encoder, and a projector under its published names."""
    for name, tensor in tensors:
        if name.startswith("mlp1."):
            yield f"tower.{name}", tensor
        else:
            yield from (
                ("tower." + name.removeprefix("model."), part) for name, part in internvl_chat([(name, tensor)])
            )


_TIMM: Mapping[str, str] = {
    "patch_embed.proj.": "embeddings.patch_embedding.",
    "blocks.": "encoder.layers.",
    "norm.": "post_layernorm.",
}
_TIMM_LAYER: Mapping[str, str] = {
    ".norm1.": ".layer_norm1.",
    ".norm2.": ".layer_norm2.",
    ".attn.proj.": ".self_attn.out_proj.",
}


def deepseek_vl_v2(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """DeepSeek-VL2: siglip under timm's names."""
    for name, tensor in tensors:
        begin, _, rest = name.partition(".")
        if begin != "vision":
            yield f"tower.{name}", tensor
        elif rest == "pos_embed":
            yield "tower.vision.embeddings.position_embedding.weight", tensor[0]
        else:
            yield from (("tower.vision." + each, part) for each, part in _timm(rest, tensor))


def _timm(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield a tensor of timm's vision transformer under transformers' names."""
    begin = next((begin for begin in _TIMM if name.startswith(begin)), "")
    name = _TIMM.get(begin, "") + name.removeprefix(begin)
    for theirs, ours in _TIMM_LAYER.items():
        name = name.replace(theirs, ours)
    before, is_qkv, after = name.partition(".attn.qkv.")
    if not is_qkv:
        yield name, tensor
        return
    yield from (
        (f"{before}.self_attn.{part}_proj.{after}", each) for part, each in zip("qkv", tensor.chunk(3), strict=True)
    )


_MOLMO: Mapping[str, str] = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "patch_embedding.": "embeddings.patch_embedding.",
    "pre_ln.": "pre_layrnorm.",
    "transformer.resblocks.": "encoder.layers.",
}
_MOLMO_LAYER: Mapping[str, str] = {
    ".attention_norm.": ".layer_norm1.",
    ".ffn_norm.": ".layer_norm2.",
    ".attention.wq.": ".self_attn.q_proj.",
    ".attention.wk.": ".self_attn.k_proj.",
    ".attention.wv.": ".self_attn.v_proj.",
    ".attention.wo.": ".self_attn.out_proj.",
    ".feed_forward.w1.": ".mlp.fc1.",
    ".feed_forward.w2.": ".mlp.fc2.",
}


def molmo(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Molmo: clip under names of its own, in which a patch is embedded pixel by pixel."""
    for name, tensor in tensors:
        if name == "model.transformer.wte.new_embedding":
            yield "tower.new_embedding", tensor
        if not name.startswith("model.vision_backbone."):
            continue
        name = name.removeprefix("model.vision_backbone.")
        if name.startswith("image_vit."):
            name, tensor = _molmo_clip(name.removeprefix("image_vit."), tensor)
        yield f"tower.{name}", tensor


def _molmo_clip(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    if name == "patch_embedding.weight":  # [E, P · P · 3] -> [E, 3, P, P]
        side = round((tensor.shape[1] / 3) ** 0.5)
        tensor = tensor.unflatten(1, (side, side, 3)).permute(0, 3, 1, 2)
    begin = next((begin for begin in _MOLMO if name.startswith(begin)), "")
    name = _MOLMO.get(begin, "") + name.removeprefix(begin)
    for theirs, ours in _MOLMO_LAYER.items():
        name = name.replace(theirs, ours)
    return f"image_vit.{name}", tensor


def _by_prefix(names: Mapping[str, str]) -> Callable[[Iterable[tuple[str, Tensor]]], Iterator[tuple[str, Tensor]]]:
    """Return the layout of a checkpoint whose tensors are called as the tower's but for how their names begin."""

    def layout(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors:
            begin = next((begin for begin in names if name.startswith(begin)), None)
            if begin is not None:
                yield names[begin] + name.removeprefix(begin), tensor

    return layout


glm_4v = _by_prefix({"transformer.vision.": "tower."})
minicpm_o = _by_prefix({name: f"tower.{name}" for name in ("vpm.", "resampler.", "apm.", "audio_projection_layer.")})
minicpm_v = _by_prefix({"vpm.": "tower.vpm.", "resampler.": "tower.resampler."})
phi3_v = _by_prefix(
    {
        "model.vision_embed_tokens.img_processor.vision_model.": "tower.img_processor.",
        "model.vision_embed_tokens.": "tower.",
    }
)
qwen_vl = _by_prefix({"transformer.visual.": "tower."})
ultravox = _by_prefix(
    {
        "audio_tower.": "tower.audio_tower.",
        "model.encoder.": "tower.audio_tower.",  # in whisper's own repository
        "multi_modal_projector.": "tower.multi_modal_projector.",
    }
)
