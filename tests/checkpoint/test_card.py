"""Model cards of merged checkpoints."""

import yaml

from clinmerge_jax.checkpoint.card import adapter_card, copy_licences, front_matter, merge_card, shown_name
from clinmerge_jax.checkpoint.output import OutputFolder

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


def test_an_adapter_inherits_from_both_models(tmp_path):
    base = _parent(tmp_path / "base", "---\nlicense: llama3.1\n---\n")
    model = _parent(tmp_path / "model", "---\nlicense: mit\n---\n")
    parents = [("base", "org/base", base), ("fine-tuned model", "model", model)]
    card = adapter_card("difference", parents, 8, 16.0, [("What it keeps", "| a |\n|---|")], True)
    head = yaml.safe_load(card.split("---")[1])
    assert head == {
        "base_model": "org/base",
        "library_name": "peft",
        "tags": ["lora", "clinmerge_jax"],
        "license": "other",
    }
    assert "of rank 8 (alpha 16)" in card and "* fine-tuned model: model, licence mit" in card
    assert "applies to this adapter too" in card and "## What it keeps\n\n| a |" in card
    assert "credentialed" not in adapter_card("difference", parents, 8, 16.0, [], False)


def test_terms_are_copied_but_for_those_that_the_leading_folder_has(tmp_path):
    leading, other = _parent(tmp_path / "leading"), _parent(tmp_path / "other")
    for folder, name, text in (
        (leading, "LICENSE", "shared"),
        (other, "LICENSE.txt", "shared"),
        (other, "NOTICE", "its own"),
        (other, "README.md", "no terms"),
    ):
        (folder / name).write_text(text)
    (other / "LICENSES").mkdir()  # as some repositories have it
    with OutputFolder(tmp_path / "out", {}) as output:
        output.open()
        copy_licences(output, leading, [("instruct", leading), ("clinical", other)])
        assert {path.name for path in output.partial.iterdir() if not path.name.startswith(".")} == {"clinical.NOTICE"}
        assert output.path("clinical.NOTICE").read_text() == "its own"


def test_a_licence_is_not_claimed_where_a_parent_states_none(tmp_path):
    stated, silent = _parent(tmp_path / "stated", "---\nlicense: mit\n---\n"), _parent(tmp_path / "silent")
    card = merge_card("merged", [("instruct", "a", stated), ("clinical", "b", silent)], *RECIPE, [], False)
    assert "license" not in yaml.safe_load(card.split("---")[1])
    assert "instruct: a, licence mit" in card and "clinical: b, licence not stated" in card


def test_texts_of_folders_that_are_called_alike_do_not_replace_each_other(tmp_path):
    folders = [_parent(tmp_path / name) for name in ("leading", "one", "two", "three")]
    for folder, text in zip(folders[1:], ("first", "second", "first")):
        (folder / "LICENSE").write_text(text)
    with OutputFolder(tmp_path / "out", {}) as output:
        output.open()
        for _ in range(2):  # as in a run that goes on after an interruption
            copy_licences(output, folders[0], [("model", folder) for folder in folders[1:]])
        texts = {path.name: path.read_text() for path in output.partial.glob("model*")}
    assert texts == {"model.LICENSE": "first", "model-2.LICENSE": "second"}


def test_a_card_names_hub_ids_as_they_are_and_folders_by_their_last_part(tmp_path, monkeypatch):
    for name in ("model", "adapter", "a+b"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "model")
    assert shown_name("org/name@v1") == "org/name@v1" and shown_name("miniature:base") == "miniature:base"
    assert shown_name(f"{tmp_path}/model/") == shown_name(".") == "model"
    assert shown_name(f"{tmp_path}/a+b") == "a+b"
    assert shown_name(f"{tmp_path}/model+{tmp_path}/adapter") == "model+adapter"
    assert shown_name(f"org/name+{tmp_path}/adapter") == "org/name+adapter"
