from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from growtx.evaluate import outcomes
from growtx.exceptions import ConfigError, DataError
from growtx.microworld import MicroworldConfig

harness = pytest.importorskip("growtx.evaluate.harness")

WORLD = MicroworldConfig(num_people=40, languages=("en", "zh"), num_documents=120)


@pytest.fixture(scope="module")
def wrapped(model: Any, tokenizer: Any) -> Any:
    return harness.HarnessModel(model, tokenizer, 4)


def test_every_shipped_task_file_names_itself_and_its_set() -> None:
    import yaml

    assert len(harness.shipped_tasks()) > 30
    for name in harness.shipped_tasks():
        text = (harness.TASKS_DIR / f"{name}.yaml").read_text()
        tree = yaml.safe_load(text)
        assert tree["task"] == name
        assert (harness.TASKS_DIR / tree["include"]).is_file()
        assert tree["dataset_kwargs"]["name"]


def test_log_likelihoods_are_those_of_the_model(wrapped: Any, model: Any, tokenizer: Any) -> None:
    import torch
    from lm_eval.api.instance import Instance

    request = Instance("loglikelihood", {}, ("Anna lives in", " Berlin"), 0)
    ((found, _),) = wrapped.loglikelihood([request], disable_tqdm=True)
    context, continuation = tokenizer.encode("Anna lives in"), tokenizer.encode(" Berlin")
    with torch.no_grad():
        logs = model(torch.tensor([context + continuation])).logits[0].log_softmax(-1)
    wanted = sum(logs[len(context) - 1 + at, token].item() for at, token in enumerate(continuation))
    assert found == pytest.approx(wanted, abs=1e-4)


def test_a_token_across_the_seam_is_not_lost(wrapped: Any, tokenizer: Any) -> None:
    # "Berlin" is learned as one piece, so context "Ber" + "lin" has a seam inside it.
    context, continuation = wrapped._encode_pair("in Ber", "lin and")
    assert tokenizer.decode(context + continuation) == "in Berlin and"
    assert tokenizer.decode(continuation) == "lin and"


def test_generated_answers_and_translations_are_scored(wrapped: Any, questions_dir: Path) -> None:
    for name, metrics in (
        ("growtx_squad_v2", {"f1", "exact_match", "contains"}),
        ("growtx_flores200_ru-en", {"chrf", "bleu", "sentence_bleu"}),
    ):
        (outcome,) = harness.run_task(wrapped, harness.load_task(name, data_dir=str(questions_dir)))
        scores = list(outcomes.scores_of(outcome, wrapped, depth=2))
        assert {score.metric for score in scores} == metrics
        assert all(score.protocol == "generated" and 0 <= score.value <= 1 for score in scores)
        unanswerable = {score.metric for score in scores if score.majority == 0.5}
        assert unanswerable == metrics & {"f1", "exact_match"}, "always saying that there is no answer"


def test_microworld_questions_are_scored_by_language(wrapped: Any) -> None:
    loaded = harness.load_task("microworld_recall", world=WORLD, limit=5)
    (outcome,) = harness.run_task(wrapped, loaded)
    assert {score.group for score in outcomes.scores_of(outcome, wrapped, depth=2)} == {"", "en", "zh"}
    assert len(outcome.rows) == 10


def test_texts_to_translate_into_are_probed_beside_the_prompts(questions_dir: Path) -> None:
    translation = harness.load_task("growtx_flores200_en-ru", data_dir=str(questions_dir))
    assert translation.translations(4) == ["Анна живёт в Берлине"]
    assert translation.prompts(4) == ["English: Anna lives in Berlin\nRussian:"]
    assert harness.load_task("growtx_arc_easy", data_dir=str(questions_dir)).translations(4) == []


def test_names_resolve_to_ours_only_where_there_is_a_data_directory() -> None:
    assert harness.resolve_task("growtx_arc_easy", has_data_dir=False) == ("growtx_arc_easy",)
    assert harness.resolve_task("arc_easy", has_data_dir=True) == ("growtx_arc_easy",)


def test_microworld_stands_for_all_its_tasks() -> None:
    assert harness.resolve_task("microworld_chain_2", has_data_dir=False) == ("microworld_chain_2",)
    assert "microworld_chain_2" in harness.resolve_task("microworld", has_data_dir=False)


def test_an_unknown_task_names_its_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "_registered", type("Manager", (), {"all_tasks": ["hellaswag"]}))
    assert harness.resolve_task("hellaswag", has_data_dir=True) == ("hellaswag",)
    with pytest.raises(ConfigError, match="Did you mean hellaswag"):
        harness.resolve_task("helaswag", has_data_dir=True)


def test_missing_questions_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no mmlu\.jsonl"):
        harness.load_task("growtx_mmlu", data_dir=str(tmp_path))
    with pytest.raises(DataError, match="not trained on one"):
        harness.load_task("microworld_recall")


def test_lm_eval_on_the_saved_directory_gives_exactly_our_numbers(
    wrapped: Any, model: Any, tokenizer: Any, questions_dir: Path, tmp_path: Path
) -> None:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    manager = TaskManager(
        include_path=harness.TASKS_DIR, include_defaults=False, metadata={"data_dir": str(questions_dir)}
    )
    names = ["growtx_arc_easy", "growtx_squad_v2"]
    theirs = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(tmp_path), "dtype": "float32"},
        tasks=names,
        task_manager=manager,
        batch_size=2,
        device="cpu",
    )
    for name in names:
        (ours,) = harness.run_task(wrapped, harness.load_task(name, data_dir=str(questions_dir)))
        found = theirs["results"][name]
        assert ours.values == {metric: found[f"{metric},none"] for metric in ours.values}
        for key in ("prompt_hash", "doc_hash", "target"):
            assert [row[key] for row in ours.rows] == [row[key] for row in theirs["samples"][name]]
