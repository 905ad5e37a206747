"""What an answer begins and ends with (IFEval, arXiv 2311.07911: "Start with / End with")."""


def end_checker(response: str, *, end_phrase: str) -> bool:
    """The answer ends with the phrase, but for case and for straight double quotation marks after it."""
    return response.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def quotation(response: str) -> bool:
    """The first and the last character are straight double quotation marks; what lies between is not looked at."""
    text = response.strip()
    return len(text) > 1 and text.startswith('"') and text.endswith('"')
