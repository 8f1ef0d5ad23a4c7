"""What a scikit-learn user tries around a classifier: each line works, or is refused with a reason.

A line that works says by what it is seen to work; a line that is refused names the error and a part of
its message. Callbacks, scorers and other formats of files have tests of their own.
"""

import copy
import io
import pickle
from types import SimpleNamespace

import joblib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from scipy import sparse
from scipy.stats import loguniform
from sklearn import config_context
from sklearn.base import clone, is_classifier
from sklearn.calibration import CalibratedClassifierCV, CalibrationDisplay
from sklearn.compose import TransformedTargetRegressor, make_column_transformer
from sklearn.datasets import make_blobs
from sklearn.ensemble import AdaBoostClassifier, BaggingClassifier, StackingClassifier, VotingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.feature_selection import RFE, RFECV, SelectFromModel, SequentialFeatureSelector
from sklearn.frozen import FrozenEstimator
from sklearn.inspection import DecisionBoundaryDisplay, PartialDependenceDisplay, permutation_importance
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    ConfusionMatrixDisplay,
    DetCurveDisplay,
    PrecisionRecallDisplay,
    RocCurveDisplay,
    classification_report,
    make_scorer,
    matthews_corrcoef,
)
from sklearn.model_selection import (
    FixedThresholdClassifier,
    GridSearchCV,
    GroupKFold,
    HalvingGridSearchCV,
    HalvingRandomSearchCV,
    LearningCurveDisplay,
    LeaveOneOut,
    RandomizedSearchCV,
    TimeSeriesSplit,
    TunedThresholdClassifierCV,
    ValidationCurveDisplay,
    cross_val_predict,
    cross_val_score,
    cross_validate,
    learning_curve,
    permutation_test_score,
    validation_curve,
)
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier, OutputCodeClassifier
from sklearn.multioutput import ClassifierChain, MultiOutputClassifier
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.semi_supervised import SelfTrainingClassifier
from sklearn.utils import estimator_html_repr
from sklearn.utils.class_weight import compute_sample_weight

from sklip import LipschitzClassifier, certificates, certified_accuracy_scorer


def quick(**parameters):
    settings = {"max_epochs": 30, "hidden_layer_sizes": (8,), "random_state": 0, "device": "cpu"}
    return LipschitzClassifier(**settings | parameters)


@pytest.fixture(scope="module")
def its():
    """Three clouds of 30 points with four columns, and what was fitted to them."""
    X, y = make_blobs(90, 4, centers=3, cluster_std=1.0, random_state=0)
    X = (X - X.mean(0)) / X.std(0)
    two = y > 0
    frame = pd.DataFrame(X, columns=["a", "b", "c", "d"])
    for array in (X, y, two):
        array.flags.writeable = False
    return SimpleNamespace(
        X=X,
        y=y,
        two=two,
        words=np.array(["hen", "owl", "wren"])[y],
        frame=frame,
        clf=quick().fit(X, y),
        of_two=quick().fit(X, two),
        of_frame=quick().fit(frame, y),
        weight=np.random.default_rng(0).random(90),
    )


def good(estimator, X, y):
    """Whether a fit of a copy is right on most rows."""
    return clone(estimator).fit(X, y).score(X, y) > 0.8


def as_fitted(estimator, its, X):
    """Whether it decides as the classifier that was fitted to the plain arrays."""
    return np.array_equal(estimator.decision_function(X), its.clf.decision_function(its.X))


def drawn(display):
    """Whether there is a picture with something in it."""
    there = any(axes.has_data() for axes in display.figure_.axes)
    plt.close("all")
    return there


def set_(estimator, **parameters):
    return estimator.set_params(**parameters)


def fit_twice(its):
    clf = quick(warm_start=True, max_epochs=3).fit(its.X, its.y)
    return clf.fit(its.X, its.y).n_iter_ == 6


def fit_in_parts(its):
    clf = quick()
    for part in np.array_split(np.random.default_rng(0).permutation(90), 3):
        clf.partial_fit(its.X[part], its.y[part], classes=[0, 1, 2])
    return clf.n_iter_ == 3 and clf.predict(its.X).shape == (90,)


def read_only_file(its, folder):
    np.save(folder / "X.npy", its.X)
    return np.load(folder / "X.npy", mmap_mode="r")


def stored_by_joblib(its):
    file = io.BytesIO()
    joblib.dump(its.clf, file)
    file.seek(0)
    return joblib.load(file)


