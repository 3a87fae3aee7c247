"""Values of a run in place of those in params.yaml: profiles, overrides, and what is refused."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from blsp.params import Params, ParamsError, with_overrides
from blsp.params.loading import parse_params
from blsp.params.overrides import PROFILES

ROOT = Path(__file__).parents[1]
COMMITTED = (ROOT / "params.yaml").read_text(encoding="utf-8")
NAMES = sorted(path.stem for path in (ROOT / PROFILES).glob("*.yaml"))


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def params(profile: str | None, *overrides: str) -> Params:
    return parse_params(with_overrides(COMMITTED, profile, overrides), "params.yaml")


def lines_changed(text: str) -> list[str]:
    return [new for old, new in zip(COMMITTED.splitlines(), text.splitlines(), strict=True) if old != new]


def test_an_override_changes_its_line_alone_and_keeps_its_comment() -> None:
    text = with_overrides(COMMITTED, None, ["train.lr=1e-4", "backbones.llm_name=owner/llm", "train.compile=true"])
    assert lines_changed(text) == [
        "  llm_name: owner/llm           # as speech_name, for the chat LLM; local and package: a GGUF file too",
        "  compile: true                 # torch.compile both backbones",
        "  lr: 1e-4                      # peak AdamW learning rate",
    ]
    assert with_overrides(COMMITTED) == COMMITTED == with_overrides(COMMITTED, "miniature")


def test_values_are_yaml_and_sections_with_free_names_take_one_entry_or_all() -> None:
    assert params(None, "train.shares={continuation: 1.0}").train.shares == {"continuation": 1.0}
    both = params(None, "train.shares.continuation=0.8", "train.shares.repetition=0.2").train.shares
    assert both == {"continuation": 0.8, "repetition": 0.2}
    assert params(None, "evaluate.judge=null").evaluate.judge is None
    (source,) = params(None, "corpus.sources=[{name: librispeech, path: /d}]").corpus.sources
    assert source.path == "/d"


@pytest.mark.parametrize("name", NAMES)
def test_every_profile_is_accepted_and_an_override_comes_after_it(name: str) -> None:
    assert params(name, "train.lr=1e-6").train.lr == 1e-6
    backbones = params(name).backbones
    assert (backbones.source == "miniature") == (name == "miniature")


def test_the_published_recipe_is_the_papers() -> None:
    train = params("whisper-small-llama-2-7b").train
    assert (train.objective, train.shares, train.adapter) == ("ce", {"continuation": 1.0}, "conv")
    assert (train.downsampling, train.bottleneck, train.batch_size) == (8, 512, 768)
    assert (train.lr, train.warmup_steps, train.weight_decay, train.clip_norm) == (5e-5, 1000, 0.05, 1.0)
    assert train.steps * train.batch_size == pytest.approx(8.8e6, rel=0.001)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.lrr=1", "params.yaml with train.lrr=1: train.lrr: unknown key; the nearest valid key is train.lr"),
        ("trian.lr=1", "params.yaml with trian.lr=1: trian: unknown key; the nearest valid key is train"),
        ("train.lr=fast", "params.yaml with train.lr=fast: train.lr: must be a number; found 'fast'"),
        ("train.steps=0", "params.yaml with train.steps=0: train.steps: must be greater than 0; found 0"),
        ("train.lr.x=1", "params.yaml with train.lr.x=1: train.lr: must be a number; found {'x': 1}"),
        ("train.lr", "train.lr: not an override; write a key of params.yaml and its value, such as train.lr=1e-4"),
        (".lr=1", ".lr=1: not an override; write a key of params.yaml and its value, such as train.lr=1e-4"),
        ("train.lr=[1", "train.lr=[1: the value is not YAML: expected ',' or ']', but got '<stream end>'"),
    ],
)
def test_what_is_no_value_of_params_yaml_is_refused(override: str, said: str) -> None:
    with pytest.raises(ParamsError) as refusal:
        with_overrides(COMMITTED, None, [override])
    assert str(refusal.value) == said


@pytest.mark.parametrize("name", ["miniatur", "../params", ""])
def test_unknown_profile_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(
        ParamsError, match=f"profiles/{name}.yaml: there is no such profile; there are: laptop, miniature, "
    ):
        with_overrides(COMMITTED, name)


def test_faulty_profile_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    PROFILES.mkdir()
    (PROFILES / "mine.yaml").write_text("train:\n  lr: [1\n")
    with pytest.raises(ParamsError, match=r"profiles/mine\.yaml, line 3: not YAML"):
        with_overrides(COMMITTED, "mine")
    (PROFILES / "mine.yaml").write_text("- train.lr\n")
    with pytest.raises(ParamsError, match=r"profiles/mine\.yaml: must hold sections"):
        with_overrides(COMMITTED, "mine")
    (PROFILES / "mine.yaml").write_text(
        "evaluate:\n  judge: {server_url: http://h/v1, model: m, items: 5, timeout_s: 9.0}\n"
    )
    judge = YAML(typ="safe", pure=True).load(with_overrides(COMMITTED, "mine"))["evaluate"]["judge"]
    assert judge["items"] == 5
