r"""What edits of categories cost a network, in its own units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from sklip.certification.wrappers import decider_of
from sklip.certified import Gains
from sklip.preprocessing.encoders import Reading, category_readings, known_values
from sklip.preprocessing.steps import flat_steps

__all__ = ["categorical_edit_lengths"]


def categorical_edit_lengths(estimator: Any) -> dict[str | int, float]:
    r"""How far one edit of each categorical column moves a row at most, as the network sees it.

    The largest L2 distance between what two known values of the column become after all steps before
    the classifier; exact where steps after the encoder leave its columns apart, else an upper bound. A
    row whose radius in these units is larger keeps its class under the edit, so an `eps` of the
    classifier of at least as much trains for one edit; edits of two columns add up to
    :math:`\sqrt{d_1^2 + d_2^2}` where steps after the encoders leave columns apart, and to
    :math:`d_1 + d_2` at most where one mixes them (PCA, say). In one-hot columns it is
    :math:`\sqrt 2`, whatever the columns of numbers are scaled to;
    ``transformer_weights={"categories": 0.5}`` of a ColumnTransformer halves it.

    Parameters
    ----------
    estimator : fitted estimator
        What :func:`sklip.certificates` takes, a ColumnTransformer, or a Pipeline that begins with one.

    Returns
    -------
    lengths : dict of str or int to float
        By name of the column, or by position where columns have none: L2, in the units of the
        classifier's input. Of the columns that encoders alone read.

    Raises
    ------
    TypeError
        For steps after an encoder without a proven bound, and estimators without certificates.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.compose import make_column_transformer
    >>> from sklearn.preprocessing import OneHotEncoder, StandardScaler
    >>> from sklip import categorical_edit_lengths
    >>> prepare = make_column_transformer((StandardScaler(), [0]), (OneHotEncoder(), [1]))
    >>> rows = np.array([[20.0, 0], [30.0, 1], [40.0, 2]])
    >>> lengths = categorical_edit_lengths(prepare.fit(rows))
    >>> {column: round(length, 4) for column, length in lengths.items()}
    {1: 1.4142}
    """
    steps = _steps_before_classifier(estimator)
    names = getattr(steps[0], "feature_names_in_", None) if steps else None
    n_columns = getattr(steps[0], "n_features_in_", 0) if steps else 0
    return {
        position if names is None else str(names[position]): _edit_length(readings)
        for position, readings in sorted(category_readings([steps], n_columns).items())
        if all(reading.by_encoder for reading in readings)
    }


def _steps_before_classifier(estimator: Any) -> Sequence[Any]:
    steps: Sequence[Any]
    if hasattr(estimator, "predict"):
        chains = decider_of(estimator).chains
        if len(chains) > 1:
            raise TypeError(
                f"{type(estimator).__name__} has {len(chains)} networks, each with units of its own; "
                "pass one of its members."
            )
        steps = chains[0].steps
    else:
        steps = list(flat_steps(estimator))
    for step in steps:
        check_is_fitted(step)
    return steps


def _edit_length(readings: Sequence[Reading]) -> float:
    """Return the largest distance between what known values of a column become."""
    values, parts, finished = known_values(readings), [], []
    for reading in readings:
        encodings = reading.encoded(values)
        finished.append(reading.finish(Gains.at_start(encodings.shape[1])))
        parts.append(finished[-1].carried(encodings))
    if all(gains.linear and gains.moves is not None for gains in finished):
        # Known values, in the same places for all readings.
        parts = [np.sum(parts, axis=0)]
    elif all(gains.sources is not None for gains in finished):
        # Of values that no step has mixed, in places of their own.
        parts = [np.concatenate(parts, axis=1)]
    # Else what one reading does adds to what the other does.
    longest = 0.0
    for i in range(len(values)):
        distances = [np.linalg.norm(rows[i + 1 :] - rows[i], axis=1) for rows in parts]
        longest = max(longest, float(np.max(np.sum(distances, axis=0), initial=0.0)))
    return longest
