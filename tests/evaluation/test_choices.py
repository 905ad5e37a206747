"""Letters read from written answers, and taken from log-likelihoods."""

import pytest

from clinmerge_jax.evaluation.choices import likeliest, read_letter

DRUGS = ("aspirin", "heparin", "warfarin", "alteplase")


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(C) because it dissolves the clot", "C"),
        ("  D) alteplase", "D"),
        ("**B**", "B"),
        ("B\nIt is given first.", "B"),
        ("C is correct", "C"),
        ("The answer is D.", "D"),
        ("answer: **A**", "A"),
        ("The correct choice is (C)", "C"),
        ("I first thought the answer is A, but the answer is B", "B"),
        ("The correct answer is B. Option A is incorrect, and Option C is too slow.", "B"),
        ("B. heparin, since option A is wrong", "B"),
        ("The answer is B, not option A", "B"),
        ("The answer is (B) because choice D is contraindicated.", "B"),
        ("Answer: A 45-year-old man should get heparin", "B"),
        ("Answer: A because it is cheap", "A"),
        ("the answer is b", "B"),
        ("I take option C", "C"),
        ("Not option A and not option B", ""),
        ("Considering everything, [C]", "C"),
        ("Heparin is best", "B"),
        ("I would give heparin.", "B"),
        ("Warfarin, not heparin", "C"),
        ("heparin, then warfarin, so not aspirin", "B"),
        ("either (A) or (B)", ""),
        ("both aspirin and heparin", ""),
        ("A patient was seen", ""),
        ("a bad idea", ""),
        ("E", ""),
        ("heparinoids", ""),
        ("", ""),
        ("\u0391", ""),  # a Greek capital alpha
    ],
)
def test_a_letter_is_read_where_one_is_given(answer, letter):
    assert read_letter(answer, DRUGS) == letter


def test_an_option_that_is_part_of_another_does_not_count_for_it():
    assert read_letter("No.", ("yes", "no", "maybe")) == "B"
    assert read_letter("It is not known", ("yes", "no", "maybe")) == ""


def test_of_equal_log_likelihoods_the_first_letter_is_taken():
    assert likeliest([-2.0, -1.0, -1.0]) == "B"
