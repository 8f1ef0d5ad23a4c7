r"""LipschitzClassifierCV: tau and eps chosen by cross-validation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from numbers import Integral
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.metrics import get_scorer
from sklearn.model_selection import check_cv
from sklearn.utils import check_random_state, indexable
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import check_is_fitted, column_or_1d

from sklip.certification import register_wrapper
from sklip.estimators import LipschitzClassifier, is_faster_side_by_side
from sklip.inputs import check_sample_weight
from sklip.path.anew import FreshStarts
from sklip.path.candidates import Rows, as_results, scores_on_fold
from sklip.path.finals import settle
from sklip.path.walk import WarmStarts
from sklip.rows import as_numpy
from sklip.scoring import certified_accuracy_scorer, check_accuracy_loss, most_robust
from sklip.training.data import Moments, TrainingData

__all__ = ["LipschitzClassifierCV"]

_CROSS_ENTROPIES = ("tau_cross_entropy", "logit_annealing")
# Smallest and largest tau of a grid that is a number, over the spread of X.
_SMALLEST, _LARGEST = 1.0, 300.0


class LipschitzClassifierCV(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    r"""LipschitzClassifier whose tau and eps are chosen by cross-validation.

    As :class:`sklearn.linear_model.LogisticRegressionCV` is to LogisticRegression: one ``fit`` scores
    every candidate on every fold, chooses, and trains the winner on all rows. The winner is the most
    robust candidate among those that are accurate enough (:class:`sklip.most_robust`). Predictions and
    radii are those of `best_estimator_`, a :class:`sklip.LipschitzClassifier` that proves its own
    network; ``certificates``, ``predict_with_radii``, ``certified_ranges`` and Pipelines take this
    estimator in its place. Certified scores of candidates are proven as well: of each network on the
    rows that were held out from it. Candidates share work: see the notes.

    Parameters
    ----------
    estimator : LipschitzClassifier, default=None
        Classifier with all other parameters; None: ``LipschitzClassifier()``. Its `loss` has to be
        one of the cross-entropies, the losses that tau and eps are for. It is copied, not fitted.
    taus : int or array-like of shape (n_taus,), default=8
        Values of tau. A number stands for that many from 1 to 300 over the spread of X, evenly on the
        logarithmic scale: tau is the inverse of a length, so they suit any units.
    epss : array-like of shape (n_epss,), default=None
        Values of eps, each with each of tau; None: the one of `estimator`.
    cv : int, cross-validation generator or iterable, default=None
        Folds, as in scikit-learn; None: 5, stratified by class.
    scoring : str or callable, default=None
        What the winner is to have most of, as a scorer ``(estimator, X, y) -> float`` that takes
        sample_weight where ``fit`` is given it; None: :class:`sklip.certified_accuracy_scorer`
        at its eps of 0.5. Radii are in the units of X here, so give the eps that you care for:
        ``scoring=certified_accuracy_scorer(eps=0.1)``.
    accuracy_loss : float, default=0.02
        Accuracy that may be given up for that: 0.02 is two points less than the most accurate
        candidate has.
    n_jobs : int, default=None
        Folds that are trained at once, by joblib.

    Attributes
    ----------
    tau_, eps_ : float
        The winner's.
    best_estimator_ : LipschitzClassifier
        The winner, trained on all rows.
    best_index_ : int
        Its place in `scores_`.
    scores_ : dict of ndarray of shape (n_candidates,)
        With the keys of ``GridSearchCV.cv_results_``, so that whatever reads those reads it too:
        "params", "param_tau", "param_eps"; for score "accuracy" and score "certified" (what `scoring`
        gives) "split0_test_accuracy" and so on, "mean_test_...", "std_test_...". By eps, then by tau.
        "trained_in_full" says which scores are those of separate fits: see the notes.
    taus_ : ndarray of shape (n_taus,)
        Values of tau, rising.
    epss_ : ndarray of shape (n_epss,)
        Values of eps, rising.
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted.
    n_features_in_ : int
        Values in a row of X.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the columns, if X had string names.

    See Also
    --------
    sklip.most_robust : The same choice in a GridSearchCV, over any parameters.

    Notes
    -----
    The winner is, bit for bit, what ``LipschitzClassifier`` fits with its tau and eps, the other
    parameters and the same seed.

    Dense networks for a table are trained side by side, up to eight at once and each with the steps of
    a fit, so all scores are those of separate fits up to rounding. Those with callbacks,
    `early_stopping`, `checkpoint_dir` or `verbose` are fitted one after another, and so are other
    networks where the rows of each fold are one batch.

    On several batches of images, or of a table with wide networks (more than 2**16 weights) or large
    batches (more than 1024 rows), the first candidate of a fold, the most robust one, is trained in
    full, and each other one starts from its more robust neighbour with 0.15 of the epochs and half the
    rate. That says which may win: that winner and its more robust neighbour are then trained in full
    on each fold, and have those scores in `scores_`, "trained_in_full". The scores of the others are of
    the path: accuracy up to two points too low, and where tau is large more certified than from random
    weights.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklip import LipschitzClassifier, LipschitzClassifierCV
    >>> X, y = load_wine(return_X_y=True)
    >>> X = StandardScaler().fit_transform(X)
    >>> clf = LipschitzClassifierCV(LipschitzClassifier(random_state=0), taus=[1, 10], cv=2).fit(X, y)
    >>> clf.tau_ in (1.0, 10.0)
    True
    >>> clf.scores_["mean_test_certified"].shape
    (2,)
    >>> clf.certificates_(X[:2]).shape
    (2,)
    """

    best_estimator_: LipschitzClassifier

    def __init__(
        self,
        estimator: LipschitzClassifier | None = None,
        *,
        taus: int | ArrayLike = 8,
        epss: ArrayLike | None = None,
        cv: Any = None,
        scoring: Any = None,
        accuracy_loss: float = 0.02,
        n_jobs: int | None = None,
    ) -> None:
        self.estimator = estimator
        self.taus = taus
        self.epss = epss
        self.cv = cv
        self.scoring = scoring
        self.accuracy_loss = accuracy_loss
        self.n_jobs = n_jobs

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Score all candidates, choose, and train the winner on all rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, H, W) or (n_samples, C, H, W)
            As for :meth:`sklip.LipschitzClassifier.fit`.
        y : array-like of shape (n_samples,)
            Labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights in training and in the scores, at least 0.

        Returns
        -------
        self : LipschitzClassifierCV

        Raises
        ------
        TypeError
            For an `estimator` that is no LipschitzClassifier.
        ValueError
            For parameters or data out of range.
        """
        given = _given(self.estimator)
        rule = most_robust(accuracy_loss=check_accuracy_loss(self.accuracy_loss))
        scorer = certified_accuracy_scorer() if self.scoring is None else get_scorer(self.scoring)
        # All candidates start from the same weights and see the rows in the same order.
        seed = given.random_state
        if not isinstance(seed, Integral):
            seed = int(check_random_state(seed).randint(np.iinfo(np.int32).max))
        prototype = clone(given).set_params(random_state=seed)
        # Everything is checked before hours of training.
        data = clone(given)._read(X, y, sample_weight, None, goes_on=False)
        taus = _taus(self.taus, data.moments)
        epss = _grid("epss", [given.eps] if self.epss is None else self.epss, least=0.0)
        weight = check_sample_weight(sample_weight, len(data.rows))
        rows: Rows = tuple(indexable(as_numpy(X), column_or_1d(as_numpy(y)), weight))
        splits = check_cv(5 if self.cv is None else self.cv, rows[1], classifier=True)
        folds = list(splits.split(np.zeros(len(rows[1])), rows[1]))
        if not folds:
            raise ValueError(f"cv must give at least one fold, got none from {self.cv!r}.")
        _check_members(folds, len(rows[1]))
        anew = all(_start_anew(given, data, train) for train, _ in folds)
        candidates = (FreshStarts if anew else WarmStarts)(prototype, taus, epss)
        scores = np.array(
            Parallel(n_jobs=self.n_jobs)(
                delayed(scores_on_fold)(candidates, scorer, rows, *fold) for fold in folds
            )
        )

        def choose(scores: NDArray[np.float64]) -> int:
            return rule(as_results(taus, epss, scores))

        in_full = np.ones(scores.shape[1], dtype=bool)
        if not anew:
            scores, in_full = settle(candidates, scorer, rows, folds, scores, choose, self.n_jobs)
        best = choose(scores)
        row, column = divmod(best, len(taus))
        winner = candidates.unfitted(row, column).fit(*rows)
        self.best_estimator_ = winner.set_params(random_state=given.random_state)
        self.tau_, self.eps_, self.best_index_ = float(taus[column]), float(epss[row]), best
        self.taus_, self.epss_ = taus, epss
        self.scores_ = {**as_results(taus, epss, scores), "trained_in_full": in_full}
        return self

    @property
    def classes_(self) -> NDArray[Any]:
        """Labels, sorted."""
        return self.best_estimator_.classes_

    @property
    def n_features_in_(self) -> int:
        """Values in a row of X."""
        return int(self.best_estimator_.n_features_in_)

    @property
    def feature_names_in_(self) -> NDArray[Any]:
        """Names of the columns, if X had string names."""
        names: NDArray[Any] = self.best_estimator_.feature_names_in_
        return names

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the labels that the winner predicts.

        Parameters
        ----------
        X : array-like
            As for :meth:`fit`.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
        """
        check_is_fitted(self)
        return self.best_estimator_.predict(X)

    def predict_proba(self, X: ArrayLike) -> NDArray[np.floating[Any]]:
        """Return the winner's probabilities, the softmax of tau_ times its logits.

        Parameters
        ----------
        X : array-like
            As for :meth:`fit`.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
        """
        check_is_fitted(self)
        return self.best_estimator_.predict_proba(X)

    def predict_log_proba(self, X: ArrayLike) -> NDArray[np.floating[Any]]:
        """Return the logarithms of the probabilities, exact where these are 0 or 1 by rounding.

        Parameters
        ----------
        X : array-like
            As for :meth:`fit`.

        Returns
        -------
        log_probabilities : ndarray of shape (n_samples, n_classes)
        """
        check_is_fitted(self)
        return self.best_estimator_.predict_log_proba(X)

    def decision_function(self, X: ArrayLike) -> NDArray[np.floating[Any]]:
        """Return the winner's logits.

        Parameters
        ----------
        X : array-like
            As for :meth:`fit`.

        Returns
        -------
        logits : ndarray of shape (n_samples, n_classes), or (n_samples,) for two classes
        """
        check_is_fitted(self)
        return self.best_estimator_.decision_function(X)

    def certificates_(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return for each row a radius inside which ``predict`` can't change.

        Parameters
        ----------
        X : array-like
            As for :meth:`fit`.

        Returns
        -------
        radii : ndarray of shape (n_samples,)
            L2, in the units of X; 0 where nothing can be said.
        """
        check_is_fitted(self)
        return self.best_estimator_.certificates_(X)

    def predict_with_radii(self, X: ArrayLike) -> tuple[NDArray[Any], NDArray[np.float64]]:
        """Return labels and radii, as ``predict`` and :meth:`certificates_` do, in one pass.

        Parameters
        ----------
        X : array-like
            As for :meth:`fit`.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
        radii : ndarray of shape (n_samples,)
        """
        check_is_fitted(self)
        return self.best_estimator_.predict_with_radii(X)

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
        check_is_fitted(self)
        return self.best_estimator_.certified_score(X, y, eps, sample_weight)


