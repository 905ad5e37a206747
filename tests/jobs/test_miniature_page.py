"""The page with an example of everything in the miniature."""

from support import run_command

from clinmerge_jax.tasks.miniature.tasks import MINIATURE_TASKS, TASK_SPLITS, items_of


def test_the_page_shows_every_corpus_and_an_item_of_every_task(repository, tmp_path):
    place = tmp_path / "new" / "page.md"
    assert run_command(f"--config={repository}/configs/miniature.py:page", f"--config.output={place}") == 0
    text = place.read_text()
    for name in ("copying", "base", "clinical", "instruct"):
        assert f"### {name}: " in text
    for name in MINIATURE_TASKS:
        for split in TASK_SPLITS[name][1:]:
            item = items_of(name, split)[0]
            assert item.fields.get("source", item.fields.get("prompt", item.fields.get("question"))) in text
    assert "{" not in text.replace('{"', "")  # an unfilled slot
    assert "| the reference itself" in text and "| copy the input" in text


def test_an_output_that_is_no_page_is_refused(repository, tmp_path, capsys):
    arguments = (f"--config={repository}/configs/miniature.py:page", f"--config.output={tmp_path / 'page'}")
    assert run_command(*arguments) == 2
    assert "give one that ends in .md" in capsys.readouterr().err and not list(tmp_path.iterdir())
