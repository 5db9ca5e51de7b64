"""What vLLM loads in every process it starts (entry point `vllm.general_plugins`)."""


def register() -> None:
    """Make our weight receiver known by name. vLLM may call this more than once in a process."""
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    if "object_store" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine("object_store", "rlpost.rollout.receive", "ObjectStoreReceiver")