def routed(its):
    with config_context(enable_metadata_routing=True):
        clf = quick().set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        # The search inside: around a pipeline, scikit-learn 1.7 sends no weights to its score.
        pipeline = make_pipeline(
            StandardScaler().set_fit_request(sample_weight=False),
            GridSearchCV(clf, {"tau": [1.0, 3.0]}, cv=2),
        )
        return pipeline.fit(its.X, its.y, sample_weight=its.weight).score(
            its.X, its.y, sample_weight=its.weight
        )


def unrequested(its):
    with config_context(enable_metadata_routing=True):
        return cross_validate(quick(), its.X, its.y, cv=2, params={"sample_weight": its.weight})


def under(its, **settings):
    """Whether a pipeline is fitted as well with one of scikit-learn's settings."""
    with config_context(**settings):
        return good(make_pipeline(StandardScaler(), quick()), its.frame, its.y)


# What works: by what it is seen, given the fixture's values and a folder.
WORKS = {
    # Meta-estimators.
    "BaggingClassifier": lambda its, _: good(BaggingClassifier(quick(), 3), its.X, its.y),
    "BaggingClassifier, of columns": lambda its, _: good(
        BaggingClassifier(quick(), 3, max_features=0.5, random_state=0), its.X, its.y
    ),
    "AdaBoostClassifier": lambda its, _: good(
        AdaBoostClassifier(quick(), n_estimators=3), its.X, its.y
    ),
    "StackingClassifier": lambda its, _: good(
        StackingClassifier([("a", quick()), ("b", LogisticRegression())], cv=2), its.X, its.y
    ),
    "VotingClassifier, hard": lambda its, _: good(
        VotingClassifier([("a", quick()), ("b", LogisticRegression())]), its.X, its.y
    ),
    "VotingClassifier, soft": lambda its, _: good(
        VotingClassifier([("a", quick()), ("b", quick(tau=9.0))], voting="soft"), its.X, its.y
    ),
    "OneVsRestClassifier": lambda its, _: good(OneVsRestClassifier(quick()), its.X, its.y),
    "OneVsRestClassifier, multilabel": lambda its, _: good(
        OneVsRestClassifier(quick()), its.X, np.column_stack([its.two, its.y < 2]).astype(int)
    ),
    "OneVsOneClassifier": lambda its, _: good(OneVsOneClassifier(quick()), its.X, its.y),
    "OutputCodeClassifier": lambda its, _: good(
        OutputCodeClassifier(quick(), code_size=3, random_state=0), its.X, its.y
    ),
    "ClassifierChain": lambda its, _: good(
        ClassifierChain(quick()), its.X, np.column_stack([its.two, its.y < 2]).astype(int)
    ),
    "MultiOutputClassifier": lambda its, _: good(
        MultiOutputClassifier(quick()), its.X, np.column_stack([its.words, its.words])
    ),
    "CalibratedClassifierCV, sigmoid": lambda its, _: good(
        CalibratedClassifierCV(quick(), cv=2), its.X, its.y
    ),
    "CalibratedClassifierCV, isotonic": lambda its, _: good(
        CalibratedClassifierCV(quick(), method="isotonic", cv=2), its.X, its.two
    ),
    "CalibratedClassifierCV, temperature": lambda its, _: good(
        CalibratedClassifierCV(quick(), method="temperature", cv=2), its.X, its.words
    ),
    "CalibratedClassifierCV of FrozenEstimator": lambda its, _: good(
        CalibratedClassifierCV(FrozenEstimator(its.clf)), its.X, its.y
    ),
    "SelfTrainingClassifier": lambda its, _: (
        SelfTrainingClassifier(quick(), threshold=0.6)
        .fit(its.X, np.where(np.arange(90) % 3, its.y, -1))
        .score(its.X, its.y)
        > 0.8
    ),
    "FixedThresholdClassifier": lambda its, _: good(
        FixedThresholdClassifier(quick(), threshold=0.4), its.X, its.two
    ),
    "TunedThresholdClassifierCV": lambda its, _: good(
        TunedThresholdClassifierCV(quick(), cv=2), its.X, its.two
    ),
    "FrozenEstimator": lambda its, _: as_fitted(
        clone(FrozenEstimator(its.clf)).fit(its.X[:9], its.y[:9]), its, its.X
    ),
    "SequentialFeatureSelector": lambda its, _: (
        SequentialFeatureSelector(quick(max_epochs=5), n_features_to_select=1, cv=2)
        .fit_transform(its.X, its.y)
        .shape
        == (90, 1)
    ),
    "RFE by column_weights_": lambda its, _: (
        RFE(quick(max_epochs=5), n_features_to_select=3, importance_getter="column_weights_")
        .fit_transform(its.X, its.y)
        .shape
        == (90, 3)
    ),
    "SelectFromModel by column_weights_": lambda its, _: (
        SelectFromModel(quick(), importance_getter="column_weights_").fit_transform(its.X, its.y).shape
        == (90, 4)
    ),
    "Pipeline": lambda its, _: good(make_pipeline(StandardScaler(), quick()), its.X, its.y),
    "Pipeline with memory": lambda its, folder: good(
        make_pipeline(StandardScaler(), quick(), memory=str(folder)), its.X, its.y
    ),
    "ColumnTransformer before it": lambda its, _: good(
        make_pipeline(make_column_transformer((StandardScaler(), ["a", "b"])), quick()),
        its.frame,
        its.y,
    ),
    "FeatureUnion before it": lambda its, _: good(
        make_pipeline(FeatureUnion([("a", StandardScaler()), ("b", "passthrough")]), quick()),
        its.X,
        its.y,
    ),
    # Inspection.
    "permutation_importance": lambda its, _: (
        permutation_importance(
            its.clf, its.X, its.y, n_repeats=2, random_state=0
        ).importances_mean.max()
        > 0
    ),
    "permutation_importance of certified accuracy": lambda its, _: (
        permutation_importance(
            its.clf,
            its.X,
            its.y,
            scoring=certified_accuracy_scorer(eps=0.1),
            n_repeats=2,
            random_state=0,
        ).importances_mean.max()
        > 0
    ),
    "PartialDependenceDisplay": lambda its, _: drawn(
        PartialDependenceDisplay.from_estimator(its.of_frame, its.frame, ["a"], target=1)
    ),
    "DecisionBoundaryDisplay": lambda its, _: drawn(
        DecisionBoundaryDisplay.from_estimator(
            quick().fit(its.X[:, :2], its.y), its.X[:, :2], grid_resolution=10
        )
    ),
    "learning_curve": lambda its, _: np.isfinite(
        learning_curve(quick(), its.X, its.y, cv=2, train_sizes=[0.5, 1.0])[2]
    ).all(),
    "LearningCurveDisplay": lambda its, _: drawn(
        LearningCurveDisplay.from_estimator(quick(), its.X, its.y, cv=2, train_sizes=[0.5, 1.0])
    ),
    "validation_curve": lambda its, _: (
        validation_curve(quick(), its.X, its.y, param_name="tau", param_range=[1.0, 9.0], cv=2)[1].shape
        == (2, 2)
    ),
    "ValidationCurveDisplay": lambda its, _: drawn(
        ValidationCurveDisplay.from_estimator(
            quick(), its.X, its.y, param_name="tau", param_range=[1.0, 9.0], cv=2
        )
    ),
    "ConfusionMatrixDisplay": lambda its, _: drawn(
        ConfusionMatrixDisplay.from_estimator(its.clf, its.X, its.y)
    ),
    "RocCurveDisplay": lambda its, _: drawn(RocCurveDisplay.from_estimator(its.of_two, its.X, its.two)),
    "PrecisionRecallDisplay": lambda its, _: drawn(
        PrecisionRecallDisplay.from_estimator(its.of_two, its.X, its.two)
    ),
    "DetCurveDisplay": lambda its, _: drawn(DetCurveDisplay.from_estimator(its.of_two, its.X, its.two)),
    "CalibrationDisplay": lambda its, _: drawn(
        CalibrationDisplay.from_estimator(its.of_two, its.X, its.two)
    ),
    "classification_report": lambda its, _: (
        "wren" in classification_report(its.words, quick().fit(its.X, its.words).predict(its.X))
    ),
    # Searches.
    "GridSearchCV": lambda its, _: good(GridSearchCV(quick(), {"tau": [1.0, 9.0]}, cv=2), its.X, its.y),
    "GridSearchCV over architectures": lambda its, _: good(
        GridSearchCV(quick(), {"hidden_layer_sizes": [(), (8,), (8, 8)]}, cv=2), its.X, its.y
    ),
    "GridSearchCV over steps": lambda its, _: good(
        GridSearchCV(
            make_pipeline(StandardScaler(), quick()),
            {"lipschitzclassifier": [LogisticRegression(), quick()]},
            cv=2,
        ),
        its.X,
        its.y,
    ),
    "GridSearchCV by a metric": lambda its, _: np.isfinite(
        GridSearchCV(quick(), {"tau": [1.0, 9.0]}, cv=2, scoring=make_scorer(matthews_corrcoef))
        .fit(its.X, its.y)
        .best_score_
    ),
    "GridSearchCV by roc_auc_ovr and neg_log_loss": lambda its, _: np.isfinite(
        GridSearchCV(
            quick(), {"tau": [1.0, 9.0]}, cv=2, scoring=["roc_auc_ovr", "neg_log_loss"], refit=False
        )
        .fit(its.X, its.y)
        .cv_results_["mean_test_neg_log_loss"]
    ).all(),
    "GridSearchCV, nested": lambda its, _: (
        cross_val_score(GridSearchCV(quick(), {"tau": [1.0, 9.0]}, cv=2), its.X, its.y, cv=2).mean()
        > 0.7
    ),
    "RandomizedSearchCV": lambda its, _: good(
        RandomizedSearchCV(quick(), {"tau": [1.0, 3.0, 9.0]}, n_iter=2, cv=2, random_state=0),
        its.X,
        its.y,
    ),
    "HalvingGridSearchCV": lambda its, _: good(
        HalvingGridSearchCV(quick(), {"tau": [1.0, 3.0, 9.0]}, cv=2, min_resources=30, random_state=0),
        its.X,
        its.y,
    ),
    "HalvingRandomSearchCV over max_epochs": lambda its, _: good(
        HalvingRandomSearchCV(
            quick(),
            {"tau": loguniform(1.0, 9.0)},
            n_candidates=3,
            resource="max_epochs",
            min_resources=9,
            max_resources=27,
            cv=2,
            random_state=0,
        ),
        its.X,
        its.y,
    ),
    "cross_val_score, groups": lambda its, _: (
        cross_val_score(quick(), its.X, its.y, groups=np.arange(90) % 5, cv=GroupKFold(2)).mean() > 0.7
    ),
    "cross_val_score, in time": lambda its, _: (
        cross_val_score(quick(), its.X, its.y, cv=TimeSeriesSplit(2)).mean() > 0.7
    ),
    "cross_val_score, leave one out": lambda its, _: (
        cross_val_score(quick(max_epochs=3), its.X[:6], np.arange(6) % 2, cv=LeaveOneOut()).shape
        == (6,)
    ),
    "cross_val_predict": lambda its, _: (
        (cross_val_predict(quick(), its.X, its.y, cv=2) == its.y).mean() > 0.7
    ),
    "cross_val_predict of predict_proba": lambda its, _: np.allclose(
        cross_val_predict(quick(), its.X, its.y, cv=2, method="predict_proba").sum(1), 1
    ),
    "cross_validate, return_estimator": lambda its, _: (
        cross_validate(quick(), its.X, its.y, cv=2, return_estimator=True, return_train_score=True)[
            "estimator"
        ][1].lipschitz_bound_
        > 0
    ),
    "permutation_test_score": lambda its, _: (
        permutation_test_score(quick(), its.X, its.y, cv=2, n_permutations=3, random_state=0)[2] == 0.25
    ),
    # Storage and copies.
    "pickle": lambda its, _: as_fitted(pickle.loads(pickle.dumps(its.clf)), its, its.X),
    "joblib.dump": lambda its, _: as_fitted(stored_by_joblib(its), its, its.X),
    "joblib.hash": lambda its, _: joblib.hash(quick()) == joblib.hash(quick()),
    "copy.copy": lambda its, _: as_fitted(copy.copy(its.clf), its, its.X),
    "copy.deepcopy": lambda its, _: as_fitted(copy.deepcopy(its.clf), its, its.X),
    "clone": lambda its, _: not hasattr(clone(its.clf), "classes_"),
    # Inputs.
    "X a pandas DataFrame": lambda its, _: list(its.of_frame.feature_names_in_) == ["a", "b", "c", "d"],
    "X a polars DataFrame": lambda its, _: good(
        quick(), pl.from_numpy(its.X, schema=["a", "b", "c", "d"]), pl.Series(its.y)
    ),
    "X with columns of pandas' own types": lambda its, _: good(
        quick(), its.frame.astype("Float64"), pd.Series(its.y, dtype="Int64")
    ),
    "X a list of lists": lambda its, _: as_fitted(
        quick().fit(its.X.tolist(), its.y.tolist()), its, its.X.tolist()
    ),
    "X in float32": lambda its, _: good(quick(), its.X.astype(np.float32), its.y),
    "X in float16": lambda its, _: good(quick(), its.X.astype(np.float16), its.y),
    "X in longdouble": lambda its, _: as_fitted(
        quick().fit(its.X.astype(np.longdouble), its.y), its, its.X
    ),
    "X of whole numbers": lambda its, _: good(quick(), (10 * its.X).astype(int), its.y),
    "X of objects that are numbers": lambda its, _: as_fitted(
        quick().fit(its.X.astype(object), its.y), its, its.X.astype(object)
    ),
    "X read-only": lambda its, _: not its.X.flags.writeable and as_fitted(its.clf, its, its.X),
    "X in Fortran's order": lambda its, _: as_fitted(
        quick().fit(np.asfortranarray(its.X), its.y), its, np.asfortranarray(its.X)
    ),
    "X backwards in memory": lambda its, _: as_fitted(its.clf, its, its.X[::-1].copy()[::-1]),
    "X of the other byte order": lambda its, _: as_fitted(its.clf, its, its.X.astype(">f8")),
    "X a memmap": lambda its, folder: as_fitted(its.clf, its, read_only_file(its, folder)),
    "X a torch tensor": lambda its, _: as_fitted(
        quick().fit(torch.from_numpy(its.X.copy()), torch.from_numpy(its.y.copy())), its, its.X
    ),
    "X that needs a gradient": lambda its, _: as_fitted(
        its.clf, its, torch.tensor(its.X, requires_grad=True)
    ),
    "X of one row": lambda its, _: its.clf.predict(its.X[:1]).shape == (1,),
    "X of one column": lambda its, _: (
        quick().fit(its.X[:, :1], its.y).predict(its.X[:, :1]).shape == (90,)
    ),
    "X with a column that never changes": lambda its, _: good(
        quick(), np.column_stack([its.X, np.ones(90)]), its.y
    ),
    "X gray images": lambda its, _: (
        quick(conv_channels=(4,)).fit(its.X.reshape(90, 2, 2), its.y).input_shape_ == (1, 2, 2)
    ),
    "y words": lambda its, _: set(quick().fit(its.X, its.words).predict(its.X)) == set(its.words),
    "y words, as objects": lambda its, _: good(quick(), its.X, its.words.astype(object)),
    "y bool": lambda its, _: its.of_two.predict(its.X).dtype == bool,
    "y floats that are whole": lambda its, _: good(quick(), its.X, its.y.astype(float)),
    "y of a category type": lambda its, _: good(quick(), its.X, pd.Series(its.words, dtype="category")),
    "y with a class of one row": lambda its, _: (
        len(quick().fit(its.X, np.where(np.arange(90) < 1, 9, its.y)).classes_) == 4
    ),
    # Parameters, weights, going on.
    "get_params, set_params": lambda its, _: set_(quick(), tau=7.0).get_params()["tau"] == 7.0,
    "set_params after fit keeps the model": lambda its, _: as_fitted(
        set_(copy.deepcopy(its.clf), tau=50.0), its, its.X
    ),
    "sample_weight": lambda its, _: np.allclose(
        quick().fit(its.X, its.y, sample_weight=np.arange(90) < 60).decision_function(its.X),
        quick().fit(its.X[:60], its.y[:60]).decision_function(its.X),
    ),
    "score with sample_weight": lambda its, _: 0.7 < its.clf.score(its.X, its.y, its.weight) <= 1,
    "class_weight balanced": lambda its, _: np.allclose(
        quick(class_weight="balanced").fit(its.X[:50], its.y[:50]).decision_function(its.X),
        quick()
        .fit(its.X[:50], its.y[:50], compute_sample_weight("balanced", its.y[:50]))
        .decision_function(its.X),
    ),
    "class_weight of words": lambda its, _: good(
        quick(class_weight={"hen": 2.0, "owl": 1.0, "wren": 1.0}), its.X, its.words
    ),
    "partial_fit": lambda its, _: fit_in_parts(its),
    "warm_start": lambda its, _: fit_twice(its),
    "fit again forgets": lambda its, _: as_fitted(
        quick().fit(its.X[:, :2], its.two).fit(its.X, its.y), its, its.X
    ),
    "random_state of one kind or another": lambda its, _: (
        good(quick(random_state=np.random.RandomState(0)), its.X, its.y)
        and good(quick(random_state=None), its.X, its.y)
    ),
    # What surrounds it.
    "repr": lambda its, _: repr(LipschitzClassifier(tau=7.0)) == "LipschitzClassifier(tau=7.0)",
    "HTML repr": lambda its, _: (
        "LipschitzClassifier" in estimator_html_repr(make_pipeline(StandardScaler(), its.clf))
    ),
    "is_classifier, tags": lambda its, _: (
        is_classifier(its.clf) and not its.clf.__sklearn_tags__().input_tags.sparse
    ),
    "set_output of the steps before it": lambda its, _: good(
        make_pipeline(StandardScaler(), quick()).set_output(transform="pandas"), its.frame, its.y
    ),
    "metadata routing": lambda its, _: routed(its) > 0.7,
    "assume_finite": lambda its, _: under(its, assume_finite=True),
    "transform_output": lambda its, _: under(its, transform_output="pandas"),
    "working_memory": lambda its, _: under(its, working_memory=1),
    "certificates of a search in a pipeline": lambda its, _: (
        certificates(
            make_pipeline(StandardScaler(), GridSearchCV(quick(), {"tau": [1.0, 9.0]}, cv=2)).fit(
                its.X, its.y
            ),
            its.X,
        ).shape
        == (90,)
    ),
}

