"""Responses made by rules, so that every checker of IFEval sees answers that follow it and answers that do not."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

_BODIES = (
    "The river rises in the hills north of the town. It is short, cold and clear! Who would not swim in it?",
    "Thanks for the question. Mr. Hill of Stone & Co. came at 5 p.m. on Jan. 3; he paid 3.5 dollars (e.g. for tea).\n\n"
    "He left again... Nobody knows why. \"Was it the rain?\" asked Dr. A. Brook. 'No,' said she.",
    "first line\nsecond line\n\nthird, after a gap\n\n\nfourth after two",
    "# Plan\n\n1. Buy bread.\n2. Bake it -- slowly.\n\n- flour\n- *water*\n* salt\n  - a pinch\n\n**Enjoy!**",
    "```python\nprint('hello, [name]')\n```\nThat prints *hello*.",
    '{"answer": "forty-two", "sure": [true, null]}',
    '"We go," they said, "and we stay."',
    "Été — café – naïve; 你好，世界。 😀 e\u0301a ß İ",
    "NASA and ESA DON'T AGREE ON THE U.S. PLAN, but I'm at ease with COVID-19 rules.",
    "***\n\n---\n\n******\n\n<<>> << >> [] {} ** **",
    "yes",
    "42",
)
_SPOKEN = {
    "ar": "البيت كبير والحديقة جميلة",
    "bg": "Къщата е голяма и градината е красива",
    "de": "Das Haus ist groß und der Garten ist schön, aber wir wohnen nicht mehr dort.",
    "fi": "Talo on suuri ja puutarha on kaunis, mutta emme asu siellä enää.",
    "hi": "घर बड़ा है और बगीचा सुंदर है।",
    "it": "La casa è grande e il giardino è bello, ma non ci abitiamo più.",
    "ko": "집은 크고 정원은 아름답습니다.",
    "pt": "A casa é grande e o jardim é bonito, mas já não moramos lá.",
    "ru": "Дом большой, и сад красивый, но мы там больше не живём.",
    "sw": "Nyumba ni kubwa na bustani ni nzuri lakini hatuishi huko tena.",
    "th": "บ้านหลังนี้ใหญ่และสวนสวย",
    "vi": "Ngôi nhà rất lớn và khu vườn rất đẹp.",
}
_NOISE = (
    lambda text: "Sure! Here it is:\n" + text,
    lambda text: text + "\n\nI hope this helps!",
    lambda text: "Of course.\n\n" + text + "\n\nAnything else?",
    lambda text: f"```\n{text}\n```",
    lambda text: "\n".join(f"**{line}**" for line in text.split("\n")),
    lambda text: text.replace("\n", "\r\n"),
    lambda text: "\n\n" + text + "\n \t",
    lambda text: text.replace(" ", "  "),
    lambda text: text[: len(text) // 2],
    lambda text: text.replace(".", "").replace("*", ""),
    lambda text: f'"{text}"',
    lambda text: text.swapcase(),
    lambda text: text.title(),
    lambda text: "",
    lambda text: "  \n ",
)


def responses(row: Mapping[str, Any], count: int, seed: int = 0) -> list[str]:
    """Responses to a row of IFEval's data: a body, in which most instructions are obeyed or just missed, with noise."""
    made = []
    for number in range(count):
        rng = np.random.default_rng([seed, int(row["key"]), number])
        text = _BODIES[rng.integers(len(_BODIES))] * int(rng.choice([1, 1, 2, 8]))
        for kind, given in zip(row["instruction_id_list"], row["kwargs"]):
            if rng.random() < 0.7:
                text = _obeying(text, kind, given, int(rng.choice([0, 0, 0, 0, -1, 1])))
        for _ in range(rng.choice([0, 0, 1, 2])):
            text = _NOISE[rng.integers(len(_NOISE))](text)
        made.append(text)
    return made


