"""What a source's text is a function of, as a string: the content part of the key it is packed under."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path

from growtx.config import fingerprint
from growtx.data.filesystems import is_local, locate
from growtx.data.microworld import generator_fingerprint
from growtx.data.pack_cache import save_text
from growtx.data.sources import SourceConfig, load_arguments, source_files
from growtx.exceptions import DataError


def content_fingerprint(source: SourceConfig, memo: HashMemo) -> str:
    """Equal when the text that a source reads is equal.

    Local files count by their bytes, files elsewhere by what their filesystem knows of them (name, size, ETag),
    Hugging Face data sets by commit and data files, the microworld by its configuration and its code.
    """
    if source.microworld is not None:
        content = [source.microworld.fingerprint(), generator_fingerprint()]
    elif source.files is not None:
        content = [memo.sha256(path) for path in source_files(source)]
    else:
        content = _hub_content(source)
    reading = source.model_dump(
        mode="json", include={"text_column", "where", "document_bytes", "max_documents", "max_bytes"}
    )
    return fingerprint({"content": content, "reading": reading})


def _hub_content(source: SourceConfig) -> list[str]:
    import datasets

    try:
        builder = datasets.load_dataset_builder(**load_arguments(source))
    except Exception as error:  # whatever hub, network or file system raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        problem = f"The data set {source.hf} cannot be loaded ({reason})"
        raise DataError(problem, "Check name, config and network") from error
    # hash: the commit on the hub or the loader's code; config_id: configuration, data files and their dates or ETags
    return [builder.hash or "", builder.config_id, source.split]


class HashMemo:
    """sha256 of local files, remembered by path, size and times, so that large corpora are hashed once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._known: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # absent, or damaged: it only saves time
            self._known = {}

    def sha256(self, path: str) -> str:
        """Identity of a file's content: "sha256:..." for local files, "ukey:..." for others."""
        filesystem, stripped = locate(path)
        try:
            state = str(filesystem.ukey(stripped))
            if not is_local(filesystem):
                return f"ukey:{state}"
            if state not in self._known:
                with Path(stripped).open("rb") as handle:
                    self._known[state] = hashlib.file_digest(handle, "sha256").hexdigest()
                self._save()
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise DataError(f"{path} cannot be read ({reason})", "Check the file and its permissions") from error
        return f"sha256:{self._known[state]}"

    def _save(self) -> None:
        with suppress(OSError):  # a full disk is reported by whoever needs the space
            save_text(self._path, json.dumps(self._known))
