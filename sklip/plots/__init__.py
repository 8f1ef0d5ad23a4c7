"""Displays after scikit-learn's: compute, store, draw. matplotlib is imported here only, once asked.

* certified_accuracy: certified accuracy against eps.
* tradeoff, pareto: candidates of a search, against their parameter, and in a plane of both scores.
* certificate, certificate_images, certificate_rows: rows with what is proven of them.
* axes, words, checks, candidates: where to draw, what scores and units are called, what is given.
"""

from sklip.plots.certificate import CertificateDisplay
from sklip.plots.certified_accuracy import CertifiedAccuracyDisplay
from sklip.plots.pareto import ParetoDisplay
from sklip.plots.tradeoff import TradeoffDisplay

__all__ = ["CertificateDisplay", "CertifiedAccuracyDisplay", "ParetoDisplay", "TradeoffDisplay"]
