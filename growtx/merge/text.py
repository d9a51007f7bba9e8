"""The text that a merge is judged on: windows of every language, of mixed documents, and windows to fit rules on.

A group is the held-out text of one source (and script): a language, if the sources are split by language. Rules are
fitted and measured on different documents.

Shapes: W windows, T context length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import TYPE_CHECKING

import torch

from growtx.data.sources import DataConfig, SourceConfig
from growtx.data.tokenizer import document_ids, start_token_id
from growtx.evaluate.training_text import Groups, held_out_groups
from growtx.exceptions import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedTokenizerFast

MIXED = "mixed documents"


@dataclass(frozen=True)
class OwnText:
    """Documents by group, and the groups that each member was grown on; empty for a member whose data are unknown."""

    groups: Groups
    groups_of: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class MergeText:
    """Windows [W, T] by group; `MIXED` among them where there is more than one group."""

    fit: dict[str, torch.Tensor]
    measured: dict[str, torch.Tensor]
    groups_of: Mapping[str, Sequence[str]]
    parts: Sequence[tuple[str, int]]  # of the first mixed window: groups in order, with the positions they end before

    @property
    def main(self) -> str:
        """The domain that a merge is judged on."""
        return MIXED if MIXED in self.measured else next(iter(self.measured))


def own_text(data: Mapping[str, DataConfig], *, max_bytes: int) -> OwnText:
    """What the members' runs held out. A source that several of them read is one group.

    Args:
        data: configuration by member.
        max_bytes: at most this many bytes of UTF-8 per group.
    """
    known: dict[str, SourceConfig] = {}
    groups: Groups = {}
    groups_of: dict[str, list[str]] = {}
    for member, config in data.items():
        groups_of[member] = []
        for name, source in zip(config.source_names, config.sources, strict=True):
            label = _label(known, member, name, source)
            if label not in known:
                known[label] = source
                one = source.model_copy(update={"name": label})
                alone = DataConfig(sources=(one,), validation_fraction=config.validation_fraction)
                groups |= held_out_groups(alone, max_bytes=max_bytes)
            groups_of[member] += [group for group in groups if group == label or group.startswith(f"{label} · ")]
    return OwnText(groups, groups_of)


def _label(known: Mapping[str, SourceConfig], member: str, name: str, source: SourceConfig) -> str:
    """The name of an equal source, or a new one."""
    free = {"name", "weight"}
    content = source.model_dump(exclude=free)
    same = next((label for label, other in known.items() if other.model_dump(exclude=free) == content), None)
    return same or (f"{member} {name}" if name in known else name)


def merge_text(
    text: OwnText, tokenizer: PreTrainedTokenizerFast, *, context_length: int, num_fit: int, num_measured: int
) -> MergeText:
    """Cut groups into windows.

    Args:
        num_fit: windows to fit rules on, over all groups and the mixed documents.
        num_measured: windows of each domain, at most.

    Raises:
        DataError: a group is too short for a window on each side.
    """
    share = -(-num_fit // (len(text.groups) + 1))
    fit: dict[str, torch.Tensor] = {}
    measured: dict[str, torch.Tensor] = {}
    for name, documents in text.groups.items():
        fit[name] = _windows(documents[::2], tokenizer, context_length, share, name)
        measured[name] = _windows(documents[1::2], tokenizer, context_length, num_measured, name)
    parts: list[tuple[str, int]] = []
    if len(text.groups) > 1:
        break_ids = tokenizer.encode("\n", add_special_tokens=False)
        fit[MIXED], _ = _mix(fit, start_token_id(tokenizer), break_ids, share)
        measured[MIXED], parts = _mix(measured, start_token_id(tokenizer), break_ids, num_measured)
    return MergeText(fit, measured, text.groups_of, parts)


def _windows(
    documents: Sequence[str], tokenizer: PreTrainedTokenizerFast, length: int, limit: int, name: str
) -> torch.Tensor:
    """The first full windows of documents joined as in training: `</s> tokens </s> tokens ...`."""
    ids = list(islice(_stream(documents, tokenizer), limit * length))
    num_windows = len(ids) // length
    if not num_windows:
        raise DataError(
            f"the held-out text of {name} is too short: {len(ids)} of the {length} tokens of a window",
            "Name files with more text of it: growtx merge ... --data FILES",
        )
    return torch.tensor(ids[: num_windows * length]).view(num_windows, length)


def _stream(documents: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> Iterator[int]:
    for document in documents:
        yield from document_ids(tokenizer, document)


def _mix(
    windows: Mapping[str, torch.Tensor], start: int, break_ids: Sequence[int], limit: int
) -> tuple[torch.Tensor, list[tuple[str, int]]]:
    """Documents that switch language: a paragraph from each group, in an order that rotates from window to window."""
    names = list(windows)
    length = windows[names[0]].shape[1]
    size = max(1, (length - 1) // len(names) - len(break_ids))
    rows, parts = [], list[tuple[str, int]]()
    for number in range(min(limit, *(len(group) for group in windows.values()))):
        ids = [start]
        for turn in range(len(names)):
            name = names[(number + turn) % len(names)]
            is_last = turn == len(names) - 1
            ids += windows[name][number, 1 : (length - len(ids) if is_last else size) + 1].tolist()
            ids += [] if is_last else break_ids
            if number == 0:
                parts.append((name, len(ids)))
        rows.append(ids)
    return torch.tensor(rows), parts


def spliced(windows_WT: torch.Tensor, num: int, generator: torch.Generator) -> torch.Tensor:
    """New windows [num, T] of two to six pieces, each cut anywhere out of a window drawn at random."""
    length = windows_WT.shape[1]
    rows = []
    for _ in range(num):
        num_cuts = int(torch.randint(1, 6, (1,), generator=generator))
        cuts = sorted(torch.randint(1, length, (num_cuts,), generator=generator).tolist())
        pieces = []
        for start, end in pairwise([0, *cuts, length]):
            source_T = windows_WT[int(torch.randint(len(windows_WT), (1,), generator=generator))]
            first = int(torch.randint(length - (end - start) + 1, (1,), generator=generator))
            pieces.append(source_T[first : first + end - start])
        rows.append(torch.cat(pieces))
    return torch.stack(rows)
