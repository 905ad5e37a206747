"""Answers of more than one part (IFEval, arXiv 2311.07911: "Combination")."""


def two_responses(response: str) -> bool:
    """Check for two different answers separated by six asterisks.

    Six asterisks may also open or close the response. Two such dividers with nothing between them fail.
    """
    parts = [part.strip() for part in response.split("******")]
    answers = [part for part in parts if part]
    return all(parts[1:-1]) and len(answers) == 2 and answers[0] != answers[1]


def repeat_prompt(response: str, *, prompt_to_repeat: str) -> bool:
    """Check that the answer begins with the request, ignoring case. Whether anything follows it is not checked."""
    return response.strip().lower().startswith(prompt_to_repeat.strip().lower())
