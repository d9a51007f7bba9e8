"""Finished substrate matrices, kept by what they were made from and named by what they are.

A file is called after the hash of its recipe and the fingerprint of its content, so that a damaged one is noticed
and made again. The folder may be local or any fsspec URL.
"""

from __future__ import annotations

import io
import uuid
from collections.abc import Callable
from typing import Any

import fsspec
import numpy as np
from numpy.typing import NDArray

from growtx.config import fingerprint
from growtx.exceptions import SubstrateError

Matrix = NDArray[np.float32]
Identify = Callable[[dict[str, Any], Matrix], str]


def cached(cache_dir: str, recipe: dict[str, Any], identify: Identify, make: Callable[[], Matrix]) -> Matrix:
    """The matrix of a recipe: from the cache if it is there and intact, else made and put there.

    Raises:
        SubstrateError: if the cache cannot be written.
    """
    filesystem, folder = fsspec.core.url_to_fs(cache_dir)
    key = fingerprint(recipe)
    for path in filesystem.glob(f"{folder}/{key}-*.npy"):
        matrix = _read(filesystem, path)
        if matrix is not None and path.endswith(f"-{identify(recipe, matrix)}.npy"):
            return matrix
    matrix = make()
    unfinished = f"{folder}/{uuid.uuid4().hex}.part"
    try:
        filesystem.makedirs(folder, exist_ok=True)
        with filesystem.open(unfinished, "wb") as file:
            np.lib.format.write_array(file, matrix, allow_pickle=False)
        filesystem.mv(unfinished, f"{folder}/{key}-{identify(recipe, matrix)}.npy")
    except OSError as error:
        raise SubstrateError(f"{cache_dir} cannot be written ({error})", "Free space or set cache_dir") from error
    return matrix


def _read(filesystem: Any, path: str) -> Matrix | None:
    try:
        return np.asarray(np.load(io.BytesIO(filesystem.cat_file(path)), allow_pickle=False))
    except (OSError, ValueError, EOFError):
        return None
