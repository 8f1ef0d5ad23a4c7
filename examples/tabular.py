"""Certify the answers about a table of loans that mixes numbers and categories.

The table is made up: 2,000 applicants, their numbers and categories, and whether they repaid, which
depends on these and on luck. Prints what is proven of one applicant's answer, in words, and draws it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from sklip import (
    LipschitzClassifier,
    certificates,
    certified_accuracy_scorer,
    certified_ranges,
    counterfactual,
)

NUMBERS = ["income", "age", "loan", "years employed"]
CATEGORIES = ["job", "purpose"]
EPS = 0.25  # in standard deviations of each number


def loan_table(n_applicants: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Return applicants, numbered from 1, and whether each repaid."""
    rng = np.random.default_rng(0)
    age = rng.uniform(21, 65, n_applicants)
    employed = rng.uniform(0, 1, n_applicants) ** 2 * (age - 18)
    income = 26_000 * np.exp(rng.normal(0, 0.35, n_applicants)) + 500 * employed
    loan = 14_000 * np.exp(rng.normal(0, 0.5, n_applicants))
    table = pd.DataFrame(
        {
            "income": income.round(-2),
            "age": age.round(),
            "loan": loan.round(-2),
            "years employed": employed.round(1),
            "job": rng.choice(["clerk", "craftsman", "self-employed", "teacher"], n_applicants),
            "purpose": rng.choice(["business", "car", "house", "studies"], n_applicants),
        },
        index=pd.RangeIndex(1, n_applicants + 1, name="applicant"),
    )
    score = (
        (table["income"] - 33_000) / 8_000
        - (table["loan"] - 15_000) / 6_000
        + (table["years employed"] - 8) / 10
        - 0.5 * (table["job"] == "self-employed")
        - 0.5 * (table["purpose"] == "business")
    )
    luck = rng.logistic(0, 0.4, n_applicants)
    return table, np.where(score + luck > -0.5, "repaid", "defaulted")


def proven_range(value: float, reach: float) -> tuple[str, str]:
    """Return the ends of a range in words, rounded so that they lie inside; no number is negative."""
    low, high = max(value - reach, 0.0), value + reach
    digits = 0 if high > 1000 else 1
    low, high = np.ceil(low * 10**digits) / 10**digits, np.floor(high * 10**digits) / 10**digits
    return f"{low:,.{digits}f}", f"{high:,.{digits}f}"


def sentences(
    applicant: pd.Series, answer: str, ranges: pd.Series, together: float, whatever_purpose: float
) -> Iterator[str]:
    """Yield what is certified of one applicant, in words."""
    yield (
        f"Applicant {applicant.name}, {applicant['age']:.0f} years old, {applicant['job']}, employed "
        f"for {applicant['years employed']:g} years, earns {applicant['income']:,.0f} a year and asks "
        f"for {applicant['loan']:,.0f}. Purpose: {applicant['purpose']}."
    )
    yield f"\nThe answer is {answer!r}. It is proven to stay the same"
    for column in NUMBERS:
        low, high = proven_range(applicant[column], ranges[column])
        yield f"  * if only the number '{column}' changes, and stays between {low} and {high};"
    # Rounded down.
    together, whatever_purpose = (np.floor(100 * each) / 100 for each in (together, whatever_purpose))
    yield f"  * if all four numbers change together, by less than {together:.2f} standard deviations;"
    yield f"  * or by less than {whatever_purpose:.2f}, even if the purpose were another one as well."


def nearest_other(applicant: pd.Series, answer: str, distance: float) -> str:
    """Say in words who is the nearest with another answer, as far as one was found."""
    return (
        f"\nNot for ever: with an income of {applicant['income']:,.0f}, a loan of "
        f"{applicant['loan']:,.0f}, {applicant['age']:.1f} years of age and "
        f"{applicant['years employed']:.1f} years employed, at {distance:.2f} standard deviations, "
        f"the answer is {answer!r}."
    )