def _obeying(text: str, kind: str, given: Mapping[str, Any], off: int) -> str:
    """Text changed so that it follows an instruction, or misses it by `off` where a number is asked for."""
    match kind.split(":")[1]:
        case "existence":
            return text + " " + " ".join(given["keywords"]).title()
        case "frequency":
            return _times(text, f" {given['keyword']}s", given["keyword"], given["frequency"] + off, given["relation"])
        case "forbidden_words":
            return re.sub("|".join(map(re.escape, given["forbidden_words"])), "it", text) + " " * (1 + off)
        case "letter_frequency":
            letter = given["letter"]
            return _times(text, letter.upper(), letter, given["let_frequency"] + off, given["let_relation"])
        case "response_language":
            return _SPOKEN.get(given["language"], "It is there.") * (2 + off)
        case "number_words":
            return _some(text.split(), "well-known", given["num_words"] + off, given["relation"], " ")
        case "number_sentences":
            found = re.split(r"(?<=[.!?])\s+", text)
            return _some(found, "So it is.", given["num_sentences"] + off, given["relation"], " ")
        case "number_paragraphs":
            return "\n\n***\n\n".join([f"Part {part}. {text[:20]}" for part in range(given["num_paragraphs"] + off)])
        case "nth_paragraph_first_word":
            parts = [f"Part {part}." for part in range(given["num_paragraphs"] + off)]
            place = min(given["nth_paragraph"], len(parts)) - 1
            parts[place] = f"'{given['first_word'].title()}, it is."
            return "\n\n".join(parts)
        case "number_placeholders":
            return text + " ".join(f"[name {place}]" for place in range(given["num_placeholders"] + off))
        case "postscript":
            return f"{text}\n\n{given['postscript_marker']} One more thing."
        case "number_bullet_lists":
            return "Here:\n" + "\n".join(f"{'*-'[place % 2]} point" for place in range(given["num_bullets"] + off))
        case "constrained_response":
            return ("My answer is yes.", "My answer is no.", "my answer is maybe.")[off]
        case "number_highlighted_sections":
            return text + " ".join(f"*part {place}*" for place in range(given["num_highlights"] + off))
        case "multiple_sections":
            parts = range(1, given["num_sections"] + off + 1)
            return "\n\n".join(f"{given['section_spliter']} {part}\n{text[:30]}" for part in parts)
        case "json_format":
            return ('```json\n{"a": [1, 2]}\n```', '{"a": NaN}', '["a"')[off]
        case "title":
            return ("<<The River>>\n", "<<the <river>\n>>", "<< River >> ")[off] + text
        case "two_responses":
            return ("First one.\n******\nSecond one.", "One.\n******\nOne.", "A\n******\n\n******\nB")[off]
        case "repeat_prompt":
            return f"{given['prompt_to_repeat'].upper()}\n\n{text}"
        case "end_checker":
            return f"{text}\n{given['end_phrase']}" + "!" * abs(off)
        case "quotation":
            return f'"{text}"'
        case "capital_word_frequency":
            frequency, relation = given["capital_frequency"] + off, given["capital_relation"]
            return _some([text.lower()], "WELL-DONE I'M", frequency, relation, " ")
        case "english_capital":
            return "THE HOUSE IS LARGE AND THE GARDEN IS FULL OF FLOWERS. " + text.upper()
        case "english_lowercase":
            return "the house is large and the garden is full of flowers. " + text.lower()
        case "no_comma":
            return text.replace(",", "")


def _times(text: str, piece: str, counted: str, count: int, relation: str) -> str:
    if relation == "at least":
        return text + piece * count
    return re.sub(re.escape(counted), "", text, flags=re.IGNORECASE) + piece * (count - 1)


def _some(found: list[str], filling: str, count: int, relation: str, joint: str) -> str:
    return joint.join([*found, *[filling] * count] if relation == "at least" else found[: max(count - 1, 0)])
