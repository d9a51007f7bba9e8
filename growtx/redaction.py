"""Credentials are used and never written down: what is printed, recorded or reported has `***` in their place.

A run directory is made to be shared: `run.yaml`, the report and the model card travel with the model, and the console
ends in logs. Masking what is written, instead of keeping it apart or encrypted, leaves no second place to guard. It has
a price, since `run.yaml` is also what a resumed run, an evaluation and a merge read:

- What they read again (`data`, `parent`, ...) may hold no credentials at all: such a configuration is refused when the
  run starts, and not when its text is opened a second time, after the training (`growtx.run.directory.claim`).
- `tracking` is used by the running job alone: an address there may hold a password, which a resumed run is told again.

In both cases the documented way is the environment of the workers, as the clients of all these services read it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

MASK = "***"
ENVIRONMENT = (
    "WANDB_API_KEY, MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, HF_TOKEN"
)

_WORDS = (
    r"(?:password|passwd|passphrase|secret(?:[_-]?(?:access)?[_-]?key)?|api[_-]?key|access[_-]?key(?:[_-]?id)?|"
    r"account[_-]?key|private[_-]?key|credentials?|(?:access|api|auth|bearer|hf|refresh|security|session)[_-]?token)"
)
_SECRET_KEY = re.compile(rf"(?i)(?:.*[_.-])?{_WORDS}|token|pwd")  # but not eos_token
_PASSWORD = re.compile(r"(?<=://)([^/\s:@'\"]*):([^/?#\s'\"]+)@")  # scheme://user:password@host
_USER_TOKEN = re.compile(r"(?<=://)[^/?#\s:@'\"]{20,}@")  # https://TOKEN@host, but ssh://git@host
_QUERY = re.compile(
    rf"(?i)([?&](?:[\w-]*(?:{_WORDS}|signature|credential)|sig|key|token|pwd|awsaccesskeyid)=)[^&#\s'\"<>]+"
)
_ASSIGNED = re.compile(rf"(?i)((?:{_WORDS})=)('[^']*'|\"[^\"]*\"|[^\s'\"&#<>,;]+)")  # WANDB_API_KEY=..., a.password=...
_KNOWN_KEYS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|(?:AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}"
    r"|sk-[A-Za-z0-9_-]{20,}|xox[abprs]-[A-Za-z0-9-]{10,})"
)
_MASKED = re.compile(r"^\*\*\*$|[:=/]\*\*\*(?=[@&#\s'\"]|$)")


def redact_text(text: str) -> str:
    """The text without the credentials that it shows; a second time changes nothing."""
    text = _PASSWORD.sub(rf"\1:{MASK}@", text)
    text = _USER_TOKEN.sub(f"{MASK}@", text)
    text = _QUERY.sub(rf"\1{MASK}", text)
    text = _ASSIGNED.sub(rf"\1{MASK}", text)
    return _KNOWN_KEYS.sub(MASK, text)


def redact_tree(tree: Any, key: str = "") -> Any:
    """A configuration without credentials: strings under a key that names one are masked whole."""
    if isinstance(tree, Mapping):
        return {name: redact_tree(value, str(name)) for name, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [redact_tree(value, key) for value in tree]
    if not isinstance(tree, str):
        return tree
    return MASK if tree and _SECRET_KEY.fullmatch(key) else redact_text(tree)


def masked_keys(tree: Any, key: str = "") -> Iterator[str]:
    """Dotted keys of the values in which a credential was masked."""
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            if name != "provenance":  # a record, which nothing is started from
                yield from masked_keys(value, f"{key}.{name}" if key else str(name))
    elif isinstance(tree, (list, tuple)):
        for index, value in enumerate(tree):
            yield from masked_keys(value, f"{key}.{index}")
    elif isinstance(tree, str) and _MASKED.search(tree):
        yield key
