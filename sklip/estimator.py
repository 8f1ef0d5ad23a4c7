r"""LipschitzClassifier: parameters, validation, fit, predict, persistence."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import train_test_split
from sklearn.utils import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from sklip import networks
from sklip.batches import TensorData
from sklip.bounds import refuse_altered
from sklip.devices import (
    available_device,
    digest,
    draw_seed,
    fits_on,
    from_arrays,
    resolve_device,
    seeded,
    to_arrays,
)
from sklip.inference import direct_forward, gathered
from sklip.inputs import (
    as_numpy,
    as_rows,
    check_castable,
    check_input_shape,
    check_sample_weight,
    encode_labels,
    inferred_input_shape,
    is_mapped,
    mean_row,
    row_pieces,
)
from sklip.layers import Center, polish_, to_torch
from sklip.metrics import certified_accuracy_score
from sklip.parameters import (
    CONSTRAINTS,
    make_loss,
    resolve_augmentation,
    resolve_dtype,
    resolve_learning_rate,
    resolve_max_epochs,
    resolve_solver,
)
from sklip.proofs import prove, scaled_margin_bounds
from sklip.radii import Approach, certified_radii, row_lengths_upper, softmax_charge
from sklip.training import LipschitzNet, StopEarly, check_callbacks

__all__ = ["LipschitzClassifier"]


class LipschitzClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    r"""Neural-network classifier whose every prediction comes with a certified radius.

    For each row x, :meth:`certificates_` gives an r such that no x' with
    :math:`\|x' - x\|_2 < r` has another predicted class. The network is 1-Lipschitz: its logits
    can't move faster than its input, so a margin between logits is a distance in the units of X.
    After training the constant is proven from the finished weights, in float64; it does not rest on
    training having gone well.

    Parameters
    ----------
    loss : str or torch.nn.Module, default="tau_cross_entropy"
        Training loss:

        * "tau_cross_entropy": cross-entropy with temperature `tau`, for radii of `eps`;
        * "logit_annealing": the same, spending less on rows that have margin enough;
        * "hkr": hinge-regularised Kantorovich-Rubinstein loss with `min_margin` and `alpha`;
        * "lse_hkr": the same with a soft maximum over the wrong classes;
        * a module of :mod:`sklip.losses`, or your own, that takes (logits, class codes, sample_weight
          or None); your own is slower on CUDA, where it can't be replayed as a graph.
    tau : float, default=3.0
        Temperature. A lower tau gives larger radii and less accuracy: 1 / tau is the size of the
        margins, in the units of X, that training asks for. ``predict_proba`` is the softmax of
        tau times the logits.
    eps : float, default=0.0
        For the cross-entropies: radius to train for, in the units of X. The loss is then a bound on the
        cross-entropy of every input within eps (Tsuzuku et al. 2018). Higher: larger radii, less
        accuracy. For the largest share certified at a radius, take that radius, and a tau that a
        search finds.
    min_margin : float, default=0.2
        For the HKR losses: margin between logits that the hinge asks for. Higher: larger radii, less
        accuracy.
    alpha : float, default=50.0
        For the HKR losses: weight of the hinge against the KR term; ``np.inf`` for the hinge alone.
        Lower: larger radii, less accuracy.
    architecture : {"auto", "mlp", "cnn"} or callable, default="auto"
        The network: dense for tables, convolutional for images ("auto"), or a function
        ``(input_shape, n_outputs) -> torch.nn.Module`` made of layers that
        :func:`sklip.lipschitz_bound` knows; n_outputs is 1 for a binary problem.
    input_shape : (int, int, int), default=None
        Channels, height and width, for X of flat image rows (in that order), or to have images with
        the channels last read as such. Image arrays with the channels first need none.
    conv_channels : sequence of int or "auto", default="auto"
        Channels of each convolution of the "cnn" architecture, even; "auto" is (32, 32, 64) for
        images of up to 32 pixels, and one more of 64 for each further halving.
    hidden_layer_sizes : sequence of int or "auto", default="auto"
        Widths of the dense hidden layers, even; "auto" is (512, 128) for tables and (256, 256) behind
        convolutions.
    max_epochs : int or "auto", default="auto"
        Passes over the training data; "auto" is 10, or more where 10 make less than 400
        steps (1000 with "adam").
    batch_size : int, default=256
        Rows in a training step. Data with no more rows than that are one batch.
    solver : {"auto", "muon", "adam"}, default="auto"
        Optimiser: momentum orthogonalised for the orthogonal layers (:mod:`sklip.optimizers`), which
        needs far fewer epochs, or Adam. "auto" is "adam" for data of a single batch, else "muon".
    learning_rate : float or "auto", default="auto"
        Learning rate; its peak for the "one_cycle" schedule. For "muon" it is the angle, in
        radians, by which an orthogonal layer turns for each step, whatever its width; it turns once in
        four steps. "auto" is 0.03 there and 2e-3 for "adam".
    learning_rate_schedule : {"one_cycle", "constant"}, default="one_cycle"
        Whether the rate rises and falls over the epochs or stays. ``partial_fit`` keeps it constant.
    augmentation : callable or list of callables, default=None
        Random changes of the training images, ``(images, generator) -> images``, such as
        :class:`sklip.augmentation.RandomShift`; applied to each batch on the device, in order.
    early_stopping : bool, default=False
        Whether to hold out `validation_fraction` of the rows, to stop when the loss on them has not
        improved for `n_iter_no_change` epochs, and to keep the best epoch's weights.
    validation_fraction : float, default=0.1
        Share of the rows held out, stratified by class.
    n_iter_no_change : int, default=10
        Epochs without improvement before stopping.
    class_weight : dict or "balanced", default=None
        Weights of the classes, as in scikit-learn; multiplied into `sample_weight`.
    warm_start : bool, default=False
        Whether ``fit`` goes on from the weights of the fit before.
    device : str or torch.device, default="auto"
        Where to compute; "auto" takes the first CUDA device, else the CPU.
    dtype : {"auto", "float32", "float64"}, default="auto"
        Precision of training and prediction; "auto" is float64 for tables of at most 2**20 values and
        float32 for images and anything larger.
    callbacks : list of skorch callbacks, default=None
        Instances or (name, instance) pairs. Copies of them are handed to skorch. On CUDA training is
        slower with them: they may look into a step, so it can't be replayed as a graph.
    verbose : int, default=0
        Whether to print a line an epoch: loss, accuracy, mean certificate; and to show a bar for
        epochs that take long.
    random_state : int, RandomState instance or None, default=None
        Seed of the initial weights, the order of the samples and the validation split. An int makes
        two fits on one machine identical; None draws the seed from NumPy's global generator, as
        everywhere in scikit-learn. torch's global generator is left as it was.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted.
    lipschitz_bound_ : float
        Proven L2 Lipschitz constant of the network from X to the logits.
    margin_bounds_ : ndarray of shape (n_outputs, n_outputs)
        Proven Lipschitz constant of each difference of two logits; of the logit for two classes.
    rounding_offsets_, rounding_slopes_ : ndarray of shape (n_outputs, n_outputs)
        Proven bound, offset + slope * length of the row, on the rounding error of each difference.
    longest_row_ : float
        Length of a row up to which nothing can overflow in the network; longer ones get radius 0.
    network_digest_ : str
        Digest of the layers and weights that the bounds belong to.
    history_ : list of dict
        One row an epoch: train_loss, seconds, and valid_loss, valid_accuracy and
        valid_mean_certificate with early stopping; train_accuracy and train_mean_certificate if
        verbose.
    n_iter_ : int
        Epochs run, over all calls that went on from another.
    input_shape_ : tuple of int
        Shape in which the network sees a row.
    net_ : skorch.NeuralNet
        The trained skorch net, with its optimiser, callbacks and history.
    network_ : torch.nn.Module
        The network that predicts and is certified: the trained one in plain layers.
    device_ : str
        Where the networks lie.
    solver_ : str
        Optimiser in use.
    dtype_ : str
        Precision of the networks.
    n_features_in_ : int
        Values in a row of X; C * H * W for images.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the columns, if X had string names.

    See Also
    --------
    sklip.certificates : The same radius through a Pipeline.

    Notes
    -----
    The optimiser's moments are not stored by pickle or copy: ``partial_fit`` on a loaded model
    starts them anew.

    References
    ----------
    Serrurier et al. (2021), Achieving robustness in classification using optimal transport with hinge
    regularization, arXiv 2006.06520. Béthune et al. (2022), Pay attention to your loss, arXiv
    2104.05097.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.model_selection import train_test_split
    >>> from sklip import LipschitzClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> X_train, X_test, y_train, y_test = train_test_split(X / 16, y, random_state=0)
    >>> clf = LipschitzClassifier(random_state=0, max_epochs=20).fit(X_train, y_train)
    >>> clf.score(X_test, y_test) > 0.9
    True
    >>> clf.certificates_(X_test[:2]).shape
    (2,)
    """

    _parameter_constraints = CONSTRAINTS

    def __init__(
        self,
        loss: Any = "tau_cross_entropy",
        *,
        tau: float = 3.0,
        eps: float = 0.0,
        min_margin: float = 0.2,
        alpha: float = 50.0,
        architecture: Any = "auto",
        input_shape: Any = None,
        conv_channels: Any = "auto",
        hidden_layer_sizes: Any = "auto",
        max_epochs: int | str = "auto",
        batch_size: int = 256,
        solver: str = "auto",
        learning_rate: float | str = "auto",
        learning_rate_schedule: str = "one_cycle",
        augmentation: Any = None,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        class_weight: Any = None,
        warm_start: bool = False,
        device: Any = "auto",
        dtype: str = "auto",
        callbacks: Any = None,
        verbose: int = 0,
        random_state: Any = None,
    ) -> None:
        self.loss = loss
        self.tau = tau
        self.eps = eps
        self.min_margin = min_margin
        self.alpha = alpha
        self.architecture = architecture
        self.input_shape = input_shape
        self.conv_channels = conv_channels
        self.hidden_layer_sizes = hidden_layer_sizes
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.solver = solver
        self.learning_rate = learning_rate
        self.learning_rate_schedule = learning_rate_schedule
        self.augmentation = augmentation
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.class_weight = class_weight
        self.warm_start = warm_start
        self.device = device
        self.dtype = dtype
        self.callbacks = callbacks
        self.verbose = verbose
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Train the network and prove its Lipschitz constant.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, H, W) or (n_samples, C, H, W)
            Tables or images; NumPy, pandas or torch.
        y : array-like of shape (n_samples,)
            Labels: integers, strings or booleans.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights, at least 0; a row of weight 2 counts as two rows, one of weight 0 as none.

        Returns
        -------
        self : LipschitzClassifier

        Raises
        ------
        ValueError
            For parameters or data out of range, and if training turns non-finite; no model is kept
            then.
        """
        self._validate_params()
        go_on = self.warm_start and self.__sklearn_is_fitted__()
        if not go_on:
            self._forget()
        rows, codes, weight = self._read_training_data(X, y, sample_weight, None, first=not go_on)
        seed = draw_seed(self.random_state)
        with seeded(seed, self.device_):
            module = self.net_.module_ if go_on else self._build_network(rows, weight)
            train, validation = self._split(self._tensors(rows, codes, weight), seed)
            self.solver_ = resolve_solver(self.solver, len(train), self.batch_size)
            net = self._make_net(module, seed)
            epochs = resolve_max_epochs(self.max_epochs, len(train), self.batch_size, self.solver_)
            net.train(train, validation, epochs)
        return self._finish(net, epochs_before=0, history=self.history_ if go_on else [])

    def partial_fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        classes: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Go on training with one pass over X, at a constant learning rate.

        Parameters
        ----------
        X : array-like
            As for :meth:`fit`.
        y : array-like of shape (n_samples,)
            Labels, each one of the classes.
        classes : array-like of shape (n_classes,), default=None
            All labels that will ever occur; needed at the first call only.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights, at least 0.

        Returns
        -------
        self : LipschitzClassifier
        """
        self._validate_params()
        if self.class_weight == "balanced":
            raise ValueError(
                "class_weight 'balanced' is not supported for partial_fit, which sees a part of the "
                "labels only; pass a dict of weights or sample_weight."
            )
        if self.early_stopping:
            raise ValueError(
                "early_stopping=True is not supported for partial_fit, which sees no validation "
                "data; set it to False."
            )
        first = not self.__sklearn_is_fitted__()
        if first and classes is None:
            raise ValueError("classes must be passed on the first call to partial_fit.")
        rows, codes, weight = self._read_training_data(X, y, sample_weight, classes, first=first)
        seed = draw_seed(self.random_state)
        with seeded(seed, self.device_):
            if first:
                self.solver_ = resolve_solver(self.solver, len(rows), self.batch_size)
                net = self._make_net(self._build_network(rows, weight), seed)
            else:
                net = self.net_
            net.schedule = "constant"
            epochs_before = len(net.history)
            net.train(self._tensors(rows, codes, weight), None, 1)
        return self._finish(net, epochs_before, history=[] if first else self.history_)

    def decision_function(self, X: ArrayLike) -> NDArray[Any]:
        """Return the logits.

        Parameters
        ----------
        X : array-like
            As for :meth:`fit`.

        Returns
        -------
        scores : ndarray of shape (n_samples,) or (n_samples, n_classes)
            For two classes one logit, positive for ``classes_[1]``.
        """
        logits = self._logits(self._rows(X)).cpu().numpy()
        return logits[:, 0] if logits.shape[1] == 1 else logits

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the class of the largest logit of each row.

        Parameters
        ----------
        X : array-like
            As for :meth:`fit`.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
        """
        scores = self.decision_function(X)
        codes = (scores > 0).astype(np.intp) if scores.ndim == 1 else scores.argmax(axis=1)
        labels: NDArray[Any] = self.classes_[codes]
        return labels

    def predict_proba(self, X: ArrayLike) -> NDArray[Any]:
        """Return the softmax of tau times the logits (the sigmoid for two classes).

        Parameters
        ----------
        X : array-like
            As for :meth:`fit`.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
        """
        scaled = self.tau * self._logits(self._rows(X))
        if scaled.shape[1] == 1:
            probabilities = torch.sigmoid(torch.cat((-scaled, scaled), dim=1))
        else:
            probabilities = torch.softmax(scaled, dim=1)
        return probabilities.cpu().numpy()

    def certificates_(self, X: ArrayLike) -> NDArray[np.float64]:
        r"""Return for each row a radius inside which the predicted class can't change.

        Neither the class that ``predict`` computes for any representable x' in the ball, nor that of
        the exact function of the stored weights: the rounding errors of ``predict`` at x and at x' are
        charged.

        Parameters
        ----------
        X : array-like
            As for :meth:`fit`.

        Returns
        -------
        radii : ndarray of shape (n_samples,)
            L2, in the units of X; 0 where nothing can be said.

        Raises
        ------
        RuntimeError
            If layers or weights of `network_` were changed after ``fit``: the bounds are of the old.

        See Also
        --------
        sklip.radii.certified_radii : The formula.
        rounding_loss_ : What the charge for rounding costs.
        """
        return self._radii(X, Approach())

    def rounding_loss_(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the share of each radius that the charge for rounding takes away.

        Parameters
        ----------
        X : array-like
            As for :meth:`fit`.

        Returns
        -------
        losses : ndarray of shape (n_samples,)
            Between 0 and 1; 0 where the radius is 0 with or without the charge.
        """
        uncharged = certified_radii(self._logits(self._rows(X)).cpu().numpy(), self.margin_bounds_)
        charged = self.certificates_(X)
        comparable = (uncharged > 0) & np.isfinite(uncharged)
        losses: NDArray[np.float64] = 1 - charged / np.where(comparable, uncharged, 1.0)
        return np.where(comparable, losses, 0.0)

    def certified_score(
        self, X: ArrayLike, y: ArrayLike, eps: float, sample_weight: ArrayLike | None = None
    ) -> float:
        """Return the share of rows predicted right with a radius above `eps`.

        Parameters
        ----------
        X : array-like
            As for :meth:`fit`.
        y : array-like of shape (n_samples,)
            True labels.
        eps : float
            Perturbation budget: L2, in the units of X, at least 0.
        sample_weight : array-like of shape (n_samples,), default=None
            Sample weights.

        Returns
        -------
        score : float
        """
        return certified_accuracy_score(
            y, self.predict(X), self.certificates_(X), eps=eps, sample_weight=sample_weight
        )

    def to_torch(self) -> nn.Module:
        """Return a copy of the trained network in plain layers, in evaluation mode.

        Returns
        -------
        network : torch.nn.Module
            ``nn.Linear``, ``nn.Conv2d`` and sklip's parameter-free layers; it takes
            (n, *input_shape_) and returns (n, n_outputs).
        """
        check_is_fitted(self)
        return copy.deepcopy(self.network_)

    # -- fitting, step by step ---------------------------------------------------------------

    def _forget(self) -> None:
        """Drop the model of an earlier fit: a fit that fails must not leave half of each."""
        for name in [name for name in vars(self) if name.endswith("_")]:
            delattr(self, name)

    def _read_training_data(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None,
        classes: ArrayLike | None,
        *,
        first: bool,
    ) -> tuple[NDArray[Any], NDArray[np.intp], NDArray[np.float64] | None]:
        """Validate everything and return rows, class codes and weights; sets what describes X, y."""
        shape: tuple[int, ...] | None
        given_shape = check_input_shape(self.input_shape)
        shape = inferred_input_shape(X, given_shape) if first else self.input_shape_
        rows, labels = validate_data(
            self, as_rows(X, shape, type(self).__name__), as_numpy(y), reset=first, order="C"
        )
        check_classification_targets(labels)
        if given_shape is not None and rows.shape[1] != math.prod(given_shape):
            raise ValueError(
                f"X has {rows.shape[1]} features, but input_shape={given_shape} needs "
                f"{math.prod(given_shape)}."
            )
        weight = check_sample_weight(sample_weight, len(rows))
        if first:
            self.device_ = resolve_device(self.device)
            self.classes_ = np.unique(labels if classes is None else np.asarray(classes))
            self.input_shape_: tuple[int, ...] = (rows.shape[1],) if shape is None else shape
            self.dtype_ = resolve_dtype(self.dtype, len(self.input_shape_) == 3, rows.size)
        codes = encode_labels(labels, self.classes_, None if first else classes)
        if self.class_weight is not None:
            per_class = compute_class_weight(
                self.class_weight, classes=self.classes_, y=labels, sample_weight=weight
            )
            weight = per_class[codes] if weight is None else weight * per_class[codes]
        counted = codes if weight is None else codes[weight > 0]
        present = np.unique(counted) if first and classes is None else self.classes_
        if len(present) < 2:
            raise ValueError(
                f"{type(self).__name__} needs samples of at least 2 classes in the data, but the "
                f"data contains only one class: {self.classes_[counted[0]]!r}"
            )
        return check_castable(rows, self.dtype_), codes, weight

    def _n_outputs(self) -> int:
        """Return the number of logits: one for two classes."""
        return 1 if len(self.classes_) == 2 else len(self.classes_)

    def _build_network(self, rows: NDArray[Any], weight: NDArray[np.float64] | None) -> nn.Module:
        n_outputs = self._n_outputs()
        plan = networks.NetworkPlan.resolve(
            self.architecture,
            self.input_shape_,
            n_outputs,
            conv_channels=self.conv_channels,
            hidden_layer_sizes=self.hidden_layer_sizes,
        )
        network = plan.build().to(dtype=getattr(torch, self.dtype_))
        for layer in network.modules():
            if isinstance(layer, Center):
                layer.center.copy_(torch.from_numpy(mean_row(rows, weight)))
        if callable(self.architecture):
            self._check_network(network, n_outputs)
        self._plan_ = plan
        return network

    def _check_network(self, network: nn.Module, n_outputs: int) -> None:
        """Refuse a user's network before hours of training, not after."""
        # A hook is dropped by the export, so it must be refused before; and before any call.
        for module in network.modules():
            refuse_altered(module)
        probe = torch.zeros(2, *self.input_shape_, dtype=getattr(torch, self.dtype_))
        with torch.no_grad():
            shape = tuple(network.eval()(probe).shape)
        if shape != (2, n_outputs):
            raise ValueError(
                f"architecture must return a network with {n_outputs} outputs for rows of shape "
                f"{self.input_shape_}, got outputs of shape {shape[1:]}."
            )
        prove(to_torch(network).eval(), n_outputs, self.dtype_, self.input_shape_)

    def _make_net(self, module: nn.Module, seed: int) -> LipschitzNet:
        callbacks = check_callbacks(copy.deepcopy(self.callbacks))
        if self.early_stopping:
            callbacks.append(("early_stopping", StopEarly(self.n_iter_no_change)))
        net = LipschitzNet(
            module,
            make_loss(
                self.loss,
                binary=len(self.classes_) == 2,
                tau=self.tau,
                eps=self.eps,
                min_margin=self.min_margin,
                alpha=self.alpha,
            ),
            schedule=self.learning_rate_schedule,
            augmentation=resolve_augmentation(self.augmentation, len(self.input_shape_) == 3),
            shuffle_seed=seed,
            report=bool(self.verbose),
            solver=self.solver_,
            lr=resolve_learning_rate(self.learning_rate, self.solver_),
            batch_size=self.batch_size,
            train_split=None,
            callbacks=callbacks,
            device=self.device_,
            verbose=int(self.verbose),
        )
        net.initialize()
        return net

    def _split(self, data: TensorData, seed: int) -> tuple[TensorData, TensorData | None]:
        if not self.early_stopping:
            return data, None
        train, held_out = train_test_split(
            np.arange(len(data)),
            test_size=self.validation_fraction,
            stratify=data.y.cpu().numpy(),
            random_state=seed,
        )
        return data.subset(torch.from_numpy(train)), data.subset(torch.from_numpy(held_out))

    def _tensors(
        self, rows: NDArray[Any], codes: NDArray[np.intp], weight: NDArray[np.float64] | None
    ) -> TensorData:
        X, dtype = self._as_tensor(rows), getattr(torch, self.dtype_)
        if weight is not None:
            # Only ratios count, and the largest weight must not be lost to the network's precision.
            weight = (weight / weight.max()).astype(self.dtype_)
        resident = fits_on(self.device_, X)
        data = TensorData(
            X.to(self.device_) if resident else X,
            torch.from_numpy(codes).to(self.device_),
            None if weight is None else torch.from_numpy(weight).to(self.device_),
            dtype,
            ahead=not resident or is_mapped(rows),
        )
        if weight is None or (weight > 0).all():
            return data
        # A row of weight zero is no row: it must not take a place in a batch.
        return data.subset(torch.from_numpy(np.flatnonzero(weight > 0)))

    def _as_tensor(self, rows: NDArray[Any]) -> Tensor:
        with warnings.catch_warnings():
            # torch has no read-only tensors, and warns of arrays that are; nothing here writes to X.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            return torch.from_numpy(rows).view(-1, *self.input_shape_)

    def _finish(self, net: LipschitzNet, epochs_before: int, history: list[dict[str, Any]]) -> Self:
        """Export the trained network and prove its bounds; only then is there a model."""
        if not all(torch.isfinite(v).all() for v in net.module_.state_dict().values()):
            raise ValueError(
                "Training produced non-finite weights. Lower learning_rate, or scale X if it "
                "contains large values."
            )
        network = to_torch(polish_(net.module_)).eval().requires_grad_(False)
        self._certify(network)
        self.net_ = net
        self.history_ = [*history, *net.epoch_rows()[epochs_before:]]
        self.n_iter_ = len(self.history_)
        return self

    def _certify(self, network: nn.Module) -> None:
        """Prove the bounds of a plain network; only when all are proven is it the one in use."""
        n_outputs = self._n_outputs()
        proof = prove(network, n_outputs, self.dtype_, self.input_shape_)
        self.network_ = network
        self.network_digest_ = digest(network)
        self.margin_bounds_ = proof.margin_bounds
        charges = proof.rounding_charges
        self.rounding_offsets_, self.rounding_slopes_, self.longest_row_ = charges
        self.lipschitz_bound_ = proof.lipschitz_bound

    def _refuse_other_predictions(self) -> None:
        """Refuse a subclass or an instance that predicts in another way than was proven."""
        for name in ("predict", "decision_function", "_logits", "_rows"):
            own = getattr(LipschitzClassifier, name)
            if getattr(type(self), name) is not own or name in vars(self):
                raise TypeError(
                    f"{type(self).__name__} has another {name} than LipschitzClassifier, so it gives "
                    "no certificates; override certificates_ as well."
                )

    def _refuse_changed_network(self) -> None:
        for module in self.network_.modules():
            refuse_altered(module)
        if digest(self.network_) != self.network_digest_:
            raise RuntimeError(
                "The layers or weights of network_ were changed after fit, so its bounds hold no "
                "longer; fit again, or change a copy from to_torch()."
            )

    def _radii(self, X: ArrayLike, approach: Approach) -> NDArray[np.float64]:
        """Radii in the units of rows that came to the network's by `approach`."""
        rows = self._rows(X)
        self._refuse_changed_network()
        self._refuse_other_predictions()
        logits, lengths = self._logits(rows).cpu().numpy(), row_lengths_upper(rows)
        bounds, moved, growth = self.margin_bounds_ * approach.bound, approach.moved, approach.growth
        if approach.factors is not None:
            folded = scaled_margin_bounds(
                self.network_, self._n_outputs(), approach.factors, self.input_shape_
            )
            bounds = bounds if folded is None else np.minimum(bounds, folded)
        # Errors of the network at x and at x', and of what it sees there.
        charges: list[tuple[NDArray[np.float64], NDArray[np.float64] | float]] = [
            (self.rounding_offsets_, 2.0),
            (self.rounding_slopes_, 2 * lengths + moved),
            (self.margin_bounds_, moved),
        ]
        spread = approach.bound + growth
        bounds = bounds + self.margin_bounds_ * growth + self.rounding_slopes_ * spread
        if approach.inverse_temperature is not None:
            charge, slope = softmax_charge(logits, approach.inverse_temperature)
            everywhere = np.ones_like(bounds)
            charges.append((everywhere, charge))
            bounds = bounds + slope * self.lipschitz_bound_ * spread * everywhere
        radii = certified_radii(logits, bounds, charges)
        # Longer rows might overflow inside the network.
        with np.errstate(divide="ignore", invalid="ignore"):
            room = (self.longest_row_ - lengths - moved) / spread
            radii = np.minimum(radii, np.minimum(room, approach.room))
        # What can't be compared has overflown, and certifies nothing.
        return np.where(radii > 0, radii, 0.0)

    # -- prediction and storage --------------------------------------------------------------

    def _rows(self, X: ArrayLike) -> NDArray[Any]:
        """Validate X for prediction and return its rows."""
        check_is_fitted(self)
        rows = validate_data(
            self, as_rows(X, self.input_shape_, type(self).__name__), reset=False, order="C"
        )
        return check_castable(rows, self.dtype_)

    def _logits(self, rows: NDArray[Any]) -> Tensor:
        # A piece at a time is brought to the device and into the network's precision.
        dtype, device = getattr(torch, self.dtype_), self.device_
        pieces = (self._as_tensor(piece).to(device, dtype) for piece in row_pieces(rows))
        return gathered(len(rows), (direct_forward(self.network_, piece) for piece in pieces))

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "lipschitz_bound_")

    def __getstate__(self) -> dict[str, Any]:
        """Networks are stored as NumPy arrays: they load on a machine without the same device."""
        state = dict(super().__getstate__())
        if self.__sklearn_is_fitted__():
            state["net_"] = to_arrays(self.net_.module_)
            state["network_"] = to_arrays(self.network_)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if not self.__sklearn_is_fitted__():
            return
        self.device_ = available_device(self.device_)
        with seeded(0, self.device_):
            module = self._plan_.build()
        # Exported before loading, for its structure: the stored weights are those of the bound.
        network = to_torch(module).eval().requires_grad_(False)
        self.network_ = from_arrays(network, state["network_"]).to(self.device_)
        module = from_arrays(module, state["net_"])
        self.net_ = self._make_net(module, 0)
        self.net_.restore_history(self.history_)
        if callable(self._plan_.architecture):
            # Somebody else's code built the network just now, and it may have changed since fit.
            self._certify(self.network_)
