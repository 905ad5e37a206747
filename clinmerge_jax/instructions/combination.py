"""Answers of more than one part (IFEval, arXiv 2311.07911: "Combination")."""


def two_responses(response: str) -> bool:
    """Two different answers with six asterisks between them.

    Asterisks may also open or close the whole; two groups of them with nothing between are one too many.
    """
    parts = [part.strip() for part in response.split("******")]
    answers = [part for part in parts if part]
    return all(parts[1:-1]) and len(answers) == 2 and answers[0] != answers[1]


def repeat_prompt(response: str, *, prompt_to_repeat: str) -> bool:
    """The answer begins with the request, but for case. That an answer follows it is not checked."""
    return response.strip().lower().startswith(prompt_to_repeat.strip().lower())
