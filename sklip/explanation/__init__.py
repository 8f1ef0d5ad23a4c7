"""What an answer hangs on: the nearest rows with another one.

* counterfactuals: the public function.
* search: the way there, along gradients; it proves nothing.
* neighbours: rows whose columns of numbers are moved, their types kept.
"""

from sklip.explanation.counterfactuals import Counterfactuals, counterfactual

__all__ = ["Counterfactuals", "counterfactual"]
