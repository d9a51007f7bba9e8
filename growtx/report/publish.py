"""Adding an evaluation to what is there: `evaluation.json`, the model card, and the page that a person opens."""

from __future__ import annotations

from growtx.evaluate.results import Evaluation, save_evaluation
from growtx.report.evaluation import write_evaluation_page
from growtx.report.growth import write_report
from growtx.report.model_card import CARD_FILE, write_model_card
from growtx.storage import Storage
from growtx.store.run_records import RUN_FILE


def publish(home: Storage, evaluation: Evaluation) -> str:
    """Add an evaluation to `evaluation.json` beside its model and to the report there; returns the page's address."""
    together = save_evaluation(home, evaluation)
    if home.exists(CARD_FILE):
        write_model_card(home.root)
    return write_report(home.root) if home.exists(RUN_FILE) else write_evaluation_page(together, home)
