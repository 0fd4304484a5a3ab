import json
from pathlib import Path

import pytest

from interventions.subject import Subject, load_subject
from tests.browser import browser as browser
from tests.tiny_models import save_model, save_sae


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, an SAE for it and a text."""
    folder = tmp_path_factory.mktemp("sensitivity")
    save_model(folder / "model")
    save_sae(folder / "sae", median_norm=2.0)
    lines = [f"the inn {i} in the rain, then another end\nof the line" for i in range(60)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in lines))
    return folder


@pytest.fixture(scope="session")
def subject(place: Path) -> Subject:
    return load_subject(str(place / "model"), str(place / "sae"))
