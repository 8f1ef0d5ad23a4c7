"""Certificates of whole estimators, in the units of their own input.

* chains: steps with the network behind them, and what that sees of rows.
* deciders, voting: ways of deciding on a class by what networks compute, each with what it certifies.
* wrappers: from a fitted estimator to how it decides.
* radii, ranges, rejection, categories, out_of_fold: the public functions.
"""

from sklip.certification.categories import categorical_edit_lengths
from sklip.certification.out_of_fold import cross_val_certificates
from sklip.certification.radii import certificates, nearest_rival, predict_with_radii
from sklip.certification.ranges import certified_ranges
from sklip.certification.rejection import predict_or_reject
from sklip.certification.wrappers import register_wrapper

__all__ = [
    "categorical_edit_lengths",
    "certificates",
    "certified_ranges",
    "cross_val_certificates",
    "nearest_rival",
    "predict_or_reject",
    "predict_with_radii",
    "register_wrapper",
]
