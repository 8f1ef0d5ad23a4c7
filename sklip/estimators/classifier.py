r"""LipschitzClassifier: its parameters and its targets."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from torch import nn

from sklip.estimators.fit_tasks import with_callbacks
from sklip.estimators.parameters import CONSTRAINTS, make_loss
from sklip.estimators.predictions import PredictingEstimator, probabilities_of
from sklip.inputs import as_labels, class_weighted, encode_labels
from sklip.training.data import TrainingData

__all__ = ["LipschitzClassifier"]


class LipschitzClassifier(ClassifierMixin, PredictingEstimator):  # type: ignore[misc]
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
        * a module of :mod:`sklip.losses`, whose parameters are ``loss__tau`` and the like, or your own,
          that takes (logits, class codes, sample_weight or None); your own is slower on CUDA, where it
          can't be replayed as a graph.
    tau : float, default=3.0
        Temperature. A lower tau gives larger radii and less accuracy: 1 / tau is the size of the
        margins that training asks for, in the units of what this estimator itself sees.
        ``predict_proba`` is the softmax of tau times the logits.
    eps : float, default=0.0
        For the cross-entropies: radius to train for, in the units of what this estimator itself sees
        (behind a StandardScaler: standard deviations). The loss is then a bound on the cross-entropy of
        every input within eps (Tsuzuku et al. 2018). Higher: larger radii, less accuracy. For the
        largest share certified at a radius, take that radius, and a tau that a search finds. Where few
        rows can be certified at all, a lower tau and eps=0 do better: on CIFAR-10 (pixels from 0 to 1,
        ten epochs) tau=3 certifies most at 36/255 and tau=2 at 108/255; in 30 epochs tau=5 with
        eps=0.28 is two points more accurate than tau=3, for as much certified at 36/255.
    min_margin : float, default=0.2
        For the HKR losses: margin between logits that the hinge asks for, in the units of what this
        estimator itself sees. Higher: larger radii, less accuracy.
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
        grey images of up to 32 pixels, (12, 64, 128) for colours, and one more like the last for each
        further halving.
    hidden_layer_sizes : sequence of int or "auto", default="auto"
        Widths of the dense hidden layers, even; "auto" is (128, 64) for tables of up to 1024 rows and
        (256, 64) for larger ones, and (256, 256) behind convolutions.
    max_epochs : int or "auto", default="auto"
        Passes over the training data; "auto" is 10, or more where 10 make less than 240 steps of a
        table (48 if all rows are one batch) or 400 of images (150); 1000 with "adam".
    batch_size : int or "auto", default="auto"
        Rows in a training step; "auto" is all rows of a table of up to 1024, else 256. Data with no
        more rows than that are one batch.
    solver : {"muon", "adam"}, default="muon"
        Optimiser: Muon for the orthogonal layers (:class:`sklip.training.StiefelMuon`), which needs
        far fewer epochs, or Adam.
    learning_rate : float or "auto", default="auto"
        Learning rate; its peak for the "one_cycle" schedule. For "muon" it is the angle, in
        radians, by which an orthogonal layer turns for each step, whatever its width; a large one turns
        once in four steps, or in an epoch of fewer. "auto" is 0.05 there for tables (0.1 if all rows
        are one batch), 0.03 for images (0.06), and 2e-3 for "adam".
    learning_rate_schedule : {"one_cycle", "constant"}, default="one_cycle"
        Whether the rate rises and falls over the epochs or stays. ``partial_fit`` keeps it constant.
    augmentation : callable or list of callables, default=None
        Random changes of the training images, ``(images, generator) -> images``, such as
        :class:`sklip.training.RandomShift`; applied to each batch on the device, in order.
    early_stopping : bool, default=False
        Whether to hold out `validation_fraction` of the rows, to stop when their mean radius (by the
        normalized margin, see `history_`) has not improved for `n_iter_no_change` epochs, and to keep
        the best epoch's weights.
    validation_fraction : float, default=0.1
        Share of the rows held out, stratified by class.
    n_iter_no_change : int, default=10
        Epochs without improvement before stopping.
    class_weight : dict or "balanced", default=None
        Weights of the classes, as in scikit-learn; multiplied into `sample_weight`.
    warm_start : bool, default=False
        Whether ``fit`` goes on from the weights of the fit before. The network must be the same:
        changed widths, say, are an error.
    checkpoint_dir : str or path-like, default=None
        Folder in which ``fit`` stores what it has reached, every few seconds, at the end of an epoch. A
        fit that was interrupted or killed and is made again, in whatever process, goes on from there,
        and gives the model that it would have given, bit for bit on one machine with as many threads;
        one that had finished returns its model at once. Each fit has a file of its own, named by a
        digest of parameters, X, y, weights and seed, so that the fits of a search may share a folder;
        with anything changed, a fit starts anew. Needs a `random_state`. ``partial_fit`` stores
        nothing. See the notes.
    device : str or torch.device, default="auto"
        Where to compute; "auto" takes the first CUDA device, else the CPU.
    dtype : {"auto", "float32", "float64"}, default="auto"
        Precision of training and prediction; "auto" is float64 for tables of at most 2**20 values and
        float32 for images and anything larger. On CPUs with units for it, "auto" trains the "cnn"
        architecture with products in bfloat16, in two thirds of the time (see the notes).
    callbacks : list of skorch callbacks, default=None
        Instances or (name, instance) pairs. Copies of them are handed to skorch; ``set_params`` and
        grids reach them as ``callbacks__name`` and ``callbacks__name__parameter``. Those that score
        held-out rows need ``early_stopping=True``, and an LRScheduler
        ``learning_rate_schedule="constant"``. To scorers labels are the positions in `classes_`. On
        CUDA training is slower with callbacks: they may look into a step, so it can't be replayed as a
        graph.
    verbose : int, default=0
        Whether to print a line an epoch: loss, accuracy, normalized margin; and to show a bar for
        epochs that take long.
    random_state : int, RandomState instance or None, default=None
        Seed of the initial weights, the order of the samples and the validation split. An int makes
        two fits on one machine identical; None draws the seed from NumPy's global generator, as
        everywhere in scikit-learn. torch's global generators are not touched: fits may run in threads.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted.
    lipschitz_bound_ : float
        Proven L2 Lipschitz constant of the network from X to the logits.
    certified_network_ : sklip.CertifiedNetwork
        The network that predicts, in plain layers, with all that is proven of it.
    history_ : list of dict
        One row an epoch: train_loss, train_loss_best (whether it is the least so far) and seconds;
        with early stopping valid_loss, valid_loss_best, valid_accuracy and valid_normalized_margin;
        what callbacks record; and train_accuracy and train_normalized_margin if
        verbose. The normalized margin, over sqrt 2, is the mean radius that a network of constant 1
        would have, a wrong prediction counting 0; of the network in training nothing is proven.
    n_iter_ : int
        Epochs run, over all calls that went on from another.
    input_shape_ : tuple of int
        Shape in which the network sees a row.
    net_ : skorch.NeuralNet
        The trained skorch net, with its optimiser, callbacks and history.
    column_weights_ : ndarray of shape (n_features_in_,)
        For tables: weight between 0 and 1 by which the network multiplies each column. All 1, unless
        the table has 9 columns or more and 60 to 1024 rows, and weights that were trained made the
        cross-entropy of rows held out smaller: columns that are noise get 0 then
        (:mod:`sklip.training.columns`).
    feature_std_ : ndarray of shape (n_features_in_,)
        For tables: standard deviation of each column over the rows of ``fit``, as weighted by sample
        and class weights, and of all calls that went on from there (rows seen twice count twice).
        ``certificates(..., scale="std")`` measures in these.
    tau_ : float
        The `tau` of the last fit, which ``predict_proba`` uses.
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

    Products in bfloat16 (``dtype="auto"``, Intel's AMX, where ``torch.cpu.get_capabilities`` tells)
    round gradients only: weights, proof and predictions are in float32. A fit on such a CPU differs
    from one elsewhere; ``dtype="float32"`` trains in float32 on all.

    Files in `checkpoint_dir` stay until you delete the folder; reading them runs no code. One that is
    damaged, or was written by another version of sklip or torch, is an error, never a model.
    Functions, losses and callbacks of your own count as changed where their source or their attributes
    are; what else they read (a global variable, say, or a generator that is not handed to them) is
    neither seen nor stored. Callbacks are sklip's and skorch's
    EarlyStopping, EpochScoring, BatchScoring, PassthroughScoring, LRScheduler, GradientNormClipping
    and PrintLog, and such as have ``state_dict`` and ``load_state_dict``; others are refused.

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
        batch_size: int | str = "auto",
        solver: str = "muon",
        learning_rate: float | str = "auto",
        learning_rate_schedule: str = "one_cycle",
        augmentation: Any = None,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        class_weight: Any = None,
        warm_start: bool = False,
        checkpoint_dir: Any = None,
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
        self.checkpoint_dir = checkpoint_dir
        self.device = device
        self.dtype = dtype
        self.callbacks = callbacks
        self.verbose = verbose
        self.random_state = random_state

    @with_callbacks  # type: ignore[untyped-decorator]
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
        KeyboardInterrupt
            If the user interrupts, so that a search or a script around it ends as well. The model
            reached so far is kept, proven, and can be used; with `checkpoint_dir` another call goes on.
        """
        self._validate_params()
        goes_on = self.warm_start and self.__sklearn_is_fitted__()
        if not goes_on:
            self._forget()
        return self._train(X, y, sample_weight, None, goes_on=goes_on, one_pass=False)

    def partial_fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        classes: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Go on training with one pass over X, at a constant learning rate.

        Parameters set since the last call are taken up (the optimiser then starts anew); what the
        network is made of must not change.

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
        goes_on = self.__sklearn_is_fitted__()
        if not goes_on and classes is None:
            raise ValueError("classes must be passed on the first call to partial_fit.")
        return self._train(X, y, sample_weight, classes, goes_on=goes_on, one_pass=True)

    def _read_targets(
        self,
        y: NDArray[Any],
        weight: NDArray[np.float64] | None,
        classes: ArrayLike | None,
        *,
        goes_on: bool,
    ) -> tuple[NDArray[Any], NDArray[np.float64] | None, NDArray[Any] | None]:
        check_classification_targets(y)
        known = np.unique(y if classes is None else np.asarray(as_labels(classes, "classes")))
        labels = self.classes_ if goes_on else known
        codes = encode_labels(y, labels, classes if goes_on else None)
        if self.class_weight is not None:
            weight = class_weighted(self.class_weight, labels, y, codes, weight)
        counted = codes if weight is None else codes[weight > 0]
        present = labels if goes_on or classes is not None else np.unique(counted)
        if len(present) < 2:
            raise ValueError(
                f"{type(self).__name__} needs samples of at least 2 classes in the data, but the "
                f"data contains only one class: {labels[counted[0]]!r}"
            )
        return codes, weight, labels

    def _n_outputs(self, classes: NDArray[Any] | None) -> int:
        """One logit for two classes."""
        assert classes is not None
        return 1 if len(classes) == 2 else len(classes)

    def _criterion(self, classes: NDArray[Any] | None) -> nn.Module:
        return make_loss(
            self.loss,
            binary=self._n_outputs(classes) == 1,
            tau=self.tau,
            eps=self.eps,
            min_margin=self.min_margin,
            alpha=self.alpha,
        )

    def _nonlinearity(self) -> Callable[[torch.Tensor], torch.Tensor]:
        return functools.partial(probabilities_of, tau=float(self.tau))

    def _keep(self, data: TrainingData) -> None:
        assert data.classes is not None
        self.classes_: NDArray[Any] = data.classes
        self.tau_ = float(self.tau)
