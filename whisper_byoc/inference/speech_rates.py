"""How many tokens a second of speech can have, by language (pure).

A decode that needs more goes round in circles. English has up to 5 (4.75 in our fastest recording).
Speech of any language says about as much in a second (Coupé and others 2019, "Different languages,
similar encoding efficiency"), but Whisper's multilingual vocabulary was made of English above all:
the Universal Declaration of Human Rights has 1.4 times the tokens of its English text in
Portuguese, 6 times in Hindi, 22 times in Burmese. The table has 5 times that ratio, rounded up to
one of its steps.
"""

_LANGUAGES = {
    8: "de en es la pt",
    10: "af ca da fi fr gl id it ko ln nl nn no pl ru sv sw tr yue zh",
    12: "ar bg br bs cs cy et eu fo he hr ht is ja lb lt mg mk ms ro sk sl sn sr su tl uk",
    16: "az be el fa ha haw hu jw lv mi mt oc so sq tk ur uz",
    20: "ba kk mn ps sd tg tt",
    32: "hi ne sa ta th vi yi yo",
    48: "hy kn mr si",
    64: "am as bn km ml pa te",
    80: "gu ka lo",
    96: "bo",
    112: "my",
}
"""Of Bashkir, Assamese and Sindhi there was no text: they are counted as Tatar, Bengali and Pashto,
which are written with the same letters."""

_RATES = {language: rate for rate, names in _LANGUAGES.items() for language in names.split()}


def tokens_per_second(language: str) -> int:
    """More tokens than a second of speech has in Whisper's code of a language."""
    return _RATES[language]
