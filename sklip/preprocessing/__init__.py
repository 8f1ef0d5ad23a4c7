"""What is proven of fitted scikit-learn transformers, and of rows on their way through them."""

from sklip.preprocessing import monotone_rules  # registers its rules
from sklip.preprocessing.rules import register_transformer
from sklip.preprocessing.steps import transformer_bound

__all__ = ["monotone_rules", "register_transformer", "transformer_bound"]
