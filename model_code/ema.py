"""Exponential moving average of a model's weights, by parameter name."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn


class EMA:
    """Averages that follow the weights: shadow <- d * shadow + (1 - d) * weight after every
    optimizer step.

    The decay of the n-th update (n = 1, 2, ...) is d = min(rate, (1 + n) / (10 + n)), so that early
    averages forget the random initialisation.
    """

    def __init__(self, model: nn.Module, rate: float) -> None:
        self.rate = rate
        self.num_updates = 0
        self.shadow = {
            name: weight.detach().float().clone() for name, weight in model.named_parameters()
        }

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Follow the weights of `model`, that of the constructor, by one step."""
        self.num_updates += 1
        decay = min(self.rate, (1 + self.num_updates) / (10 + self.num_updates))
        weights = [weight.float() for weight in model.parameters()]
        torch._foreach_lerp_(list(self.shadow.values()), weights, 1 - decay)

    @contextmanager
    def swapped_in(self, model: nn.Module) -> Iterator[None]:
        """Within the context `model` computes with the averages; afterwards its own weights are
        back, also after an error.
        """
        own = {name: weight.clone() for name, weight in model.state_dict().items()}
        model.load_state_dict(self.shadow)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def state_dict(self) -> dict[str, object]:
        """Averages by name and the number of updates behind them: plain data for a checkpoint."""
        return {"shadow": dict(self.shadow), "num_updates": self.num_updates}

    def load_state_dict(self, state: Mapping) -> None:
        """Take over a `state_dict`.

        Raises ValueError if its names or shapes are not this model's.
        """
        shapes = {name: average.shape for name, average in self.shadow.items()}
        if shapes != {name: average.shape for name, average in state["shadow"].items()}:
            raise ValueError("the averages belong to another architecture")
        for name, average in self.shadow.items():
            average.copy_(state["shadow"][name])
        self.num_updates = state["num_updates"]
