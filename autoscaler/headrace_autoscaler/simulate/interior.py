"""An interior point method for linear programs whose rows touch only their neighbours in time.

Mehrotra's predictor-corrector method (SIAM J. Optimization 2, 1992) with upper bounds. The bins of the
lower bound's program are a chain, so its normal equations are a band a few entries wide (and one row
beside it, of the work that may be left undone), which is factorised in milliseconds: several times as fast
as a general solver. What it gives is the value of a dual solution, which by weak duality is a lower bound
however far the method got.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace_autoscaler.simulate.scenario import Floats

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

MAX_STEPS = 120
GAP = 1e-8
"""Relative, between the costs of the primal and the dual solution: then it is solved."""
INFEASIBILITY = 1e-7
_STEP = 0.995
"""Of the way to the boundary."""
_RIDGE = 1e-13
"""Relative to the greatest diagonal entry: rows that say (nearly) the same make no difference."""


@dataclass(frozen=True)
class Found:
    """Lower bound and cost of the last primal solution; ``solved``: they are equal, as numbers go."""

    bound: float
    cost: float
    x: Floats
    solved: bool


def minimise(
    cost: Floats, rows: csr_matrix, right: Floats, upper: Floats, *, most: Floats, bins: NDArray[np.intp]
) -> Found:
    """Minimise ``cost @ x`` with ``rows @ x <= right`` and ``0 <= x <= upper``.

    Args:
        cost: per column, none below 0.
        rows: the last one may have entries anywhere, the others only near columns of their own bin.
        right: per row.
        upper: per column, above 0; infinite: none.
        most: per column, finite: what an optimal solution does not exceed.
        bins: per row but the last; rows of far bins have no column in common.
    """
    from scipy import sparse  # noqa: PLC0415  (an optional extra; the caller has said so)

    order = np.append(np.argsort(bins, kind="stable"), rows.shape[0] - 1)
    matrix = sparse.hstack([rows[order], sparse.identity(rows.shape[0], format="csr")], format="csr")
    right = right[order]
    scale = float(cost.max()) or 1.0
    cost = np.concatenate([cost / scale, np.zeros(len(right))])
    upper = np.append(upper, np.full(len(right), np.inf))
    # A slack's reduced cost is not below 0 (`_Method.bound` sees to it), so its limit makes no difference.
    state = _Method(cost, matrix, right, upper, np.append(most, np.zeros(len(right))))
    best, at = -np.inf, np.inf
    for _ in range(MAX_STEPS):
        best = max(best, state.bound())
        at = float(cost @ state.x)
        if state.infeasibility() < INFEASIBILITY and at - best <= GAP * (1 + abs(at)):
            return Found(best * scale, at * scale, state.x[: len(most)], True)
        if not state.step():
            break
    return Found(best * scale, at * scale, state.x[: len(most)], False)


class _Method:
    def __init__(self, cost: Floats, matrix: Any, right: Floats, upper: Floats, most: Floats) -> None:
        self.cost, self.matrix, self.right, self.most = cost, matrix, right, most
        self.transposed = matrix.T.tocsr()
        self.bounded = np.isfinite(upper)
        usual = 1.0 + float(np.abs(right[:-1]).mean()) if len(right) > 1 else 1.0
        self.x = np.where(self.bounded, upper / 2, usual)
        self.s = np.where(self.bounded, upper - self.x, 1.0)
        self.y = np.zeros(len(right))
        self.z = np.ones(len(cost))
        self.w = np.where(self.bounded, 1.0, 0.0)
        self.count = len(cost) + int(self.bounded.sum())
        self.normal = _Band(matrix)

    def bound(self) -> float:
        """The value of the dual solution: each column's reduced cost at its best within 0 and ``most``."""
        y = np.minimum(self.y, 0.0)
        reduced = self.cost - self.transposed @ y
        return float(self.right @ y + np.minimum(reduced, 0.0) @ self.most)

    def infeasibility(self) -> float:
        """Of the primal solution, relative."""
        missing = np.abs(self.right - self.matrix @ self.x).max(initial=0.0)
        return float(missing / (1 + np.abs(self.right).max(initial=0.0)))

    def step(self) -> bool:
        """One predictor and corrector step; False: numbers do not allow any."""
        x, s, z, w = self.x, self.s, self.z, self.w
        diagonal = 1.0 / (z / x + w / s)
        if not self.normal.factorise(diagonal):
            return False
        primal = self.right - self.matrix @ x
        dual = self.cost - self.transposed @ self.y - z + w
        mean = float(x @ z + s @ w) / self.count

        def direction(xz: Floats, sw: Floats) -> tuple[Floats, Floats, Floats, Floats]:
            g = dual - xz / x + sw / s
            dy = self.normal.solve(primal + self.matrix @ (diagonal * g))
            dx = diagonal * (self.transposed @ dy - g)
            return dx, dy, (xz - z * dx) / x, np.where(self.bounded, (sw + w * dx) / s, 0.0)

        dx, _, dz, dw = direction(-x * z, -s * w)
        a, b = self._lengths(dx, dz, dw)
        after = float((x + a * dx) @ (z + b * dz) + (s - a * dx)[self.bounded] @ (w + b * dw)[self.bounded])
        centre = mean * (after / self.count / mean) ** 3
        dx, dy, dz, dw = direction(
            centre - x * z - dx * dz, np.where(self.bounded, centre - s * w + dx * dw, 0.0)
        )
        a, b = (min(1.0, _STEP * each) for each in self._lengths(dx, dz, dw))
        if not np.isfinite(a * b) or not np.isfinite(dx).all() or not np.isfinite(dy).all():
            return False
        self.x, self.s = x + a * dx, np.where(self.bounded, s - a * dx, 1.0)
        self.y, self.z, self.w = self.y + b * dy, z + b * dz, w + b * dw
        return True

    def _lengths(self, dx: Floats, dz: Floats, dw: Floats) -> tuple[float, float]:
        b = self.bounded
        primal = min(_length(self.x, dx), _length(self.s[b], -dx[b]))
        return primal, min(_length(self.z, dz), _length(self.w[b], dw[b]))


