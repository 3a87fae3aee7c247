import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blsp.errors import BlspError
from blsp.files import sha256_of
from blsp.params import Gate
from blsp.registry import overview, promote, roll_back, smoke
from blsp.tracking.store import Store, session
from tests.trained import Answering, Trained

pytestmark = pytest.mark.usefixtures("unasked")


@pytest.fixture
def store(trained: Trained) -> Iterator[Store]:
    with session() as opened:
        yield opened


def aliases(store: Store, trained: Trained) -> dict[str, int]:
    found = store.client.get_registered_model(trained.params.promote.model_name).aliases
    return {alias: int(version) for alias, version in found.items()}


def versions(store: Store, trained: Trained) -> list[Any]:
    return list(store.client.search_model_versions(f"name = '{trained.params.promote.model_name}'"))


def test_the_first_good_model_becomes_champion_with_its_lineage(trained: Trained, store: Store) -> None:
    promotion = promote(trained.params)
    assert (promotion.outcome, promotion.version, promotion.former) == ("promoted", 1, None)
    assert aliases(store, trained) == {"challenger": 1, "champion": 1}
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
    assert aliases(store, trained) == {"challenger": 2, "champion": 1}
    assert promotion.summary() == (
        f"{trained.params.promote.model_name} version 2 is refused, version 1 stays champion: "
        "speech.st.bleu is 77, but must be at least 78 (champion (80) - 2): 1 too low; "
        "speech.asr.wer is 0.17, but must be at most 0.1 (cascade (0.07) + 0.03): 0.07 too high; "
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
    assert aliases(store, trained) == {"challenger": 2, "champion": 2}


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


def changed(trained: Trained, **promote: Any) -> Any:
    """The params with this in their section `promote`."""
    section = trained.params.promote.model_copy(update=promote)
    return trained.params.model_copy(update={"promote": section})


def next_adapter(trained: Trained, weights: str, **evaluation: Any) -> None:
    trained.write_training(steps=25, weights=weights)
    trained.write_evaluation(**evaluation)


def test_a_task_that_fell_on_the_same_items_refuses_though_its_gate_holds(trained: Trained, store: Store) -> None:
    promote(trained.params)
    next_adapter(trained, "fallen", wrong={"slu": 8})
    promotion = promote(trained.params)
    assert promotion.outcome == "refused"
    (failed,) = [check for check in promotion.checks if not check.holds]
    assert failed.metric == "speech.slu.accuracy less champion's"
    assert failed.source.startswith("-0.2 [") and "on 40 of 40 items" in failed.source
    assert aliases(store, trained) == {"challenger": 2, "champion": 1}
    assert "- not compared with the champion" not in promotion.table()
    assert promote(changed(trained, tolerated_falls={"slu": 0.2})).outcome == "promoted"


def test_falls_are_not_asked_where_params_say_so(trained: Trained) -> None:
    promote(trained.params)
    next_adapter(trained, "fallen", wrong={"slu": 8})
    assert promote(changed(trained, no_task_may_fall=False)).outcome == "promoted"


def test_a_champion_without_answers_is_named_with_the_remedy(trained: Trained, store: Store) -> None:
    Path("reports/answers.parquet").unlink()
    promote(trained.params)
    (first,) = versions(store, trained)
    next_adapter(trained, "next")
    with pytest.raises(BlspError, match=rf"version 1\) has no answers.parquet .*--run-id {first.run_id}"):
        promote(trained.params)
    assert aliases(store, trained) == {"champion": 1, "challenger": 1}


def test_a_champion_evaluated_again_is_compared_on_what_it_was_asked_then(trained: Trained) -> None:
    promote(trained.params)
    next_adapter(trained, "next")
    trained.write_answers({}, first=100)  # another test split
    with pytest.raises(BlspError, match="of 40 answers to asr only 0 are to what the champion was asked too"):
        promote(trained.params)
    trained.write_training(steps=25)  # the champion's adapter, evaluated again
    trained.write_evaluation()
    trained.write_answers({}, first=100)
    assert promote(trained.params).outcome == "already champion"
    next_adapter(trained, "next")
    trained.write_answers({}, first=100)
    assert promote(trained.params).outcome == "promoted"


def test_a_version_that_does_not_answer_gets_no_alias(
    trained: Trained, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(trained.params)
    next_adapter(trained, "mute")
    monkeypatch.setattr("blsp.registry.promotion.prepare", lambda params: Answering("smoke test: it said nothing"))
    promotion = promote(trained.params)
    assert promotion.summary() == (
        f"{trained.params.promote.model_name} version 2 is refused, version 1 stays champion: "
        "smoke test: it said nothing"
    )
    assert aliases(store, trained) == {"champion": 1, "challenger": 1}
    assert {v.version: v.tags["blsp.gates"] for v in versions(store, trained)}[2] == promotion.summary()


def test_nothing_is_registered_where_the_smoke_test_cannot_be_prepared(
    trained: Trained, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blsp.registry.promotion.prepare", smoke.prepare)
    with pytest.raises(BlspError, match="data/corpus"):
        promote(trained.params)
    assert versions(store, trained) == []


def test_rolling_back_goes_back_and_not_forth(trained: Trained, store: Store) -> None:
    name = trained.params.promote.model_name
    with pytest.raises(BlspError, match="no champion to roll back from"):
        roll_back(trained.params)
    for weights in ("one", "two", "three"):
        next_adapter(trained, weights)
        assert promote(trained.params).outcome == "promoted"
    assert roll_back(trained.params).summary() == f"{name} version 2 is champion again, version 3 no longer"
    assert roll_back(trained.params).version == 1
    assert aliases(store, trained) == {"champion": 1, "challenger": 3}
    with pytest.raises(BlspError, match=r"version 1 is the first champion.*champions were: 1, 2, 3"):
        roll_back(trained.params)
    assert roll_back(trained.params, version=3).version == 3
    shown = overview(trained.params)
    assert f"champion:   version 3, adapter {sha256_of('models/adapter')[:12]}" in shown
    assert [line.split("|")[2:5:2] for line in shown.splitlines() if "rolled back" in line] == [
        [" version 2 ", " version 3 "],
        [" version 1 ", " version 2 "],
        [" version 3 ", " version 1 "],
    ]
    assert "under way" not in shown


def test_a_roll_back_to_what_never_passed_is_refused(trained: Trained, store: Store) -> None:
    promote(trained.params)
    next_adapter(trained, "worse", wer=0.5)
    assert promote(trained.params).outcome == "refused"
    for version, message in ((2, "was never champion"), (7, "has no version 7"), (1, "is champion already")):
        with pytest.raises(BlspError, match=message):
            roll_back(trained.params, version)
    assert aliases(store, trained) == {"champion": 1, "challenger": 2}


def test_a_roll_back_to_files_that_are_gone_is_refused(trained: Trained, store: Store) -> None:
    promote(trained.params)
    next_adapter(trained, "next")
    promote(trained.params)
    first = store.client.get_model_version(trained.params.promote.model_name, 1)
    model = store.client.get_logged_model(first.tags["blsp.model_id"])
    shutil.rmtree(model.artifact_location.removeprefix("file://"))
    with pytest.raises(BlspError, match="its files cannot be read"):
        roll_back(trained.params)
    assert aliases(store, trained)["champion"] == 2
