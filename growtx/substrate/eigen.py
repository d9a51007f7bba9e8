"""Eigenvectors of a symmetric matrix with the same bits on every machine.

LAPACK's last bits depend on the processor and the number of threads, and a substrate must be rebuilt exactly from
its recipe. Everything here is element-wise IEEE arithmetic and sums in a fixed order, which no processor, library
or thread count can change; no dot product is left to BLAS. The method is the textbook one (Golub & Van Loan,
"Matrix Computations", chapter 8): Householder tridiagonalisation, bisection with Sturm counts, inverse iteration,
and the reflections applied backwards.

Legend: N order of the matrix, K eigenvalues wanted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

BLOCK_BYTES = 1 << 20  # of matrix rows worked on at once: they stay in the cache of a core
PARALLEL_FROM = 2048
BISECTIONS = 60
INVERSE_ITERATIONS = 3
CLUSTER_GAP = 1e-9  # eigenvalues closer than this (relative to the largest) get orthogonalised eigenvectors


def leading_eigenvectors(matrix_NN: Floats, num_vectors: int) -> tuple[Floats, Floats]:
    """The largest eigenvalues of a symmetric positive semidefinite matrix and their eigenvectors.

    Args:
        matrix_NN: overwritten.
        num_vectors: K, at most N.

    Returns:
        Eigenvalues [K], descending, and orthonormal eigenvectors as columns [N, K], each with the sign that makes
        its largest entry positive. Directions without any variance have eigenvalue 0 and a column of zeros.
    """
    order = len(matrix_NN)
    diagonal, off_diagonal, reflectors = _tridiagonalize(matrix_NN)
    scale = max(float(np.abs(diagonal).max()), float(np.abs(off_diagonal).max(initial=0.0)))
    values = _bisect(diagonal, off_diagonal, np.arange(order - 1, order - 1 - num_vectors, -1))
    rank = int((values > order * 1e-14 * scale).sum())
    vectors = np.zeros((order, num_vectors))
    tridiagonal_vectors = _inverse_iteration(diagonal, off_diagonal, values[:rank], scale)
    vectors[:, :rank] = _reflect_back(reflectors, tridiagonal_vectors)
    values[rank:] = 0.0
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[None], axis=0)
    return values, np.where(largest < 0, -vectors, vectors)


def ordered_sum(values: Floats) -> Floats:
    """Sum over the last axis by halving it, so that the order of additions is the same everywhere."""
    while values.shape[-1] > 1:
        half = values.shape[-1] // 2
        paired = values[..., :half] + values[..., half : 2 * half]
        odd = values[..., 2 * half :]
        values = np.concatenate([paired, odd], axis=-1) if odd.shape[-1] else paired
    return values[..., 0]


def _tridiagonalize(matrix: Floats) -> tuple[Floats, Floats, Floats]:
    """Diagonal [N], off-diagonal [N - 1] and reflectors [N, N]: row k holds v of H = I - v v^T, zero up to k.

    The rank-two update of each step is carried out while the next step multiplies, in one pass over the matrix.
    """
    order = len(matrix)
    diagonal, off_diagonal = np.zeros(order), np.zeros(max(order - 1, 0))
    reflectors = np.zeros((order, order))
    v_old, w_old = np.zeros(order), np.zeros(order)
    with _workers(order) as workers:
        for step in range(order - 1):
            row = matrix[step, step:] - (v_old[step] * w_old[step:] + w_old[step] * v_old[step:])
            diagonal[step] = row[0]
            v, off_diagonal[step] = _householder(row[1:])
            reflectors[step, step + 1 :] = v
            rest = slice(step + 1, order)
            p = _update_and_multiply(matrix[rest, rest], v_old[rest], w_old[rest], v, workers)
            v_old[rest], w_old[rest] = v, p - 0.5 * ordered_sum(v * p) * v
    diagonal[-1] = matrix[-1, -1] - 2 * v_old[-1] * w_old[-1]
    return diagonal, off_diagonal, reflectors


def _householder(column: Floats) -> tuple[Floats, float]:
    """v with |v|^2 = 2 such that (I - v v^T) column = (value, 0, 0, ...), and that value."""
    largest = float(np.abs(column).max())
    v = np.zeros_like(column)
    if largest == 0.0:
        return v, 0.0
    scaled = column / largest
    norm = float(np.sqrt(ordered_sum(scaled * scaled)))
    head = scaled[0] + (norm if scaled[0] >= 0 else -norm)
    v[:] = scaled
    v[0] = head
    v /= np.sqrt(norm * (norm + abs(scaled[0])))
    return v, float((-norm if scaled[0] >= 0 else norm) * largest)


def _update_and_multiply(
    matrix: Floats, v_old: Floats, w_old: Floats, v: Floats, workers: ThreadPoolExecutor
) -> Floats:
    """matrix -= v_old w_old^T + w_old v_old^T, then matrix @ v; both row block by row block."""
    order = len(matrix)
    height = max(1, BLOCK_BYTES // (8 * order))

    def block_product(start: int) -> Floats:
        rows = slice(start, start + height)
        block = matrix[rows]
        change = np.multiply.outer(v_old[rows], w_old)
        block -= change
        block -= np.multiply.outer(w_old[rows], v_old, out=change)
        np.multiply(block, v[rows, None], out=change)
        return np.asarray(change.sum(axis=0))  # row after row, in order

    partial = workers.map(block_product, range(0, order, height))
    return _sum_in_order(partial, order)


def _sum_in_order(parts: Iterable[Floats], size: int) -> Floats:
    total = np.zeros(size)
    for part in parts:
        total += part
    return total


def _bisect(diagonal: Floats, off_diagonal: Floats, ranks: NDArray[np.intp]) -> Floats:
    """Eigenvalues of the tridiagonal matrix with the given ranks in ascending order [K]."""
    radius = np.zeros_like(diagonal)
    radius[:-1] += np.abs(off_diagonal)
    radius[1:] += np.abs(off_diagonal)
    low = np.full(len(ranks), (diagonal - radius).min())
    high = np.full(len(ranks), (diagonal + radius).max())
    squares = off_diagonal * off_diagonal
    smallest = float(np.finfo(np.float64).smallest_normal) * max(1.0, float(squares.max(initial=0.0)))
    middle: Floats = 0.5 * (low + high)
    for _ in range(BISECTIONS):
        below = _count_below(diagonal, squares, middle, smallest) > ranks
        high, low = np.where(below, middle, high), np.where(below, low, middle)
        middle = 0.5 * (low + high)
    return middle


def _count_below(diagonal: Floats, squares: Floats, shifts: Floats, smallest: float) -> NDArray[np.int64]:
    """How many eigenvalues are smaller than each shift: negative pivots of T - shift (Sturm)."""
    count = np.zeros(len(shifts), dtype=np.int64)
    pivot = np.ones_like(shifts)
    for row, entry in enumerate(diagonal):
        correction = squares[row - 1] / pivot if row else 0.0
        pivot = entry - shifts - correction
        pivot[np.abs(pivot) < smallest] = -smallest
        count += pivot < 0
    return count


def _inverse_iteration(diagonal: Floats, off_diagonal: Floats, values: Floats, scale: float) -> Floats:
    """Eigenvectors of the tridiagonal matrix for its eigenvalues, all at once [N, K]."""
    solver = _ShiftedSolver(diagonal, off_diagonal, values, smallest=np.finfo(np.float64).eps * scale)
    vectors: Floats = np.random.RandomState(0).uniform(0.5, 1.5, size=(len(diagonal), len(values)))
    clusters = list(_clusters(values, scale))
    for _ in range(INVERSE_ITERATIONS):
        vectors = solver.solve(vectors)
        vectors /= np.abs(vectors).max(axis=0)
        vectors /= np.sqrt(ordered_sum((vectors * vectors).T))
        for cluster in clusters:
            _orthogonalize(vectors, cluster)
    return vectors


def _clusters(values: Floats, scale: float) -> Iterator[range]:
    """Runs of descending eigenvalues that are too close for inverse iteration to tell apart."""
    start = 0
    for end in range(1, len(values) + 1):
        if end == len(values) or values[end - 1] - values[end] > CLUSTER_GAP * scale:
            if end - start > 1:
                yield range(start, end)
            start = end


def _orthogonalize(vectors: Floats, columns: range) -> None:
    """Gram-Schmidt; twice is enough."""
    for column in columns:
        earlier, vector = vectors[:, columns.start : column], vectors[:, column].copy()
        for _ in range(2):
            shares = ordered_sum((earlier * vector[:, None]).T)
            vector -= ordered_sum(earlier * shares) if len(shares) else 0.0
        vectors[:, column] = vector / np.sqrt(ordered_sum(vector * vector))


class _ShiftedSolver:
    """Solves (T - shift) x = y for many shifts at once: Gaussian elimination with partial pivoting."""

    def __init__(self, diagonal: Floats, off_diagonal: Floats, shifts: Floats, smallest: float) -> None:
        order, count = len(diagonal), len(shifts)
        self.upper = np.zeros((3, order, count))  # of the eliminated matrix: diagonal and two above it
        self.factor = np.zeros((order, count))
        self.swapped = np.zeros((order, count), dtype=bool)
        current = diagonal[0] - shifts, np.full(count, off_diagonal[0] if order > 1 else 0.0)
        for row in range(order - 1):
            beyond = off_diagonal[row + 1] if row + 2 < order else 0.0
            below = np.full(count, off_diagonal[row]), diagonal[row + 1] - shifts
            swap = np.abs(below[0]) > np.abs(current[0])
            pivot = _away_from_zero(np.where(swap, below[0], current[0]), smallest)
            second, third = np.where(swap, below[1], current[1]), np.where(swap, beyond, 0.0)
            factor = np.where(swap, current[0], below[0]) / pivot
            self.upper[:, row] = pivot, second, third
            self.factor[row], self.swapped[row] = factor, swap
            current = (
                np.where(swap, current[1], below[1]) - factor * second,
                np.where(swap, 0.0, beyond) - factor * third,
            )
        self.upper[0, -1] = _away_from_zero(current[0], smallest)

    def solve(self, right: Floats) -> Floats:
        """x [N, K] for the right-hand sides [N, K], one column per shift."""
        order = len(right)
        solution = right.copy()
        for row in range(order - 1):
            here, below, swap = solution[row].copy(), solution[row + 1], self.swapped[row]
            solution[row] = np.where(swap, below, here)
            solution[row + 1] = np.where(swap, here, below) - self.factor[row] * solution[row]
        for row in range(order - 1, -1, -1):
            for distance in range(1, min(3, order - row)):
                solution[row] -= self.upper[distance, row] * solution[row + distance]
            solution[row] /= self.upper[0, row]
        return solution


def _away_from_zero(values: Floats, smallest: float) -> Floats:
    return np.where(np.abs(values) < smallest, smallest, values)


def _reflect_back(reflectors: Floats, vectors: Floats) -> Floats:
    """Eigenvectors of the full matrix from those of the tridiagonal one; column blocks are independent."""
    order, count = vectors.shape
    width = max(2, BLOCK_BYTES // (8 * order))

    def reflected(start: int) -> Floats:
        block = vectors[:, start : start + width].copy()
        for step in range(order - 2, -1, -1):
            v, rows = reflectors[step, step + 1 :, None], block[step + 1 :]
            change = v * rows
            rows -= np.multiply(v, change.sum(axis=0), out=change)
        return block

    if not count:
        return vectors
    with _workers(order) as workers:
        return np.concatenate(list(workers.map(reflected, range(0, count, width))), axis=1)


def _workers(order: int) -> ThreadPoolExecutor:
    """Threads for a matrix whose steps are long enough to share; how many there are changes no bit."""
    return ThreadPoolExecutor(os.cpu_count() if order >= PARALLEL_FROM else 1)
