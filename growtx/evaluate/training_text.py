"""What a run was trained on, as far as an evaluation needs it: its held-out text in groups, and its microworld."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

from growtx.config import build_config, parse_yaml
from growtx.data.sources import PARTS_OF_A_SAMPLE, DataConfig, iterate_documents
from growtx.data.text_files import ReadOptions, find_files, read_texts
from growtx.exceptions import DataError
from growtx.microworld import MicroworldConfig
from growtx.storage import Storage
from growtx.store.run_records import RUN_FILE, read_data_record

Groups = dict[str, list[str]]
SCRIPTS = {  # by the first word of a character's Unicode name
    "ARABIC": "Arabic", "CJK": "Han", "CYRILLIC": "Cyrillic", "DEVANAGARI": "Devanagari", "GREEK": "Greek",
    "HANGUL": "Hangul", "HEBREW": "Hebrew", "HIRAGANA": "Kana", "KATAKANA": "Kana", "LATIN": "Latin",
}  # fmt: skip


def read_groups(patterns: tuple[str, ...], *, text_column: str, max_bytes: int) -> Groups:
    """Documents of each file that matches, under the file's name without its suffix.

    Raises:
        DataError: nothing matches, or a file cannot be read.
    """
    options = ReadOptions(text_column=text_column)
    groups: Groups = {}
    for path in find_files(patterns):
        name = PurePosixPath(path).name.split(".")[0]
        groups[name] = list(_at_most((text for text, _ in read_texts(path, options)), max_bytes))
    return groups


def recorded_data(run_dir: str) -> DataConfig | None:
    """The data configuration that a run directory keeps; None where there is none (a Hugging Face directory)."""
    storage = Storage(run_dir)
    if not storage.exists(RUN_FILE):
        return None
    tree: Any = parse_yaml(storage.read_text(RUN_FILE), storage.path(RUN_FILE))
    return build_config(DataConfig, tree["data"]) if isinstance(tree, dict) and "data" in tree else None


def parts_read(run_dir: str) -> dict[str, int]:
    """How many parts of each source a run has read, where it says so."""
    record = read_data_record(Storage(run_dir))
    return {reading.name: reading.num_parts_read for reading in record.readings} if record else {}


def recorded_microworld(data: DataConfig | None) -> MicroworldConfig | None:
    """The first microworld that the data name."""
    return next((source.microworld for source in data.sources if source.microworld), None) if data else None


def held_out_groups(data: DataConfig, *, max_bytes: int) -> Groups:
    """What is held out of the data: a group for each source, and for each script where a source has several.

    Of large sources the first parts alone are looked at, whatever of them a run has read.

    Raises:
        DataError: a source cannot be read any more, or nothing of them is held out.
    """
    groups: Groups = {}
    for document in iterate_documents(data, parts=PARTS_OF_A_SAMPLE):
        if document.split == "validation":
            groups.setdefault(f"{document.source} · {main_script(document.text)}", []).append(document.text)
    if not groups:
        raise DataError("nothing was held out of the data of this run", "Pass text files with --texts")
    return {name: list(_at_most(texts, max_bytes)) for name, texts in sorted(_without_lone_scripts(groups).items())}


def main_script(text: str) -> str:
    """The script that most letters of a text are written in; `other` where there are no letters."""
    counts = Counter(
        SCRIPTS.get(unicodedata.name(char, "?").split()[0].split("-")[0], "other") for char in text if char.isalpha()
    )
    return counts.most_common(1)[0][0] if counts else "other"


def _without_lone_scripts(groups: Groups) -> Groups:
    """`SOURCE` instead of `SOURCE · Script` where a source has one script only."""
    sources = Counter(name.rsplit(" · ", 1)[0] for name in groups)
    return {
        (name if sources[name.rsplit(" · ", 1)[0]] > 1 else name.rsplit(" · ", 1)[0]): t for name, t in groups.items()
    }


def _at_most(texts: Iterable[str], max_bytes: int) -> Iterator[str]:
    """Documents from the beginning until `max_bytes` of UTF-8 are reached, at least one."""
    num_bytes = 0
    for text in texts:
        yield text
        num_bytes += len(text.encode())
        if num_bytes >= max_bytes:
            return
