r"""Linear layer of a fixed Lipschitz constant."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sklip.layers.checks import check_positive, check_positive_int
from sklip.layers.matmul import linear
from sklip.layers.orthogonal import OrthogonalLayer, orthogonal_init_

__all__ = ["ColumnWeightedLinear", "SpectralLinear"]


class SpectralLinear(OrthogonalLayer):
    r"""Linear map :math:`x \mapsto W x + b` with all singular values of W equal to k.

    .. math:: W W^T = k^2 I \text{ (out <= in)}, \qquad W^T W = k^2 I \text{ (out >= in)},

    so :math:`\|W\|_2 = k` and, for out >= in, the map keeps distances up to the factor k.

    Parameters
    ----------
    in_features, out_features : int
        Sizes of the last axis of the input and of the output.
    bias : bool, default=True
        Whether to add a learned vector b, zero at the start.
    k : float, default=1.0
        Lipschitz constant in L2.

    References
    ----------
    Anil, Lucas, Grosse (2019), Sorting out Lipschitz function approximation, arXiv 1811.05381.

    Examples
    --------
    >>> import torch
    >>> from sklip.layers import SpectralLinear
    >>> layer = SpectralLinear(5, 3, k=2.0)
    >>> torch.linalg.svdvals(layer.weight).detach().round(decimals=4)
    tensor([2., 2., 2.])
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, k: float = 1.0
    ) -> None:
        super().__init__()
        self.in_features = check_positive_int("in_features", in_features)
        self.out_features = check_positive_int("out_features", out_features)
        self.k = check_positive("k", k)
        self.raw = nn.Parameter(orthogonal_init_(torch.empty(out_features, in_features)))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    @property
    def weight(self) -> Tensor:
        """The matrix W in use, of shape (out_features, in_features)."""
        return self.raw if self.k == 1.0 else self.k * self.raw

    def orthogonal_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the raw matrix, shape (out_features, in_features)."""
        yield self.raw

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return linear(x, self.weight, self.bias)

    def to_torch(self) -> nn.Linear:
        """Return the plain ``nn.Linear`` that computes the same function."""
        # Without initial values: drawing them would move torch's global generator.
        plain: nn.Linear = nn.utils.skip_init(
            nn.Linear,
            self.in_features,
            self.out_features,
            bias=self.bias is not None,
            device=self.raw.device,
            dtype=self.raw.dtype,
        )
        with torch.no_grad():
            plain.weight.copy_(self.weight)
            if self.bias is not None:
                plain.bias.copy_(self.bias)
        return plain

    def extra_repr(self) -> str:
        """Show the constructor's arguments."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, k={self.k}"


class ColumnWeightedLinear(SpectralLinear):
    r"""Linear map :math:`x \mapsto W D x + b` with W orthogonal and D a diagonal of weights in [0, 1].

    .. math:: \|W D\|_2 \le k \max_c d_c \le k ,

    so a column that is noise can be weakened, which an orthogonal matrix alone can't do unless it is
    wide and the next one narrow. The weights are 1 at the start.

    Parameters
    ----------
    in_features, out_features : int
        Sizes of the last axis of the input and of the output.
    bias : bool, default=True
        Whether to add a learned vector b, zero at the start.
    k : float, default=1.0
        Bound on the Lipschitz constant in L2.

    Examples
    --------
    >>> import torch
    >>> from sklip.layers import ColumnWeightedLinear
    >>> layer = ColumnWeightedLinear(3, 3, bias=False)
    >>> with torch.no_grad():
    ...     _ = layer.column_weights.copy_(torch.tensor([1.0, 0.5, 0.0]))
    >>> torch.linalg.vector_norm(layer.weight, dim=0).detach().round(decimals=4)
    tensor([1.0000, 0.5000, 0.0000])
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, k: float = 1.0
    ) -> None:
        super().__init__(in_features, out_features, bias, k=k)
        self.column_weights = nn.Parameter(torch.ones(in_features))

    @property
    def weight(self) -> Tensor:
        """The matrix W D in use, of shape (out_features, in_features)."""
        return super().weight * self.column_weights.unsqueeze(-2)

    def interval_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the weights of the columns, shape (in_features,)."""
        yield self.column_weights
