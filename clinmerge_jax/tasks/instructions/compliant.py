"""Rewriting of a text by rules so that it follows instructions.

The results show that an item is solvable. They also give scores a ceiling, and a trivial baseline that follows all
instructions without saying anything.
"""

import json
import re
from collections.abc import Callable, Sequence

from clinmerge_jax.instructions.counting import sentences, words
from clinmerge_jax.instructions.target import InstructionTarget

NOTHING = "Here is a plain answer that says very little. It is short and it is calm."
_MORE = "This sentence adds a few more plain words."
_TITLE = "<<In short>>"
LANGUAGES = {
    "es": "Esta es una respuesta corta y clara que no dice casi nada. La escribo porque alguien me la pidió ayer.",
    "fr": "Voici une réponse courte et claire qui ne dit presque rien. Je l'écris parce que quelqu'un me l'a demandée.",
    "nl": "Dit is een kort en duidelijk antwoord dat bijna niets zegt. Ik schrijf het omdat iemand erom vroeg.",
    "pl": "To jest krótka i jasna odpowiedź, która prawie nic nie mówi. Piszę ją, ponieważ ktoś mnie o nią poprosił.",
    "sv": "Det här är ett kort och tydligt svar som nästan inte säger något. Jag skriver det eftersom någon bad mig.",
    "tr": "Bu neredeyse hiçbir şey söylemeyen kısa ve açık bir cevaptır. Bunu yazıyorum çünkü birisi benden istedi.",
}


def obey(text: str, asked: InstructionTarget) -> str:
    """Rewrite a text to follow the instructions, keeping as many of its words as they allow.

    Not every set of instructions can be followed this way; callers must check the result.

    Raises:
      KeyError: an instruction has no rule.
    """
    kwargs_of = {instruction.id: instruction.kwargs for instruction in asked.instructions}
    if unknown := kwargs_of.keys() - _RULES.keys():
        raise KeyError(f"no rule makes an answer that follows {sorted(unknown)}")
    answer = _plain(text)
    for id_, rule in _RULES.items():
        if id_ in kwargs_of:
            answer = rule(answer, **kwargs_of[id_])
    return answer


def _plain(text: str) -> str:
    """The text on one line, without marks of lists, emphasis, placeholders or quotation."""
    return " ".join(re.sub(r'[*"\[\]<>•]|^\s*-+', " ", text, flags=re.MULTILINE).split())


def _response_language(text: str, language: str) -> str:
    return LANGUAGES[language]


def _without(text: str, word: str, kept: int = 0) -> str:
    """Remove a word after its first `kept` occurrences; if `kept` is over 0, occurrences within longer words count."""
    pattern = rf"\b{re.escape(word)}\b" if not kept else re.escape(word)
    found = list(re.finditer(pattern, text, flags=re.IGNORECASE))
    for match in reversed(found[kept:]):
        text = text[: match.start()] + text[match.end() :]
    return " ".join(text.split())


def _forbidden_words(text: str, forbidden_words: Sequence[str]) -> str:
    for word in forbidden_words:
        text = _without(text, word)
    return text


def _existence(text: str, keywords: Sequence[str]) -> str:
    missing = [keyword for keyword in keywords if keyword.lower() not in text.lower()]
    return f"On {' and '.join(missing)}: {text}" if missing else text


def _frequency(text: str, keyword: str, frequency: int, relation: str) -> str:
    if relation == "less than":
        return _without(text, keyword, kept=frequency - 1) if frequency > 1 else _without(text, keyword)
    missing = frequency - text.lower().count(keyword.lower())
    return f"On {' and '.join([keyword] * missing)}: {text}" if missing > 0 else text


def _letter_frequency(text: str, letter: str, let_frequency: int, let_relation: str) -> str:
    if let_relation == "at least":
        missing = let_frequency - text.lower().count(letter)
        return f"{' '.join([letter] * missing)}: {text}" if missing > 0 else text
    kept, left = [], let_frequency - 1
    for word in text.split():
        count = word.lower().count(letter)
        if count <= left:
            kept.append(word)
            left -= count
    return " ".join(kept)


def _number_placeholders(text: str, num_placeholders: int) -> str:
    return f"{' '.join(['[name]'] * num_placeholders)} {text}"


