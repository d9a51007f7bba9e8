"""Maps of what a model has made of its tokens: t-SNE of the substrate and of every layer (the paper's Figures 4, 5).

A picture convinces too easily, so every map of layers comes with a number: of the five nearest neighbours of a word
(by cosine, in the full space), how many belong to its group, compared with chance.

Shapes: W words, D width of a state, V vocabulary, E width of the substrate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict

from growtx.config import parse_record
from growtx.data.tokenizer import document_ids, token_surfaces
from growtx.evaluate.training_text import main_script
from growtx.exceptions import ConfigError
from growtx.storage import Storage

# Words whose meaning puts them together, in three languages: what the maps of layers are labelled with.


WORD_GROUPS: dict[str, tuple[str, ...]] = {
    "family": (
        "mother", "father", "sister", "brother", "son", "daughter", "grandmother", "uncle",
        "мать", "отец", "сестра", "брат", "сын", "дочь", "бабушка", "дядя",
        "母亲", "父亲", "姐姐", "哥哥", "儿子", "女儿", "奶奶", "叔叔",
    ),
    "cities": (
        "Berlin", "Paris", "Moscow", "Rome", "Madrid", "London", "Beijing", "Vienna",
        "Берлин", "Париж", "Москва", "Рим", "Мадрид", "Лондон", "Пекин", "Вена",
        "柏林", "巴黎", "莫斯科", "罗马", "马德里", "伦敦", "北京", "维也纳",
    ),
    "countries": (
        "Germany", "France", "Russia", "Italy", "Spain", "China", "Austria", "Sweden",
        "Германия", "Франция", "Россия", "Италия", "Испания", "Китай", "Австрия", "Швеция",
        "德国", "法国", "俄罗斯", "意大利", "西班牙", "中国", "奥地利", "瑞典",
    ),
    "professions": (
        "doctor", "teacher", "engineer", "pilot", "cook", "lawyer", "nurse", "farmer",
        "врач", "учитель", "инженер", "пилот", "повар", "юрист", "медсестра", "фермер",
        "医生", "教师", "工程师", "飞行员", "厨师", "律师", "护士", "农民",
    ),
    "colours": (
        "red", "green", "blue", "yellow", "black", "white", "brown", "grey",
        "красный", "зелёный", "синий", "жёлтый", "чёрный", "белый", "коричневый", "серый",
        "红色", "绿色", "蓝色", "黄色", "黑色", "白色", "棕色", "灰色",
    ),
    "numbers": (
        "one", "two", "three", "four", "five", "six", "seven", "eight",
        "один", "два", "три", "четыре", "пять", "шесть", "семь", "восемь",
        "一", "二", "三", "四", "五", "六", "七", "八",
    ),
    "actions": (
        "goes", "sees", "says", "takes", "gives", "works", "lives", "reads",
        "идёт", "видит", "говорит", "берёт", "даёт", "работает", "живёт", "читает",
        "走", "看", "说", "拿", "给", "工作", "住", "读",
    ),
}  # fmt: skip


MAPS_FILE = "maps.json"
NUM_NEIGHBOURS = 5
TOKENS_PER_KIND = 150
MAX_LAYERS = 6
Floats = npt.NDArray[np.float32]
Site = Literal["v_proj", "o_proj", "block"]
SITES: tuple[Site, ...] = ("v_proj", "o_proj", "block")


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Map(_Record):
    """Points of a plane with a label each."""

    points: tuple[tuple[float, float], ...]
    labels: tuple[str, ...]


class LayerMap(Map):
    """The words at one place of the model, and how far neighbours there share a meaning."""

    site: Site
    layer: int
    same_group: float
    chance: float


class KindShare(_Record):
    """How often tokens of one kind have neighbours of the same kind in the substrate."""

    kind: str
    num_tokens: int
    same_kind: float
    chance: float


class SubstrateMap(Map):
    """Tokens by their embedding rows, and the neighbourhoods behind the picture."""

    kinds: tuple[KindShare, ...] = ()


class Maps(_Record):
    """All maps of one model."""

    command: str = ""
    substrate: SubstrateMap
    layers: tuple[LayerMap, ...]


def make_maps(model: Any, tokenizer: Any, *, groups: Mapping[str, Sequence[str]] = WORD_GROUPS, seed: int = 0) -> Maps:
    """Compute all maps.

    Args:
        groups: label -> words; a word of several tokens is the mean of their states, alone after `</s>`.

    Raises:
        ConfigError: the model has no growtx blocks to look into.
    """
    words = [(label, word) for label, members in groups.items() for word in members]
    labels = tuple(label for label, _ in words)
    states = word_states(model, tokenizer, [word for _, word in words])
    chosen = sorted({round(at) for at in np.linspace(0, model.config.num_hidden_layers - 1, MAX_LAYERS)})
    layers = [
        LayerMap(
            points=project(states[site, layer], seed),
            labels=labels,
            site=site,
            layer=layer + 1,
            same_group=same_group_share(states[site, layer], labels),
            chance=chance_share(labels),
        )
        for site in SITES
        for layer in chosen
    ]
    return Maps(substrate=substrate_map(model, tokenizer, seed), layers=tuple(layers))


@torch.no_grad()
def word_states(model: Any, tokenizer: Any, words: Sequence[str]) -> dict[tuple[Site, int], Floats]:
    """States [W, D] of every word at the outputs of v_proj, o_proj and every block; layers count from 0."""
    blocks = getattr(getattr(model, "model", None), "layers", None)
    if blocks is None or not hasattr(blocks[0].self_attn, "v_proj"):
        raise ConfigError(
            f"{type(model).__name__} has no growtx blocks to map", "Map a grown model, not a converted one"
        )
    seen: dict[tuple[Site, int], torch.Tensor] = {}

    def keep(site: Site, layer: int) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            seen[site, layer] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = []
    for layer, block in enumerate(blocks):
        handles.append(block.self_attn.v_proj.register_forward_hook(keep("v_proj", layer)))
        handles.append(block.self_attn.o_proj.register_forward_hook(keep("o_proj", layer)))
        handles.append(block.register_forward_hook(keep("block", layer)))
    collected: dict[tuple[Site, int], list[Floats]] = {}
    try:
        for word in words:
            ids = document_ids(tokenizer, word)
            model(input_ids=torch.tensor([ids], device=model.device))
            for place, states_1TD in seen.items():
                collected.setdefault(place, []).append(states_1TD[0, 1:].mean(0).float().cpu().numpy())
    finally:
        for handle in handles:
            handle.remove()
    return {place: np.stack(states) for place, states in collected.items()}


def substrate_map(model: Any, tokenizer: Any, seed: int = 0) -> SubstrateMap:
    """t-SNE of embedding rows, labelled by what the tokens look like: the substrate holds form, not meaning."""
    kinds: dict[str, list[int]] = {}
    for token, surface in enumerate(token_surfaces(tokenizer)):
        if surface.strip():
            kinds.setdefault(kind_of(surface.strip()), []).append(token)
    largest = sorted(kinds, key=lambda kind: -len(kinds[kind]))[:7]
    generator = np.random.default_rng(seed)
    tokens, labels = [], []
    for kind in largest:
        few = generator.permutation(kinds[kind])[:TOKENS_PER_KIND]
        tokens += few.tolist()
        labels += [kind] * len(few)
    weight_VE = model.get_input_embeddings().weight.detach().float().cpu().numpy()
    return SubstrateMap(
        points=project(weight_VE[tokens], seed), labels=tuple(labels), kinds=kind_shares(weight_VE[tokens], labels)
    )


def kind_shares(rows_WE: Floats, labels: Sequence[str]) -> tuple[KindShare, ...]:
    """Of the nearest neighbours of each kind's tokens, how many are of that kind, and how many would be by chance."""
    same_W = same_group_by_word(rows_WE, labels)
    names = np.asarray(labels)
    return tuple(
        KindShare(
            kind=kind,
            num_tokens=int((names == kind).sum()),
            same_kind=float(same_W[names == kind].mean()),
            chance=float(((names == kind).sum() - 1) / (len(names) - 1)),
        )
        for kind in dict.fromkeys(labels)
    )


