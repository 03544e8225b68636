"""A model of one's own for vllm.  Tidal is a small decoder that exists to be replaced by yours."""


def register() -> None:
    """Say which architectures there are; vllm calls this in each of its processes.

    Texts keep this cheap: what they name is imported where the model is computed and nowhere else.  One definition is
    enough for a model.  Here are two of the same one, to choose from: data, and a module.
    """
    from vllm import ModelRegistry

    ModelRegistry.register_model("TidalForCausalLM", "tidal.family:tidal")
    ModelRegistry.register_model("TidalLayersForCausalLM", "tidal.layers:TidalLayersForCausalLM")