@register_wrapper(LipschitzClassifierCV)
def _winner(wrapper: LipschitzClassifierCV) -> LipschitzClassifier:
    check_is_fitted(wrapper)
    return wrapper.best_estimator_


def _given(estimator: Any) -> LipschitzClassifier:
    given = LipschitzClassifier() if estimator is None else estimator
    if not isinstance(given, LipschitzClassifier):
        raise TypeError(
            f"estimator must be a LipschitzClassifier, got {type(given).__name__}; put a Pipeline's "
            "other steps before LipschitzClassifierCV."
        )
    given._validate_params()
    if given.loss not in _CROSS_ENTROPIES:
        raise ValueError(
            f"estimator must have a loss that tau and eps are for, {' or '.join(_CROSS_ENTROPIES)}, "
            f"got loss={given.loss!r}; search its parameters with GridSearchCV and sklip.most_robust."
        )
    return given


def _check_members(folds: Iterable[tuple[ArrayLike, ArrayLike]], n_rows: int) -> None:
    for members in map(np.asarray, itertools.chain.from_iterable(folds)):
        if members.dtype.kind in "iu" and members.size:
            least, largest = members.min(), members.max()
            if least < -n_rows or largest >= n_rows:
                wrong = largest if largest >= n_rows else least
                raise ValueError(f"cv must give rows of X, which has {n_rows}, got row {wrong}.")


