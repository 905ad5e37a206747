"""Tables for terminals and Markdown."""

import pytest

from clinmerge_jax.report.tables import table


def test_columns_are_aligned_and_numbers_flush_right():
    assert table(["model", "loss"], [["base", "1.5"], ["merged", "10.25"]]).splitlines() == [
        "| model  |  loss |",
        "|--------|------:|",
        "| base   |   1.5 |",
        "| merged | 10.25 |",
    ]


def test_a_row_of_another_length_is_an_error():
    with pytest.raises(ValueError):
        table(["a", "b"], [["1", "2", "3"]])
