r"""The optimiser of the constrained matrices: momentum, orthogonalised.

Note [Orthogonalised steps]
---------------------------
A constrained matrix W has all singular values 1, and an Adam step moves its directions by very
different amounts: those along which gradients are small hardly turn at all, yet a certificate needs
every one of them. So the momentum is replaced by the orthogonal matrix next to it, as Muon does, and
all its directions turn by nearly the same small angle, whatever its size: the learning rate, for each
step.

The orthogonal matrix next to M is :math:`(M M^T)^{-1/2} M`. Its first factor comes from a few
iterations of a polynomial on the Gram matrix, whose first coefficient lifts small singular
values fast and which leaves them between 0.7 and 1.2: enough for a direction.

Note [Five products]
--------------------
For a wide layer only the products with as many terms as W has columns cost anything. Let V be the
momentum, looked ahead, :math:`A = V W^T`, S its symmetric part and :math:`K = W W^T`, which is I up to
rounding. With the tangent part of V, :math:`U = V - S W`,

.. math:: U U^T = V V^T - A S - S A^T + S K S, \qquad W U^T = A^T - K S .

So the orthogonalising factor T, the matrix :math:`W' W'^T` after the step :math:`W' = W - \eta T U`,
and from it the factor C that brings W' back to the constraint, all come from matrices as small as W
has rows. The result :math:`C W' = (C + \eta C T S) W - \eta C T V` takes two more products: five, where
projecting, orthogonalising and retracting one after another would take six. To save another one and
take K for I is unstable: where V is mostly normal, S W then takes away another normal part than V has,
and the error grows from step to step.

Note [Few turns]
----------------
A matrix that turns by a small angle after each step gets further than one that turns by four times the
angle after four, by the sum of their gradients: ten epochs of 45,000 images of CIFAR-10 give accuracy
0.685 and 0.541 certified at 36/255 on 5,000 others, every second step 0.671 and 0.536, every fourth
0.653 and 0.499. But to orthogonalise the momentum of a large matrix costs nearly as much as the whole
rest of a training step. It is the small ones that matter: where only the dense layer behind the
convolutions, 4,096 x 256, waits for four steps, the figures are 0.683 and 0.541 (one seed each; runs
that differ in rounding alone differ by up to 0.01). Of dense layers of 512 and 512 behind 128 channels
the second may wait as well (images moved, bfloat16): 0.695 and 0.560, at each step 0.694 and 0.558. On
hastie (1,500 x 10, five folds, three seeds), where all matrices are small, accuracy rises from 0.890 to
0.912 and the mean radius from 0.344 to 0.398.

Note [One batch]
----------------
Where all rows are one batch, training gets to where gradients
vanish. Whatever is left of them keeps its length in an orthogonalised step, and four iterations
lift its smallest directions, which are rounding, by :math:`3.4445^4 \approx 140` in each: after 100
steps two fits, one with weights and one with repeated rows, differed by 2e-6. With two iterations
they differ by 5e-13, and on tables of up to a thousand rows nothing is lost. With several batches
much is: MNIST (3 epochs of 15,000) 0.9656 and 1.01 instead of 0.9738 and 1.15. Such an epoch is one
step, at whose end all matrices turn; by a turn every second step, in the place of each, radii are
smaller by up to 2.5 % (iris, wine, blobs), every fourth by up to 17 % (breast_cancer).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from sklip.layers import OrthogonalLayer
from sklip.layers.checks import check_positive_int
from sklip.layers.matmul import plus_product, times, times_transposed
from sklip.layers.orthogonal import retraction_factor, two_newton_schulz_steps

__all__ = ["StiefelMuon"]

# A step of up to this angle leaves all squared singular values below 1.4.
_SHORT = 0.5
# Quintic of Jordan et al. (2024): made for a steep start, it lifts small singular values fast.
_A, _B, _C = 3.4445, -4.7750, 2.0315
# Share of the rate for parameters between 0 and 1, which have as far to go as a matrix has to turn.
_INTERVAL_SHARE = 1.3


class StiefelMuon(torch.optim.Optimizer):
    r"""Muon on the Stiefel manifold for constrained matrices, AdamW for all other parameters.

    A constrained matrix turns at each step, a large one once in `every` steps, by their summed
    gradients and as far: each of its directions by an angle of about `lr` for a step. So one rate suits
    all widths. The matrix has to be orthogonal at the start and is so after every turn.

    Parameters
    ----------
    module : torch.nn.Module
        Module whose parameters to train; those of :class:`sklip.layers.OrthogonalLayer` are the
        constrained ones, and those that it keeps between 0 and 1 are moved by Adam and cut off there.
    lr : float, default=0.03
        Angle, in radians, by which a constrained matrix turns for each step.
    momentum : float, default=0.9
        Nesterov momentum of the constrained matrices; what is left of it after a step.
    betas : (float, float), default=(0.9, 0.99)
        Adam's decay rates.
    every : int, default=4
        Steps from one turn of a large matrix to the next. See Note [Few turns].
    large : int, default=2**17
        A matrix of more entries is a large one.
    iterations : int, default=4
        Of the polynomial: directions whose gradients are down to 1/140 of the largest turn as far as
        the others, with 2 iterations down to 1/12. See Note [One batch].
    free_share : float, default=0.1
        Adam's rate for the free parameters, as a share of `lr`: biases are in the units of X,
        constrained matrices move by angles.
    weight_decay : float, default=0.0
        Decoupled weight decay, as AdamW's, of the free parameters: those that are neither constrained
        nor kept between 0 and 1. Of sklip's layers these are biases only, where it changes nothing
        (wine, breast_cancer, digits, 0 to 100: accuracy within 0.006, mean radius within 1 %); it is
        for plain layers of your own. It is in ``param_groups``, where a callback of skorch may set it.

    References
    ----------
    Jordan et al. (2024), Muon: an optimizer for hidden layers in neural networks. Bernstein (2025),
    Modular manifolds.

    Examples
    --------
    >>> import torch
    >>> from sklip.layers import SpectralLinear
    >>> from sklip.training import StiefelMuon
    >>> layer = SpectralLinear(4, 2)
    >>> before = layer.weight.detach().clone()
    >>> optimizer = StiefelMuon(layer, lr=0.1)
    >>> layer(torch.eye(4)).square().sum(0)[0].backward()
    >>> optimizer.step()
    >>> optimizer.finish()  # large matrices turn by what they have waited for
    >>> bool(torch.linalg.matrix_norm(layer.weight - before, ord=2) < 0.13)
    True
    """

    def __init__(
        self,
        module: nn.Module,
        lr: float = 0.03,
        momentum: float = 0.9,
        betas: tuple[float, float] = (0.9, 0.99),
        every: int = 4,
        large: int = 2**17,
        iterations: int = 4,
        free_share: float = 0.1,
        weight_decay: float = 0.0,
    ) -> None:
        if not 0 <= weight_decay < float("inf"):
            raise ValueError(f"weight_decay must be at least 0 and finite, got {weight_decay!r}.")
        if not 0 < free_share < float("inf"):
            raise ValueError(f"free_share must be positive and finite, got {free_share!r}.")
        check_positive_int("every", every)
        if not isinstance(large, Integral) or large < 0:
            raise ValueError(f"large must be an integer of at least 0, got {large!r}.")
        check_positive_int("iterations", iterations)
        constrained = [
            parameter
            for layer in module.modules()
            if isinstance(layer, OrthogonalLayer)
            for parameter in layer.orthogonal_parameters()
        ]
        bounded = [
            parameter
            for layer in module.modules()
            if isinstance(layer, OrthogonalLayer)
            for parameter in layer.interval_parameters()
        ]
        known = {id(parameter) for parameter in (*constrained, *bounded)}
        free = [parameter for parameter in module.parameters() if id(parameter) not in known]
        groups: list[dict[str, Any]] = [
            {"params": params, "kind": kind, "share": share, "lr": share * lr}
            for params, kind, share in (
                (constrained, "orthogonal", 1.0),
                (free, "free", free_share),
                (bounded, "interval", _INTERVAL_SHARE),
            )
        ]
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "every": every, "gathered": 0}
        defaults.update(large=large, iterations=iterations, weight_decay=weight_decay)
        super().__init__([group for group in groups if group["params"]], defaults)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move the free parameters and turn the small matrices, and where it is due the large ones.

        Parameters
        ----------
        closure : callable, default=None
            Function that computes the gradients anew and returns the loss.

        Returns
        -------
        loss : object
            What `closure` returned, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.advance()
        if self.count():
            self.turn(self.every)
        return loss

    @property
    def every(self) -> int:
        """Steps from one turn of a large matrix to the next."""
        return int(self.param_groups[0]["every"])

    @property
    def iterations(self) -> int:
        """Iterations of the polynomial that orthogonalises."""
        return int(self.param_groups[0]["iterations"])

    @iterations.setter
    def iterations(self, value: int) -> None:
        for group in self.param_groups:
            group["iterations"] = value

    @torch.inference_mode()
    def advance(self) -> None:
        """Do what each step does: all but the turns of large matrices, whose gradients are added up.

        With :meth:`count` and :meth:`turn` it is a step, but for the hooks of :meth:`step`.
        """
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    _UPDATES[group["kind"]](parameter, parameter.grad, self.state[parameter], group)

    def count(self) -> bool:
        """Count a step, and tell whether the large matrices are to turn."""
        group = self.param_groups[0]
        group["gathered"] = (group["gathered"] + 1) % self.every
        return not group["gathered"]

    def large_matrices(self) -> list[tuple[Tensor, dict[str, Any]]]:
        """Return the matrices that wait for their turn, each with its group."""
        return [
            (parameter, group)
            for group in self.param_groups
            for parameter in group["params"]
            if group["kind"] == "orthogonal" and _is_large(parameter, group)
        ]

    @torch.inference_mode()
    def turn(self, n_steps: int) -> None:
        """Turn the large matrices by what was gathered in the last `n_steps` steps."""
        for parameter, group in self.large_matrices():
            # One that was frozen since has momentum, but is not to move.
            if parameter in self.state and parameter.requires_grad:
                state = self.state[parameter]
                _turn_(parameter, state["sum"], state["momentum"], group, n_steps)
                state["sum"].zero_()

    def finish(self) -> None:
        """Turn by what was gathered since the last turn, if anything.

        To be called where training ends or pauses, so that no step is lost or left for later.
        """
        group = self.param_groups[0]
        if group["gathered"]:
            self.turn(group["gathered"])
            group["gathered"] = 0


def _is_large(parameter: Tensor, group: dict[str, Any]) -> bool:
    """Whether a matrix, or each of a batch of them, waits for its turn."""
    return bool(math.prod(parameter.shape[-2:]) > group["large"])


# What is made in inference mode could not be changed outside of it.
@torch.inference_mode(False)
def _zeros(like: Tensor) -> Tensor:
    return torch.zeros_like(like)


@torch.inference_mode(False)
def _one(like: Tensor) -> Tensor:
    return torch.ones((), dtype=like.dtype, device=like.device)


def _turn_or_gather_(
    parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]
) -> None:
    """Turn a small matrix, or add the gradient of a large one to those since its last turn."""
    is_large = _is_large(parameter, group)
    if not state:
        state["momentum"] = _zeros(gradient)
        if is_large:
            state["sum"] = _zeros(gradient)
    if is_large:
        state["sum"].add_(gradient)
    else:
        _turn_(parameter, gradient, state["momentum"], group, 1)


def _turn_(
    parameter: Tensor, gradient: Tensor, momentum: Tensor, group: dict[str, Any], n_steps: int
) -> None:
    """Turn a matrix, or a batch of them, by the orthogonalised momentum. See Note [Five products]."""
    left, rate = group["momentum"] ** n_steps, group["lr"] * n_steps
    momentum.mul_(left).add_(gradient)
    ahead = torch.add(gradient, momentum, alpha=left)
    # Only its direction counts, and its square must not overflow.
    size = ahead.abs().amax((-2, -1), keepdim=True)
    ahead /= size.clamp_(min=torch.finfo(size.dtype).tiny)
    wide = parameter.shape[-2] <= parameter.shape[-1]
    W, V = (parameter, ahead) if wide else (parameter.mT, ahead.mT)

    inner, product, gram = times_transposed(V, W), times_transposed(W, W), times_transposed(V, V)
    normal = (inner + inner.mT).mul_(0.5)
    normal_inner = normal @ product
    mixed = torch.sub(inner, normal_inner, alpha=0.5) @ normal
    # Rounding could leave negative eigenvalues where the normal part is most of V.
    tangent = _lifted((gram - mixed).sub_(mixed.mT), gram)
    # A tensor, since the square of a rate may overflow as a number of Python.
    step = rate * _inverse_root(tangent, group["iterations"])
    turned = step @ inner.sub_(normal_inner)
    moved = plus_product(product.sub_(turned).sub_(turned.mT), step @ tangent, step)
    is_short = isinstance(rate, float) and rate < _SHORT
    factor = two_newton_schulz_steps(moved) if is_short else retraction_factor(moved)
    step = factor @ step
    torch.sub(times(plus_product(factor, step, normal), W), times(step, V), out=W)


def _lifted(matrix: Tensor, scale: Tensor) -> Tensor:
    """Add to the diagonal of a symmetric matrix what rounding at the size of `scale` may have taken."""
    lift = torch.linalg.matrix_norm(scale, keepdim=True).mul_(8 * torch.finfo(matrix.dtype).eps)
    # The matrix of a gradient of zero must stay invertible, and its norm above zero.
    lift.clamp_(min=torch.finfo(matrix.dtype).eps ** 2)
    matrix.diagonal(dim1=-2, dim2=-1).add_(lift.squeeze(-1))
    return matrix


def _inverse_root(gram: Tensor, iterations: int) -> Tensor:
    """Factor F for which F M has singular values near 1, from M M^T."""
    # The Frobenius norm bounds the largest eigenvalue, so the iteration starts within [0, 1].
    size = torch.linalg.matrix_norm(gram, keepdim=True)
    gram = gram / size
    total: Tensor | None = None
    for remaining in reversed(range(iterations)):
        factor = plus_product(gram, gram, gram, beta=_B, alpha=_C)
        factor.diagonal(dim1=-2, dim2=-1).add_(_A)
        total = factor if total is None else factor @ total
        if remaining:
            gram = factor @ gram @ factor
    assert total is not None
    return total.mul_(size.rsqrt_())


def _adam_(parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    """Take a step of Adam."""
    if not state:
        state["mean"], state["square"] = _zeros(gradient), _zeros(gradient)
        # Tensors, so that a step that was recorded counts when it is replayed.
        state["mean_bias"], state["square_bias"] = _one(gradient), _one(gradient)
    beta1, beta2 = group["betas"]
    mean = state["mean"].lerp_(gradient, 1 - beta1)
    square = state["square"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    # Both means start at zero, so they are too small at first, by a known factor.
    mean = mean / (1 - state["mean_bias"].mul_(beta1))
    square = square / (1 - state["square_bias"].mul_(beta2))
    parameter.addcdiv_(mean.mul_(-group["lr"]), square.sqrt_().add_(1e-8))


def _decayed_adam_(
    parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]
) -> None:
    """Take a step of AdamW."""
    if group["weight_decay"]:
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
    _adam_(parameter, gradient, state, group)


def _adam_in_interval_(
    parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]
) -> None:
    """Take a step of Adam that ends between 0 and 1."""
    _adam_(parameter, gradient, state, group)
    parameter.clamp_(0.0, 1.0)


_UPDATES = {"orthogonal": _turn_or_gather_, "free": _decayed_adam_, "interval": _adam_in_interval_}