def _start_anew(given: LipschitzClassifier, data: TrainingData, train: NDArray[Any]) -> bool:
    """Whether candidates on these rows are to start from random weights: see sklip.path.anew."""
    # Rows without weight are not trained on.
    counted = np.ones(len(data.rows)) if data.sample_weight is None else data.sample_weight
    n_rows = int(np.count_nonzero(counted[train]))
    is_one_batch = n_rows <= given._pace(n_rows, data.input_shape).batch_size
    return is_one_batch or is_faster_side_by_side(given, data, n_rows)


def _taus(taus: int | ArrayLike, moments: Moments) -> NDArray[np.float64]:
    if not isinstance(taus, Integral):
        return _grid("taus", taus, least=np.nextafter(0.0, 1.0))
    if taus < 1:
        raise ValueError(f"taus must be at least 1, or an array of values, got {taus!r}.")
    spread = math.sqrt(np.square(moments.deviations).sum())
    usable = 0 < spread < math.inf
    return np.geomspace(_SMALLEST, _LARGEST, int(taus)) / (spread if usable else 1.0)


def _grid(name: str, values: ArrayLike, least: float) -> NDArray[np.float64]:
    """Return values, rising."""
    grid = np.unique(np.asarray(values, dtype=np.float64))
    if np.ndim(values) != 1 or not len(grid) or not (grid >= least).all() or np.isinf(grid).any():
        bound = "of at least 0" if least == 0 else "above 0"
        raise ValueError(f"{name} must be a list of finite numbers {bound}, got {values!r}.")
    return grid
