"""What a substrate is like: how many tokens share a vector, what the font lacks, rank, spectrum, and pictures of it.

Legend: V tokens, E components.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from growtx.exceptions import SubstrateError
from growtx.substrate import pictures, rendering
from growtx.substrate.build import SubstrateConfig, build_substrate
from growtx.substrate.collisions import first_alike
from growtx.substrate.fonts import Font, find_font
from growtx.substrate.rendering import PUBLISHED, render_strips

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_GROUPS_SHOWN = 12
NUM_EXAMPLES = 8
RANK_TOLERANCE = 1e-12  # of squared lengths: float32 rounding stays far below
Report = dict[str, Any]
Figures = dict[str, "Callable[[], Figure]"]


def substrate_report(
    surfaces: Sequence[str],
    config: SubstrateConfig,
    *,
    hidden_size: int,
    vocabulary: str,
    out_dir: str | None = None,
    cache_dir: str | None = None,
) -> Report:
    """Build a substrate and measure it; with `out_dir`, also write `report.json` and pictures there.

    Args:
        surfaces: what each token id draws [V].
        config: the substrate's kind and font.
        hidden_size: D.
        vocabulary: what to call the vocabulary.
        out_dir: local folder for `report.json`, `contact-sheet.png`, `look-alikes.png`, `spectrum.png`, `map.png`.
        cache_dir: as for `build_substrate`.

    Raises:
        SubstrateError: if the substrate cannot be built, or `out_dir` cannot be written.
    """
    start = time.perf_counter()
    substrate = build_substrate(config, surfaces, hidden_size, cache_dir=cache_dir)
    seconds = time.perf_counter() - start
    weight = substrate.weight.numpy()
    first = first_alike(weight)
    spectrum = _spectrum(weight)
    report: Report = {
        "vocabulary": vocabulary,
        "kind": config.kind,
        "num_tokens": len(surfaces),
        "hidden_size": hidden_size,
        "stored_width": weight.shape[1],
        "num_bytes": weight.nbytes,
        "build_seconds": seconds,
        "fingerprint": substrate.fingerprint,
        "recipe": substrate.recipe,
        "lengths": _lengths(weight),
        "shared_vectors": _groups(first, surfaces),
        "rank": int((spectrum > RANK_TOLERANCE * spectrum[0]).sum()),
        "components_for_share": {str(share): _needed(spectrum, share) for share in (0.5, 0.9, 0.99)},
    }
    figures: Figures = {
        "spectrum": lambda: pictures.spectrum(spectrum, report),
        "map": lambda: pictures.token_map(weight, surfaces, report),
    }
    if config.kind in ("glyph", "glyph+code"):
        figures |= _examine_pictures(report, config, surfaces, weight)
    report["peak_memory_bytes"] = _peak_memory_bytes()
    if out_dir is not None:
        _write(report, Path(out_dir), figures)
    return report


def _examine_pictures(
    report: Report, config: SubstrateConfig, surfaces: Sequence[str], weight: NDArray[np.float32]
) -> Figures:
    """Add what only the pictures show to the report, and return figures of them."""
    font = find_font(config.font)
    packed = render_strips(
        surfaces, font, config.cell_pixels, PUBLISHED[config.cell_pixels] if config.augment else None
    )
    alike = first_alike(packed)
    report["look_alikes"] = _groups(alike, surfaces)
    report["missing_glyphs"] = _missing(surfaces, font)
    report["code_cost"] = _code_cost(weight, alike)
    return {
        "contact-sheet": lambda: pictures.contact_sheet(packed, surfaces, report),
        "look-alikes": lambda: pictures.look_alikes(packed, report),
    }


def as_text(report: Report) -> str:
    """The report for a terminal."""
    recipe, lengths = report["recipe"], report["lengths"]
    share = report["components_for_share"]
    lines = [
        f"{report['kind']} substrate of {report['vocabulary']}: V={report['num_tokens']:,}, D={report['hidden_size']:,}"
        f" (stored [{report['num_tokens']:,}, {report['stored_width']:,}], {report['num_bytes'] / 2**20:,.0f} MiB)",
        f"built in {report['build_seconds']:.1f} s, peak memory {report['peak_memory_bytes'] / 2**30:.2f} GiB",
        f"fingerprint {report['fingerprint']}",
        f"rank {report['rank']}; {share['0.5']}, {share['0.9']} and {share['0.99']} components hold 50, 90 and 99 %",
        f"row lengths {lengths['min']:.7f} to {lengths['max']:.7f}",
        _sharing_line("share their vector with another", report["shared_vectors"]),
    ]
    if "font" in recipe:
        missing, cost = report["missing_glyphs"], report["code_cost"]
        lines.insert(2, f"font {recipe['font']}, sha256 {recipe['font_sha256']}")
        lines += [
            _sharing_line("look exactly like another", report["look_alikes"]),
            f"missing glyphs: {missing['num_characters']:,} characters ({missing['num_assigned']:,} of them assigned in"
            f" Unicode {unicodedata.unidata_version}), in {missing['num_tokens']:,} tokens",
            f"look-alikes kept apart: {cost['num_moved']:,}, cosine to what they look like"
            f" {cost['mean_cosine']:.3f} (mean), {cost['min_cosine']:.3f} (least); all other vectors as without code",
        ]
    for group in report["look_alikes" if "look_alikes" in report else "shared_vectors"]["largest"]:
        lines.append(f"  {group['size']:>6,} alike: {'; '.join(group['examples'][:4])}")
    return "\n".join(lines)


def _sharing_line(what: str, groups: Report) -> str:
    return f"{groups['num_tokens']:,} tokens in {groups['num_groups']:,} groups {what}"


def _lengths(weight: NDArray[np.float32]) -> dict[str, float]:
    lengths = np.sqrt(np.einsum("ve,ve->v", weight, weight, dtype=np.float64))
    return {"min": float(lengths.min()), "max": float(lengths.max())}


def _spectrum(weight: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean squared length of the rows along each principal direction [E], descending."""
    gram = np.zeros((weight.shape[1], weight.shape[1]))
    for start in range(0, len(weight), 8192):
        rows = weight[start : start + 8192].astype(np.float64)
        gram += rows.T @ rows
    return np.asarray(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0) / len(weight))


