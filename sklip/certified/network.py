r"""CertifiedNetwork: a finished network, with what is proven of it and the arithmetic it holds for."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from sklip.certified.arithmetic import Affine, Arithmetic, floored_product
from sklip.certified.decisions import Decisions, decide
from sklip.certified.direct_sums import flat_chain
from sklip.certified.gains import Gains
from sklip.certified.integrity import (
    digest,
    digest_of_array,
    refuse_altered,
    refuse_hidden_state,
    refuse_subnormal,
    without_subnormal_,
)
from sklip.certified.maps import exact, product_upper
from sklip.certified.margins import MarginErrors, MarginGains, margin_bounds
from sklip.certified.radii import Budget, certified_radii
from sklip.certified.rules import described_chain
from sklip.certified.seals import opened, sealed
from sklip.certified.state import network_from_state, network_state
from sklip.rows import VALUES_AT_ONCE, as_numpy, joined, row_pieces

__all__ = ["CertifiedNetwork"]

# The part of a margin that rounding may take before float64 is asked for its radius.
_NEGLIGIBLE = 0.01
# Logits, errors, margins and what is set aside of them are in memory at the same time.
_NUMBERS_AN_OUTPUT = 16


class CertifiedNetwork:
    r"""A finished network, proven: for each row x it gives a class, and a radius r in which that holds.

    For every x' with :math:`\|x' - x\|_2 < r` the class of x' is that of x: the class computed here in
    floating point, and that of the exact function of the stored weights. Nothing rests on how the
    network was trained: constants are proven from its weights, in float64, and so are bounds on the
    rounding of each evaluation. The class is that of the exact function unless two classes are closer
    than float64 can tell, where the radius is 0; float32 decides where that is proven to come to the
    same (see :mod:`sklip.certified.decisions`).

    Made by :meth:`prove`, or by :meth:`from_state`, which proves anew.

    Parameters
    ----------
    network : torch.nn.Module
        Plain layers (see :func:`sklip.layers.to_torch`) in evaluation mode and in the precision of
        `arithmetic`. It is kept, not copied; :meth:`prove` copies.
    input_shape : tuple of int
        Shape of one sample.
    arithmetic : Arithmetic
        Precision and blocks in which the network is evaluated.

    Attributes
    ----------
    network : torch.nn.Module
    input_shape : tuple of int
    arithmetic : Arithmetic
    n_outputs : int
        Number of logits; with one, its sign decides.
    lipschitz_bound : float
        Proven L2 Lipschitz constant from a sample to the logits.
    margin_bounds : ndarray of shape (n_outputs, n_outputs)
        Proven Lipschitz constants of the differences of two logits; of the logit if there is one.
    precisions : tuple of MarginErrors
        Bounds on the rounding of differences of logits: in `arithmetic`, and in float64 if that is
        another.

    References
    ----------
    Singla, Singla, Feizi (2022), Improved deterministic l2 robustness on CIFAR-10 and CIFAR-100, arXiv
    2108.04062 (constants of differences). Jin et al. (2022), Getting a-round guarantees, arXiv
    2205.10159.

    Examples
    --------
    >>> import torch
    >>> from sklip import CertifiedNetwork
    >>> network = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False))
    >>> with torch.no_grad():
    ...     _ = network[0].weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 3.0]]))
    >>> certified = CertifiedNetwork.prove(network, (2,))
    >>> codes, radii = certified.predict_with_radii([[1.0, 0.0]])
    >>> int(codes[0]), round(float(radii[0]), 4)
    (0, 0.7071)
    """

    def __init__(self, network: nn.Module, input_shape: Sequence[int], arithmetic: Arithmetic) -> None:
        Arithmetic.of_networks(arithmetic.dtype)  # refuses any other precision
        for module in network.modules():
            refuse_altered(module)
            refuse_hidden_state(module)
        refuse_subnormal(network)
        _refuse_other_precision(network, arithmetic.dtype)
        self.network = network
        self.input_shape = tuple(int(side) for side in input_shape)
        self.arithmetic = arithmetic
        chain = flat_chain(network)
        bounds, shape = described_chain(chain, self.input_shape)
        if shape is None or len(shape) != 1:
            raise ValueError(
                f"network must give one row of logits for a sample of shape {self.input_shape}, got "
                f"outputs of shape {shape}; add torch.nn.Flatten."
            )
        (self.n_outputs,) = shape
        # The exact side of the layers; of their rounding, `precisions` has what is needed.
        self._maps = tuple(replace(bound, rounding=exact, matrix=None) for bound in bounds)
        constants = [bound.constant for bound in bounds]
        self.lipschitz_bound = product_upper(constants)
        self.margin_bounds = margin_bounds(chain, constants, self.n_outputs)
        self.margin_bounds.flags.writeable = False
        precisions = [arithmetic]
        if arithmetic.dtype != "float64":
            precisions.append(Arithmetic.of_networks("float64"))
        self.precisions = tuple(
            MarginErrors(chain, bounds, self.n_outputs, precision, self.input_shape)
            for precision in precisions
        )
        self._fingerprint = self._current_fingerprint()

    @classmethod
    def prove(cls, network: nn.Module, input_shape: Sequence[int], dtype: str = "float32") -> Self:
        """Prove a finished plain network, of whatever origin.

        Parameters
        ----------
        network : torch.nn.Module
            A ``torch.nn.Sequential`` of plain layers, or one layer; a copy in evaluation mode is kept.
        input_shape : sequence of int
            Shape of one sample, without the batch.
        dtype : {"float32", "float64"}, default="float32"
            Precision in which the network will be evaluated. Its weights are brought to it, subnormal
            ones to 0, and the certificates are about those.

        Returns
        -------
        certified : CertifiedNetwork

        Raises
        ------
        TypeError
            For a layer without a proven rule, with hooks, or with a replaced method.
        ValueError
            For weights that are not finite.
        """
        arithmetic = Arithmetic.of_networks(dtype)
        for module in network.modules():
            refuse_altered(module)  # before anything of it is called
        copied = copy.deepcopy(network).to(getattr(torch, dtype)).eval().requires_grad_(False)
        return cls(without_subnormal_(copied), input_shape, arithmetic)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(input_shape={self.input_shape}, n_outputs={self.n_outputs}, "
            f"dtype={self.arithmetic.dtype!r}, lipschitz_bound={self.lipschitz_bound:.7g})"
        )

    # -- evaluation --------------------------------------------------------------------------

    def logits(self, X: ArrayLike | Tensor) -> NDArray[np.floating[Any]]:
        r"""Return the logits, evaluated by direct sums in batches of bounded size.

        Their largest is the predicted class: where only float64 can tell it, these are the logits of
        float64, rounded so that none moves past another.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, \*input_shape), or of flat rows
            Of any type; it may be a file mapped into memory, of which a piece at a time is read.

        Returns
        -------
        logits : ndarray of shape (n_samples, n_outputs)
            In the network's precision.
        """
        rows, dtype = self._rows(X), self.arithmetic.dtype
        parts = self._decided(rows, 1.0)
        (logits,) = joined(len(rows), ((part.logits_in(dtype),) for part in parts))
        return logits

    def predict(self, X: ArrayLike | Tensor) -> NDArray[np.intp]:
        """Return class codes.

        Parameters
        ----------
        X : array-like or Tensor
            As for :meth:`logits`.

        Returns
        -------
        codes : ndarray of shape (n_samples,)
            Position of the largest logit; for a single logit, 1 where it is positive.
        """
        rows = self._rows(X)
        (codes,) = joined(len(rows), ((part.codes,) for part in self._decided(rows, 1.0)))
        return codes

    def predict_with_radii(self, X: ArrayLike | Tensor) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Return class codes and certified radii, in one pass.

        Parameters
        ----------
        X : array-like or Tensor
            As for :meth:`logits`.

        Returns
        -------
        codes : ndarray of shape (n_samples,)
            As from :meth:`predict`.
        radii : ndarray of shape (n_samples,)
            L2, in the units of X; 0 where nothing can be said.

        Raises
        ------
        RuntimeError
            If layers or weights were changed after the proof.
        """
        rows = self._rows(X)
        codes, radii = joined(len(rows), self.predicted_pieces(rows))
        return codes, radii

    def predicted_pieces(
        self, X: ArrayLike | Tensor
    ) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float64]]]:
        """Yield what :meth:`predict_with_radii` returns, of a piece of X at a time."""
        self.check_unchanged()
        for part in self._decided(self._rows(X), _NEGLIGIBLE):
            yield part.codes, self.budget(part).radii(part.logits)

    def radii(self, X: ArrayLike | Tensor) -> NDArray[np.float64]:
        """Return for each row a radius inside which the predicted class can't change.

        Parameters
        ----------
        X : array-like or Tensor
            As for :meth:`logits`.

        Returns
        -------
        radii : ndarray of shape (n_samples,)
            L2, in the units of X; 0 where nothing can be said.
        """
        return self.predict_with_radii(X)[1]

    def rounding_loss(self, X: ArrayLike | Tensor) -> NDArray[np.float64]:
        """Return the share of each radius that rounding takes away: in general at most 1 %.

        Parameters
        ----------
        X : array-like or Tensor
            As for :meth:`logits`.

        Returns
        -------
        losses : ndarray of shape (n_samples,)
            Between 0 and 1; 0 where the radius is 0 with or without the charge.
        """
        self.check_unchanged()
        rows = self._rows(X)
        parts = self._decided(rows, _NEGLIGIBLE)
        (losses,) = joined(len(rows), ((self._rounding_loss(part),) for part in parts))
        return losses

    def _rounding_loss(self, decided: Decisions) -> NDArray[np.float64]:
        uncharged = certified_radii(decided.logits, self.margin_bounds)
        charged = self.budget(decided).radii(decided.logits)
        comparable = (uncharged > 0) & np.isfinite(uncharged)
        losses: NDArray[np.float64] = 1 - charged / np.where(comparable, uncharged, 1.0)
        return np.where(comparable, losses, 0.0)

    def decisions(self, X: ArrayLike | Tensor) -> Decisions:
        """Return what radii are made of: see :meth:`budget`.

        Parameters
        ----------
        X : array-like or Tensor
            As for :meth:`logits`.

        Returns
        -------
        decisions : Decisions
            Logits, bounds on their errors, and the lengths of the rows.

        Raises
        ------
        RuntimeError
            If layers or weights were changed after the proof.
        """
        self.check_unchanged()
        rows = self._rows(X)
        return Decisions.joined(len(rows), self._decided(rows, _NEGLIGIBLE))

    def pieces(self, X: ArrayLike | Tensor) -> Iterator[NDArray[Any]]:
        """Yield flat rows of X, so many at a time that what is computed of them takes little memory.

        Parameters
        ----------
        X : array-like or Tensor
            As for :meth:`logits`.

        Yields
        ------
        rows : ndarray of shape (n_rows, n_values)
        """
        return row_pieces(self._rows(X), self.numbers_of_a_row(_NUMBERS_AN_OUTPUT))

    def numbers_of_a_row(self, an_output: int) -> int:
        """Return for how many numbers a row counts in pieces, if so many are made of each output."""
        # Bounds between all classes are in memory anyway, and are computed with for each piece.
        share = max(1, self.n_outputs**2 // VALUES_AT_ONCE)
        return an_output * self.n_outputs // share

    def _decided(self, rows: NDArray[Any], share: float) -> Iterator[Decisions]:
        return decide(self.network, self.input_shape, self.precisions, self.pieces(rows), share)

    def _rows(self, X: ArrayLike | Tensor) -> NDArray[Any]:
        array: NDArray[Any] = np.asanyarray(as_numpy(X))
        n_values = math.prod(self.input_shape)
        if array.shape[1:] not in (self.input_shape, (n_values,)) or len(array) == 0:
            raise ValueError(
                f"X must have at least one row and shape (n_samples, {n_values}) or (n_samples, "
                f"{', '.join(map(str, self.input_shape))}), got {array.shape}."
            )
        if array.dtype.kind not in "biuf":
            raise TypeError(f"X must hold real numbers, got {array.dtype}; convert it.")
        return array

    # -- what is proven ----------------------------------------------------------------------

    def budget(
        self,
        decided: Decisions,
        *,
        reach: float = 1.0,
        bounds: NDArray[np.float64] | None = None,
        drift: Affine | None = None,
        code: int | None = None,
    ) -> Budget:
        r"""Return what claims about neighbours x' of some rows x set aside of their margins.

        The defaults are those of a network that sees x and x' themselves. Behind other maps, x and x'
        are what these started from.

        Parameters
        ----------
        decided : Decisions
            What was computed for the rows, from :meth:`decisions`.
        reach : float, default=1.0
            What the network sees of x' lies at most ``reach`` times the distance of x' from what it
            sees of x, the maps before being exact.
        bounds : ndarray of shape (n_outputs, n_outputs), default=None
            How fast each difference of logits moves with x'; ``reach * margin_bounds`` if None.
        drift : Affine, default=Affine()
            How far rounding in the maps before has moved what the network sees, at x and at x'
            together, as a function of the distance of x'.
        code : int, default=None
            Class of which the margins are meant; None: the predicted one of each row.

        Returns
        -------
        budget : Budget
        """
        drift, pairs = drift or Affine(), decided.pairs_of(code)
        bounds = floored_product(self.margin_bounds, reach) if bounds is None else bounds
        constants = self.margin_bounds[pairs]
        with np.errstate(invalid="ignore"):
            moved = constants * np.broadcast_to(drift.offset, len(pairs))[:, None]
        # An exact margin at x' is at least the computed one at x, less its error, less its constant
        # times the way from what is seen of x to what is seen of x'. Float64 must not undo the rest.
        exact = Budget(decided.errors_of(code) + moved, bounds[pairs] + constants * drift.slope)
        return exact + self.precisions[-1].budget(pairs, decided.lengths, reach, drift)

    def margins_behind(self, gains: Gains) -> MarginGains:
        r"""Return proven constants of all logit differences behind other maps.

        Where the network starts with a linear layer, those maps are folded into it.

        Parameters
        ----------
        gains : Gains
            How far a change of some columns has come where it gets to the network.

        Returns
        -------
        margins : MarginGains
            Its `bounds`, for the `bounds` of :meth:`budget`, are for changes of all columns together;
            ``of_column`` gives those of one column.

        Raises
        ------
        ValueError
            For gains of another number of values than the network takes.
        """
        n_values = math.prod(self.input_shape)
        if gains.moves is not None and len(gains.moves) != n_values:
            raise ValueError(
                f"gains must be of the {n_values} values that the network takes, got those of "
                f"{len(gains.moves)}."
            )
        return MarginGains(flat_chain(self.network), self._maps, self.n_outputs, gains)

    def check_unchanged(self) -> None:
        """Raise unless the network is the one that was proven.

        Raises
        ------
        RuntimeError
            If layers, settings or weights were changed.
        TypeError
            If hooks were added or methods replaced.
        """
        for module in self.network.modules():
            refuse_altered(module)
        if self._current_fingerprint() != self._fingerprint:
            raise RuntimeError(
                "The bounds, layers or weights of the network were changed after its proof, which "
                "holds no longer; prove it anew with CertifiedNetwork.prove, and change copies only."
            )

    def _current_fingerprint(self) -> tuple[Any, ...]:
        return (
            digest(self.network),
            # Themselves, since another class may have the same name.
            [type(module) for module in self.network.modules()],
            (self.input_shape, self.arithmetic, self.n_outputs),
            self.lipschitz_bound,
            [
                (known.constant, known.linear, np.asarray(known.factors, float).tobytes())
                for known in self._maps
            ],
            digest_of_array(self.margin_bounds),
            [precision.numbers() for precision in self.precisions],
        )

    # -- other forms -------------------------------------------------------------------------

    def in_float64(self) -> Self:
        """Return the same weights, proven for an evaluation in float64.

        Returns
        -------
        certified : CertifiedNetwork
        """
        self.check_unchanged()
        return type(self).prove(self.network, self.input_shape, "float64")

    def to(self, device: str | torch.device) -> Self:
        """Move the network to a device, in place; what is proven holds for all devices.

        Parameters
        ----------
        device : str or torch.device

        Returns
        -------
        self : CertifiedNetwork
        """
        self.network.to(device)
        return self

    def to_state(self) -> dict[str, Any]:
        """Return plain arrays, numbers and words from which the network is built and proven anew.

        Returns
        -------
        state : dict
            Of layers, weights, input shape and arithmetic; no proven number is in it.

        Raises
        ------
        TypeError
            For a layer that holds something else than plain values and tensors.
        """
        arithmetic = self.arithmetic
        return {
            "network": network_state(self.network),
            "input_shape": list(self.input_shape),
            "dtype": arithmetic.dtype,
            "block": arithmetic.block,
            "convolution_block": arithmetic.convolution_block,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Build a network from a state, and prove it.

        Parameters
        ----------
        state : dict
            From :meth:`to_state`.

        Returns
        -------
        certified : CertifiedNetwork

        Raises
        ------
        TypeError
            For a type of layer without a rule.
        """
        arithmetic = Arithmetic(state["dtype"], state["block"], state["convolution_block"])
        return cls(network_from_state(state["network"]), state["input_shape"], arithmetic)

    def __reduce__(self) -> tuple[Any, ...]:
        self.check_unchanged()
        return type(self)._from_sealed, (sealed(self.to_state()),)

    @classmethod
    def _from_sealed(cls, state: Mapping[str, Any]) -> Self:
        return cls.from_state(opened(state, cls.__name__))


def _refuse_other_precision(network: nn.Module, dtype: str) -> None:
    for name, value in (*network.named_parameters(), *network.named_buffers()):
        if value.is_floating_point() and value.dtype != getattr(torch, dtype):
            raise ValueError(
                f"network must be in the precision of its arithmetic, {dtype}, but {name} is in "
                f"{value.dtype}; convert it, as CertifiedNetwork.prove does."
            )