# What is refused: what is tried, the error, and a part of its message.
REFUSED = {
    "RFE by coef_": (
        lambda its: RFE(quick(max_epochs=2)).fit(its.X, its.y),
        (ValueError, r"`importance_getter=='auto'`.*`coef_` or `feature_importances_`"),
    ),
    "RFECV by coef_": (
        lambda its: RFECV(quick(max_epochs=2), cv=2).fit(its.X, its.y),
        (ValueError, "importance_getter"),
    ),
    "SelectFromModel by coef_": (
        lambda its: SelectFromModel(quick(max_epochs=2)).fit_transform(its.X, its.y),
        (ValueError, "importance_getter"),
    ),
    "TransformedTargetRegressor": (
        lambda its: TransformedTargetRegressor(quick()).fit(its.X, its.X[:, 0]),
        (ValueError, "Unknown label type: continuous"),
    ),
    "certificates of BaggingClassifier": (
        lambda its: certificates(BaggingClassifier(quick(max_epochs=2), 2).fit(its.X, its.y), its.X),
        (TypeError, "BaggingClassifier gives no certificates"),
    ),
    "certificates of a step without a rule": (
        lambda its: certificates(
            make_pipeline(FunctionTransformer(np.sin), quick(max_epochs=2)).fit(its.X, its.y), its.X
        ),
        (TypeError, "FunctionTransformer"),
    ),
    "certificates of another classifier": (
        lambda its: certificates(LogisticRegression().fit(its.X, its.y), its.X),
        (TypeError, "LogisticRegression gives no certificates"),
    ),
    "predict before fit": (lambda its: quick().predict(its.X), (NotFittedError, "not fitted yet")),
    "X sparse": (
        lambda its: quick().fit(sparse.csr_array(its.X), its.y),
        (TypeError, r"Sparse data was passed for X, but dense data is required.*toarray"),
    ),
    "X with words": (
        lambda its: quick().fit(its.words[:, None], its.y),
        (ValueError, "not compatible with arrays of bytes/strings"),
    ),
    "X with a gap": (
        lambda its: quick().fit(np.where(its.X > 1, np.nan, its.X), its.y),
        (ValueError, "Input X contains NaN"),
    ),
    "X with a mask": (
        lambda its: quick().fit(np.ma.masked_greater(its.X, 1), its.y),
        (ValueError, "masked values"),
    ),
    "X of dates": (
        lambda its: quick().fit(its.y.astype("datetime64[D]")[:, None], its.y),
        (ValueError, "X must hold numbers, got datetime64"),
    ),
    "X complex": (lambda its: quick().fit(its.X + 1j, its.y), (ValueError, "Complex data")),
    "X of one row, without its axis": (
        lambda its: its.clf.predict(its.X[0]),
        (ValueError, r"Expected 2D array, got 1D array.*reshape\(1, -1\)"),
    ),
    "X with a column less": (
        lambda its: its.clf.predict(its.X[:, :3]),
        (ValueError, "X has 3 features, but LipschitzClassifier is expecting 4"),
    ),
    "X with other names": (
        lambda its: its.of_frame.predict(its.frame.rename(columns={"a": "z"})),
        (ValueError, "feature names should match"),
    ),
    "X with names in another order": (
        lambda its: its.of_frame.predict(its.frame[["b", "a", "c", "d"]]),
        (ValueError, "must be in the same order"),
    ),
    "X without names after names": (
        lambda its: its.of_frame.predict(its.X),
        (UserWarning, "X does not have valid feature names"),
    ),
    "y of one class": (
        lambda its: quick().fit(its.X, np.zeros(90)),
        (ValueError, "at least 2 classes in the data, but the data contains only one class"),
    ),
    "y continuous": (lambda its: quick().fit(its.X, its.X[:, 0]), (ValueError, "Unknown label type")),
    "y with None": (
        lambda its: quick().fit(its.X, [None, *its.words[1:]]),
        (ValueError, "y contains NaN or None"),
    ),
    "y of words and numbers": (
        lambda its: quick().fit(its.X, [1, *its.words[1:]]),
        (ValueError, "labels of one kind"),
    ),
    "y of objects that are numbers": (
        lambda its: quick().fit(its.X, its.y.astype(object)),
        (ValueError, "Unknown label type: .*numbers of type object"),
    ),
    "y of two columns": (
        lambda its: quick().fit(its.X, np.column_stack([its.y, its.y])),
        (ValueError, r"y should be a 1d array, got an array of shape \(90, 2\)"),
    ),
    "y a column": (
        lambda its: quick().fit(its.X, its.y[:, None]),
        (UserWarning, "A column-vector y was passed"),
    ),
    "no y": (lambda its: quick().fit(its.X, None), (ValueError, "requires y to be passed")),
    "set_params of an unknown name": (
        lambda its: quick().set_params(temperature=1.0),
        (ValueError, "Invalid parameter 'temperature'"),
    ),
    "a parameter out of range": (
        lambda its: quick(tau=-1.0).fit(its.X, its.y),
        (ValueError, "The 'tau' parameter of LipschitzClassifier must be"),
    ),
    "GridSearchCV with one bad candidate": (
        lambda its: GridSearchCV(quick(max_epochs=2), {"tau": [-1.0, 1.0]}, cv=2).fit(its.X, its.y),
        (RuntimeWarning, r"2 fits failed out of a total of 4.*The 'tau' parameter"),
    ),
    "set_output of the classifier": (
        lambda its: quick().set_output(transform="pandas"),
        (AttributeError, "set_output"),
    ),
    "transform of the classifier": (
        lambda its: its.clf.transform(its.X),
        (AttributeError, "transform"),
    ),
    "coef_ of the classifier": (lambda its: its.clf.coef_, (AttributeError, "coef_")),
    "metadata that nobody requested": (
        unrequested,
        (ValueError, "sample_weight.*are passed but are not explicitly set as requested"),
    ),
    "partial_fit without classes": (
        lambda its: quick().partial_fit(its.X, its.y),
        (ValueError, "classes must be passed on the first call to partial_fit"),
    ),
    "partial_fit with a new label": (
        lambda its: copy.deepcopy(its.clf).partial_fit(its.X, its.y + 1),
        (ValueError, "y contains labels that are not in classes"),
    ),
    "warm_start with other widths": (
        lambda its: (
            quick(warm_start=True)
            .fit(its.X, its.y)
            .set_params(hidden_layer_sizes=(6,))
            .fit(its.X, its.y)
        ),
        (ValueError, "hidden_layer_sizes can't change while training goes on"),
    ),
    "ROC curve of three classes": (
        lambda its: RocCurveDisplay.from_estimator(its.clf, its.X, its.y),
        (ValueError, "binary"),
    ),
}


@pytest.mark.parametrize("line", WORKS)
def test_works(line, its, tmp_path):
    assert WORKS[line](its, tmp_path)


@pytest.mark.parametrize("line", REFUSED)
def test_is_refused_with_a_reason(line, its):
    attempt, (error, message) = REFUSED[line]
    with pytest.raises(error, match=f"(?s){message}"):
        attempt(its)
