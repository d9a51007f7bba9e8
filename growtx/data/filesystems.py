"""Paths and URLs alike: one way to the filesystem that something lies on."""

from __future__ import annotations

from typing import Any

import fsspec

from growtx.exceptions import ConfigError

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}


def locate(path: str) -> tuple[Any, str]:
    """The fsspec filesystem of a path or URL, and the path on it (absolute for local ones).

    Raises:
        ConfigError: a URL scheme that is unknown or whose package is not installed.
    """
    try:
        filesystem, stripped = fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        scheme = path.partition("://")[0]
        reason = " ".join(str(error).split())[:150]
        remedy = f"Run pip install 'growtx[{_EXTRAS[scheme]}]'" if scheme in _EXTRAS else "Use a local path or s3://"
        raise ConfigError(f"{path} cannot be reached ({reason})", remedy) from error
    return filesystem, str(stripped)


def is_local(filesystem: Any) -> bool:
    """Whether files can be memory-mapped where they are."""
    protocols = filesystem.protocol
    return "file" in ((protocols,) if isinstance(protocols, str) else protocols)
