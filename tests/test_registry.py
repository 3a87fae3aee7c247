from collections.abc import Iterator
from typing import Any

import pytest

from blsp.errors import BlspError
from blsp.params import Gate
from blsp.registry import promote
from blsp.tracking.store import Store, session
from tests.trained import Trained


@pytest.fixture
def store(trained: Trained) -> Iterator[Store]:
    with session() as opened:
        yield opened


def aliases(store: Store, trained: Trained) -> dict[str, Any]:
    return dict(store.client.get_registered_model(trained.params.promote.model_name).aliases)


def versions(store: Store, trained: Trained) -> list[Any]:
    return list(store.client.search_model_versions(f"name = '{trained.params.promote.model_name}'"))


def test_the_first_good_model_becomes_champion_with_its_lineage(trained: Trained, store: Store) -> None:
    promotion = promote(trained.params)
    assert (promotion.outcome, promotion.version, promotion.former) == ("promoted", 1, None)
    assert {k: int(v) for k, v in aliases(store, trained).items()} == {"challenger": 1, "champion": 1}
    (version,) = versions(store, trained)
    assert version.tags["dvc:data/corpus"] == trained.digest("data/corpus")
    assert version.tags["speech.asr.wer"] == "0.08"
    assert version.tags["blsp.backbone.llm.name"] == "models/backbones/llm"
    run = store.client.get_run(version.run_id)
    assert run.data.tags["blsp.adapter_sha256"] == version.tags["blsp.adapter_sha256"]


def test_promoting_the_champion_again_changes_nothing(trained: Trained, store: Store) -> None:
    promote(trained.params)
    before = [(v.version, v.tags) for v in versions(store, trained)]
    promotion = promote(trained.params)
    assert (promotion.outcome, promotion.version) == ("already champion", 1)
    assert promotion.summary() == f"{trained.params.promote.model_name} version 1 is already champion"
    assert [(v.version, v.tags) for v in versions(store, trained)] == before


def test_a_worse_model_stays_challenger_and_is_told_why(trained: Trained, store: Store) -> None:
    promote(trained.params)
    trained.write_training(steps=25, weights="worse")
    trained.write_evaluation(bleu=77.0, wer=0.17)
    promotion = promote(trained.params)
    assert promotion.outcome == "refused"
    assert {k: int(v) for k, v in aliases(store, trained).items()} == {"challenger": 2, "champion": 1}
    assert promotion.summary() == (
        f"{trained.params.promote.model_name} version 2 is refused, version 1 stays champion: "
        "speech.st.bleu is 77, but must be at least 78 (champion (80) - 2): 1 too low; "
        "speech.asr.wer is 0.17, but must be at most 0.15 (cascade (0.07) + 0.08): 0.02 too high; "
        "speech.asr.wer is 0.17, but must be at most 0.1 (champion (0.08) + 0.02): 0.07 too high"
    )
    assert promotion.table().count("FAILS") == 3
    assert promote(trained.params).version == 2  # asked again: the same version, judged again


def test_a_better_model_follows_the_champion(trained: Trained, store: Store) -> None:
    promote(trained.params)
    trained.write_training(steps=25, weights="better")
    trained.write_evaluation(bleu=85.0)
    promotion = promote(trained.params)
    assert (promotion.outcome, promotion.version, promotion.former) == ("promoted", 2, 1)
    assert {k: int(v) for k, v in aliases(store, trained).items()} == {"challenger": 2, "champion": 2}


def test_a_champion_that_later_gates_exclude_is_reported(trained: Trained, store: Store) -> None:
    promote(trained.params)
    gates = {"speech.qa.accuracy": Gate(min=0.99)}
    stricter = trained.params.promote.model_copy(update={"gates": gates})
    promotion = promote(trained.params.model_copy(update={"promote": stricter}))
    assert promotion.outcome == "refused"
    assert "is champion, but by these gates it would not become one" in promotion.summary()
    assert aliases(store, trained)["champion"] == aliases(store, trained)["challenger"]


def test_nothing_is_registered_when_a_gate_has_no_figure(trained: Trained, store: Store) -> None:
    gates = {"speech.asr.cer": Gate(max=0.1)}
    params = trained.params.model_copy(update={"promote": trained.params.promote.model_copy(update={"gates": gates})})
    with pytest.raises(BlspError, match=r"promote\.gates\.speech\.asr\.cer: needs speech\.asr\.cer"):
        promote(params)
    assert versions(store, trained) == []


def test_an_adapter_needs_an_evaluation_of_its_own(trained: Trained) -> None:
    trained.write_training(steps=25, weights="retrained")
    with pytest.raises(BlspError, match="judges another adapter"):
        promote(trained.params)


def test_promotion_needs_the_registry(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLSP_TRACKING", "off")
    with pytest.raises(BlspError, match="BLSP_TRACKING=off"):
        promote(trained.params)
