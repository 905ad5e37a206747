"""What an answer begins and ends with (IFEval, arXiv 2311.07911: "Start with / End with")."""


def end_checker(response: str, *, end_phrase: str) -> bool:
    """Check that the answer ends with the phrase, ignoring case and straight double quotation marks after it."""
    return response.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def quotation(response: str) -> bool:
    """Check that the first and the last character are straight double quotation marks; the rest is not checked."""
    text = response.strip()
    return len(text) > 1 and text.startswith('"') and text.endswith('"')
