r"""Convolutions of a fixed Lipschitz constant."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from sklip.layers.bcop import composed
from sklip.layers.checks import check_positive, check_positive_int, pair
from sklip.layers.orthogonal import OrthogonalLayer, orthogonal_init_

__all__ = ["OrthogonalConv2d", "SpectralConv2d"]

_PADDING_MODES = ("zeros", "circular")


class _Convolution(OrthogonalLayer):
    """What the two convolutions share: geometry, forward pass, export."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int],
        padding: int | tuple[int, int] | None,
        bias: bool,
        padding_mode: str,
        k: float,
    ) -> None:
        super().__init__()
        self.in_channels = check_positive_int("in_channels", in_channels)
        self.out_channels = check_positive_int("out_channels", out_channels)
        self.kernel_size = pair("kernel_size", kernel_size)
        self.stride = pair("stride", stride)
        if padding is None:
            padding = ((self.kernel_size[0] - 1) // 2, (self.kernel_size[1] - 1) // 2)
        self.padding = pair("padding", padding, minimum=0)
        if padding_mode not in _PADDING_MODES:
            raise ValueError(f"padding_mode must be one of {_PADDING_MODES}, got {padding_mode!r}.")
        # More wrapping than this reads some pixels more often than the kernel has taps.
        if padding_mode == "circular" and any(
            2 * p > size - 1 for p, size in zip(self.padding, self.kernel_size, strict=True)
        ):
            raise ValueError(
                "padding must be at most (kernel_size - 1) / 2 with padding_mode='circular', "
                f"got {self.padding} for kernel_size {self.kernel_size}."
            )
        self.padding_mode = padding_mode
        self.k = check_positive("k", k)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    @property
    def weight(self) -> Tensor:
        """The kernel in use, shape (out_channels, in_channels, height, width)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, in_channels, H, W) to (n, out_channels, H', W')."""
        if self.padding_mode == "circular":
            if any(side % step for side, step in zip(x.shape[2:], self.stride, strict=True)):
                # The last patch would overlap the first by more than the stride allows for.
                raise ValueError(
                    f"height and width must be multiples of stride={self.stride} with circular "
                    f"padding, got an input of shape {tuple(x.shape)}."
                )
            height, width = self.padding
            x = functional.pad(x, (width, width, height, height), mode="circular")
            return functional.conv2d(x, self.weight, self.bias, self.stride)
        return functional.conv2d(x, self.weight, self.bias, self.stride, self.padding)

    def to_torch(self) -> nn.Conv2d:
        """Return the plain ``nn.Conv2d`` that computes the same function."""
        with torch.no_grad():
            weight = self.weight
            # Without initial values: drawing them would move torch's global generator.
            plain: nn.Conv2d = nn.utils.skip_init(
                nn.Conv2d,
                self.in_channels,
                self.out_channels,
                self.kernel_size,
                stride=self.stride,
                padding=self.padding,
                bias=self.bias is not None,
                padding_mode=self.padding_mode,
                device=weight.device,
                dtype=weight.dtype,
            )
            plain.weight.copy_(weight)
            if self.bias is not None and plain.bias is not None:
                plain.bias.copy_(self.bias)
        return plain

    def extra_repr(self) -> str:
        """Show the constructor's arguments."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, bias={self.bias is not None}, "
            f"padding_mode={self.padding_mode!r}, k={self.k}"
        )


class SpectralConv2d(_Convolution):
    r"""Convolution with :math:`\|\mathrm{conv}\|_2 \le k` by an orthogonal reshaped kernel.

    The kernel reshaped to (out, in * kh * kw) is semi-orthogonal, times

    .. math:: k / \sqrt{\lceil k_h / s_h \rceil \lceil k_w / s_w \rceil} ,

    because a pixel lies in at most that many patches under the root. This is the layer of the
    deel-lip tutorial with the sound constant. It is k times an isometry where out >= in * kh * kw
    at stride 1 with circular padding (a first layer on grey images), or where stride equals kernel
    size; otherwise it loses much of its norm and :class:`OrthogonalConv2d` is the better layer.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size : int or (int, int)
    stride : int or (int, int), default=1
    padding : int or (int, int), default=None
        Pixels added on each side; None is ``(kernel_size - 1) // 2``, which keeps the size of the
        map for an odd kernel at stride 1.
    bias : bool, default=True
    padding_mode : {"zeros", "circular"}, default="zeros"
    k : float, default=1.0
        Lipschitz constant in L2.

    References
    ----------
    Serrurier et al. (2021), Achieving robustness in classification using optimal transport with
    hinge regularization, arXiv 2006.06520.

    Examples
    --------
    >>> import torch
    >>> from sklip.layers import SpectralConv2d
    >>> layer = SpectralConv2d(1, 16, 3)
    >>> layer(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 16, 8, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | None = None,
        bias: bool = True,
        *,
        padding_mode: str = "zeros",
        k: float = 1.0,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias, padding_mode, k)
        taps = math.prod(self.kernel_size)
        self.raw = nn.Parameter(orthogonal_init_(torch.empty(out_channels, in_channels * taps)))
        self._overlaps = math.prod(
            math.ceil(size / step) for size, step in zip(self.kernel_size, self.stride, strict=True)
        )

    @property
    def weight(self) -> Tensor:
        """The kernel in use, shape (out_channels, in_channels, height, width)."""
        shape = (self.out_channels, self.in_channels, *self.kernel_size)
        return (self.k / math.sqrt(self._overlaps) * self.raw).view(shape)

    def orthogonal_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the reshaped kernel, shape (out, in * kh * kw)."""
        yield self.raw


class OrthogonalConv2d(_Convolution):
    r"""Convolution that is k times an orthogonal map: :math:`K^* K = k^2 I` or :math:`K K^* = k^2 I`.

    For an orthogonal projector :math:`P = R^T R` the two-tap filter :math:`[P, I - P]` is an
    orthogonal convolution, since :math:`P + e^{i\theta} (I - P)` is unitary. Such filters along
    the two axes in turn, then a semi-orthogonal matrix on patches of stride x stride pixels, give a
    kernel of any size (BCOP; with a stride, AOC). With circular padding that keeps the map's size
    (kernel_size - stride even) and out_channels a multiple of the stride's area, or no more than
    in_channels times that area, all min(in, out) singular values are k. Zero padding keeps the norm at
    most k and loses the isometry at the border.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size : int or (int, int)
        At least the stride, per axis.
    stride : int or (int, int), default=1
    padding : int or (int, int), default=None
        Pixels added on each side; None is ``(kernel_size - 1) // 2``.
    bias : bool, default=True
    padding_mode : {"zeros", "circular"}, default="zeros"
    k : float, default=1.0
        Lipschitz constant in L2.

    References
    ----------
    Li et al. (2019), Preventing gradient attenuation in Lipschitz constrained convolutional
    networks, arXiv 1911.00937 (BCOP). Boissin et al. (2025), An adaptive orthogonal convolution
    scheme, arXiv 2501.07930 (AOC).

    Examples
    --------
    >>> import torch
    >>> from sklip.layers import OrthogonalConv2d
    >>> layer = OrthogonalConv2d(4, 16, 3, stride=2, padding_mode="circular")
    >>> x = torch.randn(1, 4, 8, 8)
    >>> bool(torch.isclose(layer(x).norm(), x.norm()))
    True
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | None = None,
        bias: bool = True,
        *,
        padding_mode: str = "zeros",
        k: float = 1.0,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias, padding_mode, k)
        extra_taps = [size - step for size, step in zip(self.kernel_size, self.stride, strict=True)]
        if min(extra_taps) < 0:
            raise ValueError(
                f"kernel_size must be at least stride={self.stride} for an orthogonal convolution, "
                f"got {self.kernel_size}; raise kernel_size or lower stride."
            )
        patch = math.prod(self.stride)
        # With fewer channels than the output needs, the input is embedded in a wider space first:
        # the filters mix more channels and the last matrix can still be square.
        self._inner_channels = max(in_channels, math.ceil(out_channels / patch))
        # Filters alternate between the axes as long as both have taps left to add.
        shorter = min(extra_taps)
        self._axes = [0, 1] * shorter + [0] * (extra_taps[0] - shorter)
        self._axes += [1] * (extra_taps[1] - shorter)
        rank = self._inner_channels // 2
        self.projectors = nn.Parameter(
            orthogonal_init_(torch.empty(len(self._axes), rank, self._inner_channels))
        )
        self.mixing = nn.Parameter(
            orthogonal_init_(torch.empty(out_channels, self._inner_channels * patch))
        )

    @property
    def weight(self) -> Tensor:
        """The kernel in use, shape (out_channels, in_channels, height, width)."""
        # Kernels are held as (height, width, out, inner) here: composing with a filter on the
        # input side is then one product of matrices for all taps at once.
        kernel = self.mixing.view(self.out_channels, self._inner_channels, *self.stride)
        kernel = composed(kernel.permute(2, 3, 0, 1), self.projectors, self._axes)
        kernel = kernel[..., : self.in_channels].permute(2, 3, 0, 1)
        return kernel if self.k == 1.0 else self.k * kernel

    def orthogonal_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the projectors' bases, shape (n, rank, inner), and the patch matrix."""
        if self.projectors.numel():
            yield self.projectors
        yield self.mixing
