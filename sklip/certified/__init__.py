"""Finished networks and what is proven of them; neither scikit-learn nor training is needed."""

# Imported for the rules that they register.
from sklip.certified import linear_rules, value_rules  # noqa: F401
from sklip.certified.arithmetic import Affine, Arithmetic
from sklip.certified.estimates import lipschitz_estimate
from sklip.certified.files import load_network, save_network
from sklip.certified.gains import Gains
from sklip.certified.maps import MapBound, exact
from sklip.certified.network import CertifiedNetwork
from sklip.certified.radii import Budget, certified_radii
from sklip.certified.rules import lipschitz_bound, register_layer

__all__ = [
    "Affine",
    "Arithmetic",
    "Budget",
    "CertifiedNetwork",
    "Gains",
    "MapBound",
    "certified_radii",
    "exact",
    "lipschitz_bound",
    "lipschitz_estimate",
    "load_network",
    "register_layer",
    "save_network",
]