def _length(value: Floats, change: Floats) -> float:
    """How far one can go before anything is below 0."""
    falling = change < 0
    return min(1 / _STEP, float((-value[falling] / change[falling]).min(initial=np.inf)))


class _Band:
    """Solves (matrix @ diag(d) @ matrix.T) v = r, a band but for the last row and column."""

    def __init__(self, matrix: Any) -> None:
        from scipy import linalg, sparse  # noqa: PLC0415

        self._linalg = linalg
        chain, self._last = matrix[:-1], matrix[-1]
        self._chain, self._transposed = chain, chain.T.tocsr()
        by_column = chain.tocsc()
        # Each entry of the product is a sum over columns of products of two of the column's entries.
        counts = np.diff(by_column.indptr)
        lower, upper, column, value = [], [], [], []
        for size in np.unique(counts[counts > 0]).tolist():
            columns = np.flatnonzero(counts == size)
            at = by_column.indptr[columns][:, None] + np.arange(size)
            index, data = by_column.indices[at], by_column.data[at]
            for i in range(size):
                for j in range(size):
                    keep = index[:, i] >= index[:, j]
                    lower.append(index[keep, i])
                    upper.append(index[keep, j])
                    column.append(columns[keep])
                    value.append(data[keep, i] * data[keep, j])
        low, up = np.concatenate(lower), np.concatenate(upper)
        self._shape = (int((low - up).max(initial=0)) + 1, chain.shape[0])
        place = (low - up) * self._shape[1] + up
        self._sums = sparse.csr_matrix(
            (np.concatenate(value), (place, np.concatenate(column))),
            shape=(self._shape[0] * self._shape[1], matrix.shape[1]),
        )

    def factorise(self, diagonal: Floats) -> bool:
        """For these weights; False: it is not positive definite, as far as numbers go."""
        band = (self._sums @ diagonal).reshape(self._shape)
        band[0] += _RIDGE * band[0].max(initial=1.0)
        try:
            self._factor = self._linalg.cholesky_banded(band, lower=True, overwrite_ab=True)
        except (np.linalg.LinAlgError, ValueError):
            return False
        last = np.asarray(self._last.toarray()).ravel()
        self._beside = self._chain @ (diagonal * last)
        self._solved = self._linalg.cho_solve_banded((self._factor, True), self._beside)
        self._corner = float(last @ (diagonal * last) - self._beside @ self._solved)
        return bool(self._corner > 0)

    def solve(self, right: Floats) -> Floats:
        """The solution for the weights given last."""
        first = self._linalg.cho_solve_banded((self._factor, True), right[:-1])
        end = (right[-1] - self._beside @ first) / self._corner
        return np.append(first - end * self._solved, end)
