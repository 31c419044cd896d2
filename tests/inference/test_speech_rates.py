"""The tokens that text needs in Whisper's multilingual vocabulary, spoken fast."""

import pytest
from whisper.tokenizer import LANGUAGES, get_tokenizer
from whisper.utils import compression_ratio

from whisper_byoc.inference.ladder import find_trip
from whisper_byoc.inference.speech_rates import tokens_per_second

TOKENIZER = get_tokenizer(True, num_languages=100)
FAST_SECONDS = 7.5
"""30 English words at 240 a minute; the same is said in about the same time in every language."""
ARTICLE = {
    "en": "All human beings are born free and equal in dignity and rights. They are endowed with"
    " reason and conscience and should act towards one another in a spirit of brotherhood.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft"
    " und Gewissen begabt und sollen einander im Geist der Brüderlichkeit begegnen.",
    "ja": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。"
    "人間は、理性と良心とを授けられており、互いに同胞の精神をもって行動しなければならない。",
    "hi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।"
    " उन्हें बुद्धि और अन्तरात्मा की देन प्राप्त है और परस्पर उन्हें भाईचारे के भाव से बर्ताव करना चाहिए।",
    "ta": "மனிதப் பிறிவியினர் சகலரும் சுதந்திரமாகவே பிறக்கின்றனர்; அவர்கள் மதிப்பிலும்,"
    " உரிமைகளிலும் சமமானவர்கள், அவர்கள் நியாயத்தையும் மனச்சாட்சியையும் இயற்பண்பாகப்"
    " பெற்றவர்கள். அவர்கள் ஒருவருடனொருவர் சகோதர உணர்வுப் பாங்கில் நடந்துகொள்ளல் வேண்டும்.",
    "th": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ ต่างมีเหตุผลและมโนธรรม"
    " และควรปฏิบัติต่อกันด้วยเจตนารมณ์แห่งภราดรภาพ",
    "ka": "ყოველი ადამიანი იბადება თავისუფალი და თანასწორი თავისი ღირსებითა და უფლებებით. მათ"
    " მინიჭებული აქვთ გონება და სინდისი და ერთმანეთის მიმართ უნდა ექცეოდნენ ძმობის"
    " სულისკვეთებით.",
    "my": "လူတိုင်းသည် တူညီ လွတ်လပ်သော ဂုဏ်သိက္ခာဖြင့် လည်းကောင်း၊ တူညီလွတ်လပ်သော"
    " အခွင့်အရေးများဖြင့် လည်းကောင်း၊ မွေးဖွားလာသူများ ဖြစ်သည်။ ထိုသူတို့၌ ပိုင်းခြား ဝေဖန်တတ်သော"
    " ဉာဏ်နှင့် ကျင့်ဝတ် သိတတ်သော စိတ်တို့ရှိကြ၍ ထိုသူတို့သည် အချင်းချင်း မေတ္တာထား၍"
    " ဆက်ဆံကျင့်သုံးသင့်၏။",
}
"""The first article of the Universal Declaration of Human Rights."""


def tokens_of(text: str) -> list[int]:
    return [int(token) for token in TOKENIZER.encode(" " + text)]


@pytest.mark.parametrize("language", ARTICLE)
def test_fast_speech_stays_under_the_cap_and_circles_do_not(language: str) -> None:
    needed = len(tokens_of(ARTICLE[language])) / FAST_SECONDS
    assert needed <= tokens_per_second(language) <= 3 * needed


@pytest.mark.parametrize("language", ARTICLE)
def test_plain_text_that_fills_the_positions_is_no_loop(language: str) -> None:
    """Whatever its letters: bytes of Tamil compress better than Whisper's limit for loops."""
    text = TOKENIZER.decode((tokens_of(ARTICLE[language]) * 2)[:224])
    ratio = compression_ratio(ARTICLE[language])
    assert find_trip(text, ratio, 0.1, -0.3, complete=False) is None


def test_every_language_of_whisper_has_a_rate() -> None:
    assert all(tokens_per_second(language) >= 8 for language in LANGUAGES)
