"""What a model is made of, by count, from its network on the meta device: nothing of it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from rlpost.config import Config

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

Counted = TypeVar("Counted")


@dataclass(frozen=True)
class Shapes:
    """Numbers of parameters, and the network itself.

    Attributes:
        parameters: of the model, tied ones once, adapters among them.
        trained: of those that are trained.
        layer: of the largest layer, or of a tensor that is in none: what a weight update gathers at a time.
        widest: of the largest tensor that is trained.
        network: on the meta device; None where only the count is known.
    """

    parameters: int
    trained: int
    layer: int = 0
    widest: int = 0
    network: Any = None
    _counted: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    def once(self, key: Any, count: Callable[[], Counted]) -> Counted:
        """What `count` gives, asked once: passes over a network take seconds, and remedies are tried on one network."""
        if key not in self._counted:
            self._counted[key] = count()
        found: Counted = self._counted[key]
        return found

    def at_most(self, size: int) -> int:
        """Numbers in tensors of at most `size` of them: those that ZeRO-3 leaves whole on every rank."""
        if self.network is None:
            return 0
        return sum(p.numel() for p in self.network.parameters() if p.numel() <= size)


def shapes_of(config: Config, model: PretrainedConfig, where: str) -> Shapes:
    """The shapes of a model as the learner has it, with adapters.

    Args:
        where: the key and value that name it, for errors.

    Raises:
        ConfigError: no network can be built of its configuration.
    """
    from rlpost.learner.adapters import add_lora
    from rlpost.learner.model import DTYPES
    from rlpost.models.load import shaped

    network: Any = shaped(model, where, config.model.trust_remote_code).to(DTYPES[config.model.dtype]).train()
    if config.model.lora is not None:
        import torch

        with torch.device("meta"):
            add_lora(network, config.model.lora)
    trained = [p.numel() for p in network.parameters() if p.requires_grad]
    return Shapes(
        parameters=sum(p.numel() for p in network.parameters()),
        trained=sum(trained),
        layer=max(_by_layer(network).values()),
        widest=max(trained),
        network=network,
    )


def counted(config: Config) -> Shapes | None:
    """What `model.parameters` says, where nothing else is known of the model; None where it says nothing."""
    if config.model.parameters is None:
        return None
    count = int(config.model.parameters)
    return Shapes(count, int(0.02 * count) if config.model.lora else count)


def _by_layer(network: nn.Module) -> dict[str, int]:
    """Parameters by decoder layer; of a tensor that is in none by its own name."""
    found: dict[str, int] = {}
    for name, parameter in network.named_parameters():
        parts = name.split(".")
        index = next((i for i, part in enumerate(parts) if part.isdigit()), None)
        key = name if index is None else ".".join(parts[: index + 1])
        found[key] = found.get(key, 0) + parameter.numel()
    return found
