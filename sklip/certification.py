r"""Certificates of whole estimators, in the units of their own input."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.utils.extmath import row_norms
from sklearn.utils.validation import check_is_fitted

from sklip.estimator import LipschitzClassifier
from sklip.pipelines import Reach, SideBySide, described, flat_steps, is_weighted
from sklip.radii import Approach, row_lengths_upper
from sklip.rounding import Precision, Step, longest_step_input
from sklip.transformers import refuse_replaced

__all__ = ["certificates"]

# What scikit-learn's searches share: it hands X to the best estimator and does nothing else.
_SEARCH_PREDICT = inspect.getattr_static(GridSearchCV, "predict")


def certificates(
    estimator: Any, X: ArrayLike, *, fixed_columns: Iterable[str | int] = ()
) -> NDArray[np.float64]:
    r"""Radius around each row of X inside which ``estimator.predict`` can't change.

    In the units of the estimator's own input: how far a change of the raw columns carries through the
    steps of a Pipeline is bounded by proven constants, and the rounding of each step is charged.

    Parameters
    ----------
    estimator : fitted estimator
        A LipschitzClassifier; a Pipeline that ends in one; a fitted search (GridSearchCV and the like)
        over either; a CalibratedClassifierCV of either with ``method="temperature"`` and
        ``ensemble=False``. Pipeline steps: scalers, PCA, TruncatedSVD, SimpleImputer, feature
        selectors, "passthrough", Pipelines, ColumnTransformers and FeatureUnions of these, and what
        :func:`sklip.transformers.register_transformer_bound` adds.
    X : array-like, sparse matrix or DataFrame
        What `estimator` takes.
    fixed_columns : iterable of str or int, default=()
        Columns that can't change, by name or by position at ``fit``: the radius speaks of x' that agree
        with x there. Parts of a ColumnTransformer that read fixed columns only may be anything
        (OneHotEncoder, say); what they compute is taken as given.

    Returns
    -------
    radii : ndarray of shape (n_samples,)
        L2, in the units of X; 0 where nothing can be said, as for rows with missing values.

    Raises
    ------
    TypeError
        For an estimator without certificates, or a step without a proven bound.
    NotFittedError
        If the estimator is not fitted.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklip import LipschitzClassifier, certificates
    >>> X, y = load_iris(return_X_y=True)
    >>> pipeline = make_pipeline(StandardScaler(), LipschitzClassifier(max_epochs=5, random_state=0))
    >>> certificates(pipeline.fit(X, y), X).shape
    (150,)
    """
    steps, classifier, inverse_temperature = _unwrapped(estimator)
    first = steps[0] if steps else classifier
    check_is_fitted(first)
    names = getattr(first, "feature_names_in_", None)
    n_columns = getattr(first, "n_features_in_", None) or math.prod(np.shape(X)[1:])
    fixed = _fixed_mask(fixed_columns, names, n_columns)
    approach = Approach()
    if fixed.any() and np.ndim(X) > 2:
        raise ValueError(
            f"fixed_columns needs X of flat rows, got shape {np.shape(X)}; flatten the images, "
            "channels first."
        )
    if steps or fixed.any():
        X, approach = _approach(steps, X, names, fixed)
    approach = replace(approach, inverse_temperature=inverse_temperature)
    radii: NDArray[np.float64] = classifier._radii(X, approach)
    return radii


def _unwrapped(estimator: Any) -> tuple[list[Any], Any, float | None]:
    """Return the steps before the classifier, the classifier, and the inverse temperature."""
    name = type(estimator).__name__
    if isinstance(estimator, LipschitzClassifier):
        return [], estimator, None
    refuse_replaced(estimator)
    if type(estimator) is FrozenEstimator:
        return _unwrapped(estimator.estimator)
    if type(estimator) is Pipeline:
        check_is_fitted(estimator)
        steps, classifier, inverse_temperature = _unwrapped(estimator.steps[-1][1])
        before = [step for _, part in estimator.steps[:-1] for step in flat_steps(part)]
        return before + steps, classifier, inverse_temperature
    if inspect.getattr_static(estimator, "predict", None) is _SEARCH_PREDICT:
        check_is_fitted(estimator)
        if not hasattr(estimator, "best_estimator_"):
            raise TypeError(f"{name} needs refit=True to give certificates.")
        return _unwrapped(estimator.best_estimator_)
    if type(estimator) is CalibratedClassifierCV:
        check_is_fitted(estimator)
        return _uncalibrated(estimator)
    raise TypeError(
        f"{name} gives no certificates; pass a LipschitzClassifier, a Pipeline that ends in one, a "
        "fitted search over either, or a CalibratedClassifierCV of either with method='temperature'."
    )


def _uncalibrated(estimator: CalibratedClassifierCV) -> tuple[list[Any], Any, float]:
    calibrated = estimator.calibrated_classifiers_
    if len(calibrated) != 1 or calibrated[0].method != "temperature":
        raise TypeError(
            "CalibratedClassifierCV gives no certificates unless one temperature keeps the order of "
            f"the scores, got method={calibrated[0].method!r} and {len(calibrated)} calibrated "
            "classifiers; use method='temperature' and ensemble=False."
        )
    steps, classifier, inner = _unwrapped(calibrated[0].estimator)
    inverse_temperature = float(calibrated[0].calibrators[0].beta_)
    # fit finds values between exp(-10) and exp(10); far beyond, products overflow.
    if inner is not None or not 0 < inverse_temperature <= 1e12:
        raise TypeError(
            "CalibratedClassifierCV gives no certificates unless its one inverse temperature lies "
            f"between 0 and 1e12, got {inverse_temperature} over a classifier with {inner}."
        )
    if not np.array_equal(estimator.classes_, classifier.classes_):
        raise TypeError(
            "CalibratedClassifierCV gives no certificates if its classes are not those of its "
            f"classifier, got {estimator.classes_} and {classifier.classes_}."
        )
    return steps, classifier, inverse_temperature


def _fixed_mask(
    fixed_columns: Iterable[str | int], names: NDArray[Any] | None, n_columns: int
) -> NDArray[np.bool_]:
    fixed = np.zeros(n_columns, dtype=bool)
    if isinstance(fixed_columns, str | bytes) or not isinstance(fixed_columns, Iterable):
        raise ValueError(f"fixed_columns must be an iterable of columns, got {fixed_columns!r}.")
    known = {} if names is None else {name: position for position, name in enumerate(names)}
    for column in fixed_columns:
        position = known.get(column) if isinstance(column, str) else column
        if isinstance(position, bool) or not isinstance(position, int | np.integer):
            raise ValueError(
                "fixed_columns must be names of columns seen at fit, or positions, got "
                f"{column!r}; the names are {list(known)}."
            )
        if not 0 <= position < n_columns:
            raise ValueError(
                f"fixed_columns must be positions of at least 0 and below {n_columns}, got {column!r}."
            )
        fixed[position] = True
    if fixed.all():
        raise ValueError("fixed_columns must leave at least one column that can change.")
    return fixed


def _approach(
    steps: list[Any], X: Any, names: NDArray[Any] | None, fixed: NDArray[np.bool_]
) -> tuple[Any, Approach]:
    """Return what the steps make of X, and what is known of the way there."""
    # The bounds come first: a step that has none is refused before any work is done.
    precision = Precision.of(np.float64)
    known, reach = _walked(steps, fixed, precision)
    _check_columns(steps, X, names)
    # A scaler with copy=False overwrites what it is given, and so may any step on fixed columns: not
    # the caller's X.
    in_place = fixed.any() or not all(getattr(transformer, "copy", True) for transformer in steps)
    values, lengths, coarse = copy.deepcopy(X) if in_place else X, [], _has_float32(X)
    room: NDArray[np.float64] | float = math.inf
    for transformer, (step, before) in zip(steps, known, strict=True):
        rows = _numbers(values, names, step, before)
        names = None  # of the caller's columns
        missing = np.isnan(rows)
        room = np.where(missing.any(axis=1), 0.0, room)
        lengths.append(row_lengths_upper(np.where(missing, 0.0, rows)))
        if is_weighted(transformer) and not _all_floating(values):
            raise TypeError(
                f"{type(transformer).__name__} with transformer_weights may overflow on integers; "
                "convert X to floating point."
            )
        values = transformer.transform(values)
        coarse = coarse or _has_float32(values)
    if coarse:
        precision = Precision.of(np.float32)
        known, reach = _walked(steps, fixed, precision)
    # What the next step sees lies so far from where exact steps would put it: at x, and at an x' in the
    # ball, where it grows with the distance of x'.
    at_x: NDArray[np.float64] | float = 0.0
    nearby, growth = at_x, 0.0
    for (step, before), length in zip(known, lengths, strict=True):
        spread = before.bound + growth
        reached = length + at_x + nearby
        with np.errstate(divide="ignore", invalid="ignore"):
            left = (longest_step_input(step, precision) - reached) / spread
        room = np.minimum(room, np.where(np.isnan(left), 0.0, left))
        nearby = step.constant * nearby + step.error_slope * reached + step.error_offset
        at_x = step.constant * at_x + step.error_slope * length + step.error_offset
        growth = step.constant * growth + step.error_slope * spread
    up = 1 + 2.0**-40
    moved = (at_x + nearby) * up
    return values, Approach(reach.bound, reach.separate_factors, moved, growth * up, room)


def _walked(
    steps: list[Any], fixed: NDArray[np.bool_], precision: Precision
) -> tuple[list[tuple[Step, Reach]], Reach]:
    """Describe each step, with how far a change has come before it; and how far in the end."""
    reach, known = Reach.of_columns(len(fixed), fixed), []
    for transformer in steps:
        step, after = described(transformer, reach, precision)
        known.append((step, reach))
        reach = after
    return known, reach


def _numbers(values: Any, names: NDArray[Any] | None, step: Step, reach: Reach) -> NDArray[np.float64]:
    """Return the columns that a step reads; 0 for what is held fixed and no number."""
    if hasattr(values, "tocsr"):
        if not getattr(values, "has_canonical_format", True):
            raise ValueError(
                "sparse X must hold each entry once to be certified; pass a CSR matrix after "
                "X.sum_duplicates()."
            )
        # Of sparse rows the length is all that matters.
        return np.asarray(row_norms(values.astype(np.float64)))[:, None]
    reads = step.reads if isinstance(step, SideBySide) else None
    if hasattr(values, "columns") and names is not None:
        # By name, as scikit-learn's ColumnTransformer takes them: the order may be another.
        reads = np.arange(len(names)) if reads is None else reads
        missing = [name for name in names[reads] if name not in values.columns]
        if missing:
            raise ValueError(f"columns are missing: {missing}; X must have those seen at fit.")
        columns = [values[name] for name in names[reads]]
    else:
        rows = np.asarray(values)
        reads = np.arange(rows.shape[1]) if reads is None else reads
        columns = list(rows.T[reads])
    moves = np.ones(len(reads), dtype=bool) if reach.factors is None else reach.factors[reads] > 0
    numbers = np.zeros((len(values), len(reads)))
    for position, (column, moving) in enumerate(zip(columns, moves, strict=True)):
        try:
            numbers[:, position] = np.asarray(column, dtype=np.float64)
        except (TypeError, ValueError) as error:
            if moving:
                raise TypeError(
                    f"column {reads[position]} of X must hold floating-point numbers to be certified, "
                    f"got {column.dtype}; convert it, or name it in fixed_columns."
                ) from error
        if not moving:
            # What is missing stays missing.
            np.nan_to_num(numbers[:, position], copy=False, nan=0.0)
    return numbers


def _check_columns(steps: list[Any], X: Any, names: NDArray[Any] | None) -> None:
    """Only a ColumnTransformer goes by names: elsewhere another order is another row."""
    if names is None or not hasattr(X, "columns"):
        return
    columns = list(X.columns)
    if len(set(columns)) < len(columns):
        raise ValueError(f"columns of X must have different names, got {columns}.")
    by_name = steps and type(steps[0]) is ColumnTransformer
    if not by_name and columns != list(names):
        raise ValueError(
            f"columns of X must be those seen at fit in the same order, {list(names)}, got {columns}."
        )


def _dtypes(values: Any) -> set[str]:
    """Names of the types that occur, and those of NumPy's floats inside objects."""
    if hasattr(values, "columns"):
        objects = [values[name] for name in values.columns if values[name].dtype == object]
        found = {str(dtype).lower() for dtype in values.dtypes}
    else:
        array = values if hasattr(values, "tocsr") else np.asarray(values)
        objects, found = [array] if array.dtype == object else [], {str(array.dtype)}
    if isinstance(values, list | tuple):
        # Converted to the widest; scikit-learn may convert them apart.
        objects.append(np.asarray(values, dtype=object))
    inside = (value for column in objects for value in np.asarray(column, dtype=object).flat)
    return found | {value.dtype.name for value in inside if isinstance(value, np.floating)}


def _has_float32(values: Any) -> bool:
    """Whether any value is of single precision; half precision is refused."""
    found = " ".join(_dtypes(values))
    if "float16" in found:
        raise TypeError("certificates of a Pipeline need X of float32 or wider, got float16.")
    return "float32" in found


def _all_floating(values: Any) -> bool:
    return all("float" in name for name in _dtypes(values))
