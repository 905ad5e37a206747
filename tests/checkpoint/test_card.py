"""Model cards of merged checkpoints."""

import yaml

from clinmerge_jax.checkpoint.card import front_matter, merge_card

RECIPE = "slerp", "merge_method: slerp\nparameters: {t: 0.5}\n"


def _parent(folder, card=None):
    folder.mkdir()
    if card is not None:
        (folder / "README.md").write_text(card)
    return folder


def test_front_matter_is_read_and_its_absence_is_no_error(tmp_path):
    assert front_matter(_parent(tmp_path / "a", "---\nlicense: llama3.1\n---\n# A\n")) == {"license": "llama3.1"}
    dashes = _parent(tmp_path / "dashes", "---\nname: a---b\nlicense: mit\n---\n")
    assert front_matter(dashes) == {"name": "a---b", "license": "mit"}
    for name, card in {
        "b": None,
        "c": "# no head",
        "d": "---\n{broken\n---\n",
        "e": "---\n- list\n---\n",
        "f": "---\ndate: 2024-13-45\n---\n",
    }.items():
        assert front_matter(_parent(tmp_path / str(name), card)) == {}


def test_licences_of_the_parents_are_inherited(tmp_path):
    one = _parent(tmp_path / "one", "---\nlicense: llama3.1\n---\n")
    two = _parent(tmp_path / "two", "---\nlicense: apache-2.0\n---\n")
    three = _parent(tmp_path / "three")

    def card(*folders):
        parents = [(role, f"org/{role}", folder) for role, folder in zip(("instruct", "clinical"), folders)]
        return merge_card("merged", parents, *RECIPE, [], False)

    same = card(one, one)
    assert yaml.safe_load(same.split("---")[1])["base_model"] == ["org/instruct", "org/clinical"]
    assert yaml.safe_load(same.split("---")[1])["license"] == "llama3.1"
    mixed = card(one, two)
    assert yaml.safe_load(mixed.split("---")[1])["license"] == "other"
    assert "licence llama3.1" in mixed and "licence apache-2.0" in mixed
    unknown = card(three, three)
    assert "license" not in yaml.safe_load(unknown.split("---")[1]) and "not stated" in unknown


def test_credentialed_data_and_tables_are_in_the_card(tmp_path):
    parents = [(role, role, _parent(tmp_path / role)) for role in ("instruct", "clinical")]
    card = merge_card("merged", parents, *RECIPE, [("What it keeps", "| a |\n|---|")], True)
    assert (
        "Derived from credentialed data" in card
        and "## What it keeps\n\n| a |" in card
        and "merge_method: slerp" in card
    )
    assert "credentialed" not in merge_card("merged", parents, *RECIPE, [], False)
