"""The languages that Whisper knows, and how people write them (pure)."""

import re

_TABLE = """
en/english/eng zh/chinese/zho/chi/cmn/mandarin de/german/deu/ger es/spanish/spa/castilian
ru/russian/rus ko/korean/kor fr/french/fra/fre ja/japanese/jpn pt/portuguese/por tr/turkish/tur
pl/polish/pol ca/catalan/cat/valencian nl/dutch/nld/dut/flemish ar/arabic/ara/arb sv/swedish/swe
it/italian/ita id/indonesian/ind/in hi/hindi/hin fi/finnish/fin vi/vietnamese/vie
he/hebrew/heb/iw uk/ukrainian/ukr el/greek/ell/gre ms/malay/msa/may cs/czech/ces/cze
ro/romanian/ron/rum/mo/moldavian/moldovan da/danish/dan hu/hungarian/hun ta/tamil/tam
no/norwegian/nor/nb/nob/bokmal th/thai/tha ur/urdu/urd hr/croatian/hrv bg/bulgarian/bul
lt/lithuanian/lit la/latin/lat mi/maori/mri/mao ml/malayalam/mal cy/welsh/cym/wel
sk/slovak/slk/slo te/telugu/tel fa/persian/fas/per/farsi lv/latvian/lav bn/bengali/ben
sr/serbian/srp az/azerbaijani/aze sl/slovenian/slv kn/kannada/kan et/estonian/est
mk/macedonian/mkd/mac br/breton/bre eu/basque/eus/baq is/icelandic/isl/ice hy/armenian/hye/arm
ne/nepali/nep mn/mongolian/mon bs/bosnian/bos kk/kazakh/kaz sq/albanian/sqi/alb sw/swahili/swa
gl/galician/glg mr/marathi/mar pa/punjabi/pan/panjabi si/sinhala/sin/sinhalese km/khmer/khm
sn/shona/sna yo/yoruba/yor so/somali/som af/afrikaans/afr oc/occitan/oci ka/georgian/kat/geo
be/belarusian/bel tg/tajik/tgk sd/sindhi/snd gu/gujarati/guj am/amharic/amh yi/yiddish/yid/ji
lo/lao/lao uz/uzbek/uzb fo/faroese/fao ht/haitian_creole/hat/haitian ps/pashto/pus/pushto
tk/turkmen/tuk nn/nynorsk/nno/norwegian_nynorsk mt/maltese/mlt sa/sanskrit/san
lb/luxembourgish/ltz/letzeburgesch my/myanmar/mya/bur/burmese bo/tibetan/bod/tib
tl/tagalog/tgl/fil/filipino mg/malagasy/mlg as/assamese/asm tt/tatar/tat haw/hawaiian
ln/lingala/lin ha/hausa/hau ba/bashkir/bak jw/javanese/jav/jv su/sundanese/sun yue/cantonese/zh-yue
"""
"""Whisper's code and name of each (whisper/tokenizer.py), then what else means it: ISO 639-2, older
codes, other names."""

NAMES: dict[str, str] = {}
"""English names by Whisper's codes."""
_CODES: dict[str, str] = {}
for _row in _TABLE.split():
    _code, *_others = _row.replace("_", " ").split("/")
    NAMES[_code] = _others[0]
    _CODES |= dict.fromkeys([_code, *_others], _code)


def code_of(text: str) -> str:
    """Whisper's code of a language that is given as code, English name or tag, as in `de`,
    `German`, `de-AT`, `zh_Hans` or `deu`. Raises ValueError, which names some, for any other."""
    asked = " ".join(text.lower().split())
    primary = re.split(r"[-_.@(]", asked)[0].strip()
    code = _CODES.get(asked) or _CODES.get(primary)
    if code is None:
        raise ValueError("auto, or a language that Whisper knows, as in en, german, pt-BR")
    return code