def _needed(spectrum: NDArray[np.float64], share: float) -> int:
    return 1 + int((np.cumsum(spectrum) < share * spectrum.sum()).sum())


def _groups(first: NDArray[np.int64], surfaces: Sequence[str]) -> Report:
    """Tokens that are the same as another one, and the largest groups of them."""
    sizes = np.bincount(first, minlength=len(first))
    largest = [int(token) for token in np.argsort(-sizes, kind="stable")[:NUM_GROUPS_SHOWN] if sizes[token] > 1]
    members = {token: np.flatnonzero(first == token) for token in largest}
    return {
        "num_tokens": int(sizes[sizes > 1].sum()),
        "num_groups": int((sizes > 1).sum()),
        "largest": [
            {
                "size": int(sizes[token]),
                "ids": members[token][:NUM_EXAMPLES].tolist(),
                "examples": [rendering.describe(surfaces[member]) for member in members[token][:NUM_EXAMPLES]],
            }
            for token in largest
        ],
    }


def _missing(surfaces: Sequence[str], font: Font) -> Report:
    """Characters of the vocabulary that the font cannot draw."""
    missing = sorted(char for char in set().union(*surfaces) if not font.has(char))
    absent = set(missing)
    return {
        "num_characters": len(missing),
        "num_assigned": sum(unicodedata.category(char) not in ("Cn", "Co", "Cs", "Cc") for char in missing),
        "num_tokens": sum(not absent.isdisjoint(surface) for surface in surfaces),
        "largest_runs": [f"U+{first:04X}..U+{last:04X}" for first, last in rendering.runs(missing)[:NUM_GROUPS_SHOWN]],
    }


def _code_cost(weight: NDArray[np.float32], alike: NDArray[np.int64]) -> Report:
    """How far look-alikes were moved from the vector that their picture has."""
    later = np.flatnonzero(alike != np.arange(len(alike)))
    cosines = np.einsum("ne,ne->n", weight[later], weight[alike[later]], dtype=np.float64)
    moved = cosines[(weight[later] != weight[alike[later]]).any(axis=1)]
    return {
        "num_moved": len(moved),
        "mean_cosine": float(moved.mean()) if len(moved) else 1.0,
        "min_cosine": float(moved.min()) if len(moved) else 1.0,
    }


def _peak_memory_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _write(report: Report, folder: Path, figures: Figures) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        for name, draw in figures.items():
            draw().savefig(folder / f"{name}.png")
    except OSError as error:
        raise SubstrateError(f"The report cannot be written to {folder} ({error})", "Name another folder") from error