def draw(ax: plt.Axes, X: pd.DataFrame, applicant: pd.Series, ranges: pd.Series) -> None:
    """Draw a bar for each number: how far it may move alone, and where most applicants are."""
    mean, std = X[NUMBERS].mean(), X[NUMBERS].std()
    for place, column in enumerate(reversed(NUMBERS)):
        value, reach = applicant[column], ranges[column]
        marks = [max(value - reach, 0.0), value, value + reach, *X[column].quantile([0.05, 0.95])]
        left, middle, right, *usual = (np.array(marks) - mean[column]) / std[column]
        bar = ax.barh(place, right - left, left=left, height=0.3, color="tab:green", alpha=0.45)
        (point,) = ax.plot(middle, place, "o", color="black")
        (line,) = ax.plot(usual, [place - 0.27] * 2, color="0.55", linewidth=3, solid_capstyle="butt")
        low, high = proven_range(value, reach)
        label = {"textcoords": "offset points", "va": "center"}
        ax.annotate(low, (left, place), (-5, 0), ha="right", **label)
        ax.annotate(high, (right, place), (5, 0), ha="left", **label)
        ax.annotate(f"{value:,g}", (middle, place), (0, 16), ha="center", weight="bold", **label)
    ax.set_yticks(range(len(NUMBERS)), reversed(NUMBERS))
    ax.set_xlabel("standard deviations above the average applicant")
    ax.use_sticky_edges = False
    ax.margins(x=0.12, y=0.1)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.legend(
        [point, bar, line],
        ["this applicant", "same answer, proven, if this alone changes", "9 in 10 applicants"],
        loc="upper center",
        bbox_to_anchor=(0.45, -0.16),
        ncols=3,
        frameon=False,
    )


def main() -> None:
    """Fit, certify, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", default="tabular.png", help="where the picture goes")
    parser.add_argument("--applicant", type=int, default=81, help="whose answer is explained")
    arguments = parser.parse_args()

    X, y = loan_table(2000)
    X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.25, random_state=0)
    prepare = ColumnTransformer(
        [("numbers", StandardScaler(), NUMBERS), ("categories", OneHotEncoder(), CATEGORIES)],
        # Shorter steps from category to category: their edits cost less of the radius.
        transformer_weights={"categories": 0.5},
        sparse_threshold=0,
    )
    # Narrow layers weigh the columns; an orthogonal layer as wide as its input would treat all alike.
    model = make_pipeline(prepare, LipschitzClassifier(hidden_layer_sizes=(4,), random_state=0))
    model.fit(X_train, y_train)

    # Radii in standard deviations of the training data, as the numbers have units of their own.
    numbers_alone = {"fixed_columns": CATEGORIES, "scale": "std"}
    any_purpose = {"categorical_edits": 1, "categorical_columns": ["purpose"], "scale": "std"}
    ranges = certified_ranges(model, X_test, fixed_columns=CATEGORIES)
    together = pd.Series(certificates(model, X_test, **numbers_alone), X_test.index)
    whatever_purpose = pd.Series(certificates(model, X_test, **any_purpose), X_test.index)
    certified = certified_accuracy_scorer(eps=EPS, **numbers_alone)(model, X_test, y_test)
    print(
        f"{len(X_test)} applicants never seen: {model.score(X_test, y_test):.1%} answered right, "
        f"{certified:.1%} so that no change by {EPS} standard deviations could alter it.\n"
    )

    number = arguments.applicant
    if number not in X_test.index:
        parser.error(f"--applicant must be one never seen, such as {X_test.index[:5].tolist()}.")
    applicant, answer = X_test.loc[number], str(model.predict(X_test.loc[[number]])[0])
    words = sentences(applicant, answer, ranges.loc[number], together[number], whatever_purpose[number])
    print("\n".join(words))
    other = counterfactual(model, X_test.loc[[number]], **numbers_alone)
    print(nearest_other(other.X.iloc[0], str(other.labels[0]), other.distances[0]))

    figure, ax = plt.subplots(figsize=(9, 4), layout="constrained")
    draw(ax, X_train, applicant, ranges.loc[number])
    ax.set_title(f"Applicant {number}: how far a number may move with the answer still {answer!r}")
    figure.savefig(arguments.output, dpi=120)
    print(f"\npicture: {arguments.output}")


if __name__ == "__main__":
    main()
