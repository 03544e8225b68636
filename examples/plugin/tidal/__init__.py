"""A model of one's own for vllm.  Tidal is a small decoder that exists to be replaced by yours."""


def register() -> None:
    """Say which architectures there are; vllm calls this in each of its processes.

    Texts keep this cheap: what they name is imported where the model is computed and nowhere else.  One definition is
    enough for a model.  Here are two of the same one, to choose from: data, and a module.
    """
    from vllm import ModelRegistry
    from vllm.models.media.spec import MediaSpec

    ModelRegistry.register_model("TidalForCausalLM", "tidal.family:tidal")
    ModelRegistry.register_model("TidalLayersForCausalLM", "tidal.layers:TidalLayersForCausalLM")
    ModelRegistry.register_model("TidalWithSight", "tidal.family:tidal")
    ModelRegistry.register_media(
        "TidalWithSight", MediaSpec(processor="tidal.sight:Processor", tower="tidal.sight:Eye")
    )