def _number_words(text: str, relation: str, num_words: int) -> str:
    if relation == "at least":
        missing = num_words - len(words(text))
        return text + f" {_MORE}" * max(0, -(-missing // len(words(_MORE))))
    kept = text.split()
    while len(words(" ".join(kept))) >= num_words:
        kept.pop()
    return " ".join(kept)


def _number_sentences(text: str, relation: str, num_sentences: int) -> str:
    parts = sentences(text)
    if relation == "at least":
        return text + f" {_MORE}" * max(0, num_sentences - len(parts))
    if len(parts) < num_sentences:
        return text
    last = max(0, num_sentences - 2)
    joined = [*(re.sub(r"[.!?]+$", ";", part) for part in parts[last:-1]), *parts[-1:]]
    return " ".join([*parts[:last], *joined])


def _capital_word_frequency(text: str, capital_frequency: int, capital_relation: str) -> str:
    if capital_relation == "less than":
        return text.lower()
    left, answer = capital_frequency, []
    for word in text.split():
        capital = left > 0 and len(re.findall(r"[a-zA-Z]", word)) > 1
        answer.append(word.upper() if capital else word)
        left -= capital
    return " ".join(answer)


def _number_highlighted_sections(text: str, num_highlights: int) -> str:
    parts = text.split()
    return " ".join([f"*{word}*" for word in parts[:num_highlights]] + parts[num_highlights:])


def _pieces(text: str, count: int) -> list[str]:
    """Split the text into `count` parts, between sentences, or between words where there are too few sentences."""
    parts = sentences(text)
    if len(parts) < count:
        parts = text.split()
    parts += [_MORE] * max(0, count - len(parts))
    ends = [round(len(parts) * piece / count) for piece in range(count + 1)]
    return [" ".join(parts[start:end]) for start, end in zip(ends, ends[1:])]


def _number_bullet_lists(text: str, num_bullets: int) -> str:
    return "\n".join(f"- {piece}" for piece in _pieces(text, num_bullets))


def _number_paragraphs(text: str, num_paragraphs: int) -> str:
    return "\n***\n".join(_pieces(text, num_paragraphs))


def _multiple_sections(text: str, section_spliter: str, num_sections: int) -> str:
    pieces = _pieces(text, num_sections)
    return "\n".join(f"{section_spliter} {number}\n{piece}" for number, piece in enumerate(pieces, 1))


def _nth_paragraph_first_word(text: str, first_word: str, num_paragraphs: int, nth_paragraph: int) -> str:
    pieces = _pieces(text, num_paragraphs)
    pieces[nth_paragraph - 1] = f"{first_word.capitalize()}. {pieces[nth_paragraph - 1]}"
    return "\n\n".join(pieces)


def _headings(text: str, headings: Sequence[str]) -> str:
    return "\n".join(f"{heading}\n{piece}" for heading, piece in zip(headings, _pieces(text, len(headings))))


def _json_keys(text: str, keys: Sequence[str]) -> str:
    return json.dumps(dict(zip(keys, _pieces(text, len(keys)))), ensure_ascii=False)


# In order of application: words, then lengths, marks within lines, lines, text around the answer, letters.
_RULES: dict[str, Callable[..., str]] = {
    "language:response_language": _response_language,
    "keywords:forbidden_words": _forbidden_words,
    "keywords:existence": _existence,
    "keywords:frequency": _frequency,
    "keywords:letter_frequency": _letter_frequency,
    "detectable_content:number_placeholders": _number_placeholders,
    "length_constraints:number_words": _number_words,
    "length_constraints:number_sentences": _number_sentences,
    "change_case:capital_word_frequency": _capital_word_frequency,
    "detectable_format:number_highlighted_sections": _number_highlighted_sections,
    "detectable_format:number_bullet_lists": _number_bullet_lists,
    "length_constraints:number_paragraphs": _number_paragraphs,
    "detectable_format:multiple_sections": _multiple_sections,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph_first_word,
    "clinical:headings": _headings,
    "clinical:json_keys": _json_keys,
    "detectable_format:json_format": lambda text: json.dumps({"answer": text}, ensure_ascii=False),
    "combination:two_responses": lambda text: f"{text}\n******\n{_MORE} {text}",
    "detectable_format:title": lambda text: f"{_TITLE}\n{text}",
    "detectable_content:postscript": lambda text, postscript_marker: f"{text}\n{postscript_marker} {_MORE}",
    "combination:repeat_prompt": lambda text, prompt_to_repeat: f"{prompt_to_repeat}\n{text}",
    "startend:end_checker": lambda text, end_phrase: f"{text}\n{end_phrase}",
    "detectable_format:constrained_response": lambda text: "My answer is maybe.",
    "punctuation:no_comma": lambda text: text.replace(",", ""),
    "change_case:english_capital": str.upper,
    "change_case:english_lowercase": str.lower,
    "clinical:uppercase": str.upper,
    "clinical:lowercase": str.lower,
    "startend:quotation": lambda text: f'"{text}"',
}