def kind_of(surface: str) -> str:
    """Digits, signs, or the script, with single characters and n-grams kept apart."""
    if surface.isnumeric():
        return "digits"
    script = main_script(surface)
    if script == "other":
        return "signs"
    return script if len(surface) == 1 else f"{script} n-grams"


def project(states_WD: Floats, seed: int = 0) -> tuple[tuple[float, float], ...]:
    """t-SNE to the plane by cosine distance; repeats exactly for a seed."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    perplexity = min(30.0, (len(states_WD) - 1) / 3)
    # Identical rows (two tokens that look alike) are fine; rows of zeros have no direction and get a tiny one.
    tiny = np.random.default_rng(seed).normal(scale=1e-6, size=states_WD.shape)
    with threadpool_limits(1):  # a map this small gains nothing from threads, and on a busy machine they wait
        tsne = TSNE(perplexity=perplexity, metric="cosine", init="random", random_state=seed)
        plane = tsne.fit_transform(states_WD + tiny)
    return tuple((round(float(x), 3), round(float(y), 3)) for x, y in plane)


def same_group_share(states_WD: Floats, labels: Sequence[str], num_neighbours: int = NUM_NEIGHBOURS) -> float:
    """Share of nearest neighbours by cosine that carry the word's own label."""
    return float(same_group_by_word(states_WD, labels, num_neighbours).mean())


def same_group_by_word(
    states_WD: Floats, labels: Sequence[str], num_neighbours: int = NUM_NEIGHBOURS
) -> npt.NDArray[np.float64]:
    """The same share for each word, [W]."""
    unit_WD = states_WD / np.maximum(np.linalg.norm(states_WD, axis=1, keepdims=True), 1e-12)
    similarity_WW = unit_WD @ unit_WD.T
    np.fill_diagonal(similarity_WW, -np.inf)
    nearest = np.argsort(-similarity_WW, axis=1)[:, :num_neighbours]
    names = np.asarray(labels)
    same_W: npt.NDArray[np.float64] = (names[nearest] == names[:, None]).mean(axis=1)
    return same_W


def chance_share(labels: Sequence[str]) -> float:
    """The same share for neighbours drawn at random."""
    _, counts = np.unique(np.asarray(labels), return_counts=True)
    return float((counts * (counts - 1)).sum() / (len(labels) * (len(labels) - 1)))


def save_maps(storage: Storage, maps: Maps) -> None:
    storage.write_text(MAPS_FILE, maps.model_dump_json() + "\n")


def read_maps(storage: Storage) -> Maps | None:
    """The maps in a run directory, or None.

    Raises:
        StoreError: they are damaged.
    """
    if not storage.exists(MAPS_FILE):
        return None
    return parse_record(Maps, storage.read_bytes(MAPS_FILE), storage.path(MAPS_FILE), "Delete it and evaluate again")
