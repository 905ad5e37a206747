"""The rooms of the package import one another as pyproject.toml says, without cycles, and none is crowded."""

import pathlib
import subprocess
import sys

CROWDED = 15  # Python files
ALLOWED = {"merging/methods"}  # a small file for each family of methods


def test_rooms_import_as_the_contracts_say(repository):
    # In a process of its own: its command line disables every logger that exists, which tests after it would miss.
    program = pathlib.Path(sys.executable).with_name("lint-imports")
    found = subprocess.run([program, "--no-cache"], cwd=repository, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_every_room_has_a_docstring_and_a_short_readme(repository):
    package = repository / "clinmerge_jax"
    for room in [path for path in package.iterdir() if (path / "__init__.py").is_file()]:
        readme = room / "README.md"
        assert readme.is_file(), f"{room.name} has no README.md"
        assert len(readme.read_text().splitlines()) <= 120, readme
    assert len((repository / "WORKSPACE.md").read_text().splitlines()) <= 160


def test_no_room_is_crowded(repository):
    package = repository / "clinmerge_jax"
    crowded = {
        str(room.relative_to(package)): count
        for room in [path.parent for path in package.rglob("__init__.py")]
        if (count := len([*room.glob("*.py")]) - 1) > CROWDED
    }
    assert set(crowded) <= ALLOWED, crowded


def test_paths_that_the_map_names_exist(repository):
    """WORKSPACE.md and the rooms' pages name files in backticks; each is there."""
    package = repository / "clinmerge_jax"
    for page in [repository / "WORKSPACE.md", *package.rglob("README.md")]:
        for word in page.read_text().split("`")[1::2]:
            path = pathlib.PurePosixPath(word)
            if path.suffix == ".py" and " " not in word and "*" not in word:
                rooms = [repository / "tests", *([page.parent] if page.parent != repository else [])]
                there = [repository / word, package / word, *(found for room in rooms for found in room.rglob(word))]
                assert any(place.exists() for place in there), f"{page.relative_to(repository)} names {word}"
