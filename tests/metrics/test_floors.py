"""Answers made without a model."""

import pytest

from clinmerge_jax.errors import BadInput
from clinmerge_jax.metrics import floors


def test_another_target_is_of_another_encounter():
    targets, encounters = list("abcdef"), [0, 0, 0, 0, 1, 1]
    for seed in range(10):
        outputs = floors.another_target(targets, encounters, seed)
        assert all(encounters[targets.index(o.text)] != own for o, own in zip(outputs, encounters))
    with pytest.raises(BadInput, match="all items are in one cluster"):
        floors.another_target(["a", "b"], [0, 0])


def test_the_lead_ends_after_sentences_or_lines():
    text = "[doctor] hi. how are you?\n[patient] fine, at 37.5 degrees! thanks"
    assert floors.lead([text])[0].text == "[doctor] hi. how are you? [patient] fine, at 37.5 degrees!"
    assert floors.lead([text], sentences=1)[0].text == "[doctor] hi."
    assert floors.lead([""])[0].text == ""
