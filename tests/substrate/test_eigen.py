from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from growtx.substrate import eigen
from growtx.substrate.eigen import Floats, leading_eigenvectors, ordered_sum

FINGERPRINT_PROGRAM = """
import hashlib, numpy as np
from growtx.substrate.glyph import principal_components
packed = np.random.RandomState(0).randint(0, 256, size=(300, 16), dtype=np.uint8)
print(hashlib.sha256(principal_components(packed, 100).tobytes()).hexdigest())
"""


def covariance(rows: int, columns: int, seed: int = 0) -> Floats:
    ink = (np.random.RandomState(seed).rand(rows, columns) < 0.3).astype(np.float64)
    ink -= ink.mean(axis=0)
    return np.asarray(ink.T @ ink)


@pytest.mark.parametrize(("rows", "columns"), [(500, 120), (40, 120), (3, 7), (1, 5), (9, 1)])
def test_eigenvectors_agree_with_lapack(rows: int, columns: int) -> None:
    matrix = covariance(rows, columns)
    values, vectors = leading_eigenvectors(matrix.copy(), columns)
    expected = np.maximum(np.linalg.eigvalsh(matrix)[::-1], 0.0)
    np.testing.assert_allclose(values, expected, atol=1e-12 * max(expected[0], 1.0))
    np.testing.assert_allclose(vectors * values @ vectors.T, matrix, atol=1e-12 * max(expected[0], 1.0))


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(-3, 3)))
def test_directions_with_variance_are_orthonormal_and_the_others_are_zero(factor: Floats) -> None:
    matrix = factor.T @ factor
    values, vectors = leading_eigenvectors(matrix.copy(), len(matrix))
    np.testing.assert_allclose(vectors.T @ vectors, np.diag((values > 0).astype(float)), atol=1e-10)
    np.testing.assert_allclose(vectors * values @ vectors.T, matrix, atol=1e-10 * max(1.0, values[0]))
    assert (values > 0).sum() == np.linalg.matrix_rank(matrix)


def test_equal_eigenvalues_get_orthogonal_vectors() -> None:
    values, vectors = leading_eigenvectors(np.kron(np.eye(10), np.ones((3, 3))), 30)
    np.testing.assert_allclose(values, [3.0] * 10 + [0.0] * 20, atol=1e-12)
    np.testing.assert_allclose(vectors[:, :10].T @ vectors[:, :10], np.eye(10), atol=1e-12)


def test_fewer_vectors_are_the_first_of_all() -> None:
    matrix = covariance(300, 60)
    all_vectors = leading_eigenvectors(matrix.copy(), 60)[1]
    np.testing.assert_array_equal(leading_eigenvectors(matrix.copy(), 7)[1], all_vectors[:, :7])


def test_the_number_of_threads_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = covariance(400, 150)
    monkeypatch.setattr(eigen, "BLOCK_BYTES", 8 * 150 * 10)
    one = leading_eigenvectors(matrix.copy(), 150)[1]
    monkeypatch.setattr(eigen, "PARALLEL_FROM", 1)
    np.testing.assert_array_equal(leading_eigenvectors(matrix.copy(), 150)[1], one)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 100])
def test_ordered_sum_is_the_sum(size: int) -> None:
    values = np.random.RandomState(1).rand(4, size)
    np.testing.assert_allclose(ordered_sum(values), values.sum(axis=1), rtol=1e-14)


def test_components_have_the_same_bits_on_other_processors() -> None:
    """Other kernels of BLAS and numpy than this processor would choose stand for other machines."""
    machines = [{"OPENBLAS_CORETYPE": "Prescott"}, {"NPY_DISABLE_CPU_FEATURES": "X86_V3"}, {"OMP_NUM_THREADS": "1"}]
    outputs = set()
    for machine in machines:
        process = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", FINGERPRINT_PROGRAM],
            env={**os.environ, **machine, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        )
        outputs.add(process.stdout.strip())
    assert len(outputs) == 1 and len(outputs.pop()) == hashlib.sha256().digest_size * 2
