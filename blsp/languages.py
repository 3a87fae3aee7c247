"""Names of languages: `en`, `en-US`, `en_us`, `eng` and `English` are one, wherever languages are compared."""

import functools

# One language in what Whisper, langid and most corpora call it.
_SAME = {"cmn": "zh", "nb": "no"}


@functools.cache
def tag(language: str | None) -> str | None:
    """The language as a BCP 47 tag, its region kept: `en-US` of en_us, `de` of German, ger or deu.

    None where none is named; a name that nobody knows in small letters.
    """
    import langcodes

    name = (language or "").strip()
    if not name:
        return None
    try:
        if langcodes.Language.get(name).is_valid():
            return langcodes.standardize_tag(name)
    except langcodes.LanguageTagError:
        pass
    try:
        return langcodes.find(name).to_tag()
    except LookupError:
        return name.lower()


@functools.cache
def primary(language: str | None) -> str | None:
    """The language alone, by which languages are compared: `en` of en, en-US, en_us, eng and English."""
    found = tag(language)
    code = found.partition("-")[0] if found else None
    return _SAME.get(code, code) if code else None


def is_known(language: str) -> bool:
    """Whether it is the code or the English name of a language that there is."""
    import langcodes

    try:
        return langcodes.Language.get(tag(language) or "").is_valid()
    except langcodes.LanguageTagError:
        return False
