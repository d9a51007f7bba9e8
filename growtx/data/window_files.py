"""Files of token windows: Arrow IPC, one record batch of [num_windows, T] int32, memory-mapped without copying.

Shape legend: N windows, T tokens per window (the context length).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

WindowArray = npt.NDArray[np.int32]


class WindowWriter:
    """Streams the tokens of documents into one window file.

    Tokens go to a scratch file first: an Arrow batch states its length before its data, and the length is known
    only at the end. One document is in memory at a time.
    """

    def __init__(self, path: Path, context_length: int, pad_token_id: int) -> None:
        self.path, self.context_length, self.pad_token_id = path, context_length, pad_token_id
        self.num_documents = self.num_tokens = self.num_bytes = 0
        self._digest = hashlib.sha256()
        self._scratch = path.with_suffix(".scratch").open("wb")

    def __enter__(self) -> WindowWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._scratch.close()

    def write(self, tokens: WindowArray, num_bytes: int) -> None:
        """Append one document of `num_bytes` bytes of text: its tokens, [n] int32."""
        self._append(tokens)
        self.num_documents += 1
        self.num_tokens += tokens.size
        self.num_bytes += num_bytes

    def finish(self) -> dict[str, int | str]:
        """Pad the last window, write the Arrow file and return its entry for an index."""
        self._append(np.full(-self.num_tokens % self.context_length, self.pad_token_id, dtype=np.int32))
        self._scratch.close()
        scratch = Path(self._scratch.name)
        num_windows = -(-self.num_tokens // self.context_length)
        if num_windows:
            with pa.memory_map(str(scratch), "r") as source:
                self._write_arrow(source.read_buffer(), num_windows)
        else:
            self._write_arrow(pa.py_buffer(b""), 0)  # an empty file cannot be mapped
        scratch.unlink()
        return {
            "file": self.path.name,
            "num_windows": num_windows,
            "num_documents": self.num_documents,
            "num_tokens": self.num_tokens,
            "num_bytes": self.num_bytes,
            "size_bytes": self.path.stat().st_size,
            "sha256": self._digest.hexdigest(),
        }

    def _append(self, tokens: WindowArray) -> None:
        data = tokens.astype("<i4", copy=False).tobytes()
        self._digest.update(data)
        self._scratch.write(data)

    def _write_arrow(self, tokens: pa.Buffer, num_windows: int) -> None:
        flat = pa.Array.from_buffers(pa.int32(), num_windows * self.context_length, [None, tokens])
        windows = pa.FixedSizeListArray.from_arrays(flat, self.context_length)
        batch = pa.record_batch([windows], names=["tokens"])
        with pa.OSFile(str(self.path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)


def map_windows(path: Path) -> WindowArray:
    """The windows of a file: a read-only view [N, T] of the memory-mapped file.

    Raises:
        pyarrow.ArrowException, OSError: not a complete window file.
    """
    with pa.ipc.open_file(pa.memory_map(str(path), "r")) as reader:
        column = reader.get_batch(0).column(0)
    windows: WindowArray = column.flatten().to_numpy(zero_copy_only=True).reshape(-1, column.type.list_size)
    return windows


def sha256_of_windows(windows: WindowArray, rows_per_chunk: int = 4096) -> str:
    """sha256 of the tokens, as recorded in the index."""
    digest = hashlib.sha256()
    for start in range(0, len(windows), rows_per_chunk):
        digest.update(windows[start : start + rows_per_chunk].astype("<i4", copy=False).tobytes())
    return digest.hexdigest()
