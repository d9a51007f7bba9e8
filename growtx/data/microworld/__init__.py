"""Microworld: a small generated world, described in English, Russian and Chinese (first version)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib import resources

from growtx.data.microworld.config import LANGUAGES, Language, MicroworldConfig
from growtx.data.microworld.draft import document

__all__ = ["LANGUAGES", "Language", "MicroworldConfig", "documents", "generator_fingerprint"]

DEFAULT_BYTES = 8_000_000


def documents(config: MicroworldConfig) -> Iterator[str]:
    """The corpus, document after document."""
    number = num_bytes = 0
    target = config.target_bytes or DEFAULT_BYTES
    while number < config.num_documents if config.num_documents is not None else num_bytes < target:
        text = document(config, number)
        number, num_bytes = number + 1, num_bytes + len(text.encode())
        yield text


def generator_fingerprint() -> str:
    """sha256 of the code and word lists that the corpus is made with."""
    digest = hashlib.sha256()
    for file in sorted(resources.files(__name__).iterdir(), key=lambda file: file.name):
        if file.name.endswith(".py"):
            digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()
