"""Ridge regression in closed form: one decomposition of the states gives the maps for all penalties and targets.

The states are standardised with the means and deviations of the fit, and the targets are centred, so that no penalty
is put on the intercept. With standardised states X [P, D], targets Y [P, V] and the penalty p, the weights W minimise
``mean over P of |X W - Y|² + p |W|²``.

Source: A. E. Hoerl and R. W. Kennard, "Ridge regression: biased estimation for nonorthogonal problems", Technometrics
12 (1970), 55-67.
"""

import numpy
from numpy.typing import NDArray

Floats = NDArray[numpy.float64]


class RidgeFit:
    """The states [P, D] of a fit; from ``scores``, the map to any targets."""

    def __init__(self, states: Floats) -> None:
        self._mean, deviation = states.mean(axis=0), states.std(axis=0)
        # A component that never varies is 0 once the mean is subtracted.
        self._scale = numpy.where(deviation > 0, deviation, 1.0)
        left, self._sizes, self._right = numpy.linalg.svd(self._standardised(states), full_matrices=False)
        self._left = left.T

    def scores(self, states: Floats, targets: Floats, penalty: float) -> Floats:
        """[Q, V] the map's scores of other states.

        Args:
            states: [Q, D] the states.
            targets: [P, V] the targets of the fit.
            penalty: see the module; more than 0.
        """
        mean = targets.mean(axis=0)
        shrunk = self._sizes / (self._sizes**2 + penalty * len(targets))
        weights = self._right.T @ (shrunk[:, None] * (self._left @ (targets - mean)))
        scores: Floats = self._standardised(states) @ weights + mean
        return scores

    def _standardised(self, states: Floats) -> Floats:
        standardised: Floats = (states - self._mean) / self._scale
        return standardised
