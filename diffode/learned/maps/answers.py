"""Networks of one time as networks of two."""

from __future__ import annotations

from torch import Tensor, nn
from typing_extensions import override


class OneTime(nn.Module):
    """A network that is told where it is and not where it goes, as a velocity is: F(y, a, a) whatever b."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    @override
    def forward(self, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
        found: Tensor = self.net(y, a, a)
        return found
