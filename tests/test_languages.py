import pytest

from blsp.languages import is_known, primary, tag


@pytest.mark.parametrize("name", ["en", "EN", "en-US", "en_us", "en-GB", "eng", "English", "english", " en "])
def test_english_is_one_language_however_it_is_written(name):
    assert primary(name) == "en"
    assert is_known(name)


@pytest.mark.parametrize(
    ("name", "code", "full"),
    [
        ("de_CH", "de", "de-CH"),
        ("ger", "de", "de"),
        ("German", "de", "de"),
        ("zh-CN", "zh", "zh-CN"),
        ("cmn", "zh", "cmn"),
        ("Mandarin", "zh", "cmn"),
        ("yue", "yue", "yue"),
        ("nb-NO", "no", "nb-NO"),
        ("iw", "he", "he"),
    ],
)
def test_codes_and_names_of_other_languages(name, code, full):
    assert (primary(name), tag(name)) == (code, full)


def test_what_names_no_language_is_kept_apart():
    assert primary(None) is primary("") is primary("  ") is None
    assert primary("Gobbledygook") == "gobbledygook" and not is_known("Gobbledygook")
    assert primary("../x") == "../x" and not is_known("../x") and not is_known("xx")
