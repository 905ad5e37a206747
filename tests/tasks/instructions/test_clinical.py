"""Instructions on clinical inputs: solvable, not trivial, two splits that share no words, scores that do not punish."""

import collections
import dataclasses
import hashlib
import itertools

import pytest

from clinmerge_jax.data.sets.files import Source
from clinmerge_jax.errors import BadInput
from clinmerge_jax.instructions import notes
from clinmerge_jax.instructions.scores import FOLLOWING, strict
from clinmerge_jax.instructions.target import Instruction, InstructionTarget
from clinmerge_jax.metrics.form import length_ratio
from clinmerge_jax.metrics.metric import Output, count_items
from clinmerge_jax.tasks.instructions.clinical import clinical_items
from clinmerge_jax.tasks.instructions.clinical_kinds import kinds_of
from clinmerge_jax.tasks.instructions.clinical_scores import (
    CLINICAL,
    JOINT,
    content,
    floors,
    on_reference,
    reference_content,
)
from clinmerge_jax.tasks.instructions.compliant import obey
from clinmerge_jax.tasks.instructions.tasks import FOLLOWING_TASKS, items_of
from clinmerge_jax.tasks.task import Item

_ROWS = (
    (
        "Doctor: What brings you in? Patient: My left elbow hurts, since I fell off a ladder on Monday. "
        "Doctor: Any numbness? Patient: No. I take ibuprofen, it helps. Doctor: And fever? Patient: None at all.",
        "The patient fell off a ladder on Monday and has pain in the left elbow. He denies numbness and fever. "
        "He reports that ibuprofen helps.",
    ),
    (
        "Doctor: How is the breathing, ma'am? Patient: Worse at night, and I wheeze. I use the blue inhaler daily. "
        "Doctor: Do you smoke? Patient: I stopped in spring. Doctor: Good. We will add a steroid inhaler.",
        "She reports wheezing that is worse at night. She uses her inhaler daily, and stopped smoking in spring. "
        "Plan: add a steroid inhaler. Return in four weeks.",
    ),
    (
        "Doctor: I see you have diabetes, type two. Patient: Yes, ten years now, on metformin. Doctor: Any surgery? "
        "Patient: They took my appendix out, and I had a hernia repaired.",
        "Type two diabetes for ten years, on metformin. Past surgery: appendix, hernia repaired.",
    ),
)
_PARTS = {"section_spliter": "Part", "num_sections": 2}
_NTH = {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "today"}


def _sources(prefix="row"):
    return [
        Item(f"{prefix}-{n}", f"rows.csv:{n}", {"dialogue": talk, "section_header": "GENHX"}, talk, note)
        for n, (talk, note) in enumerate(_ROWS)
    ]


@pytest.fixture(scope="module")
def made():
    return clinical_items("mts_dialog", _sources(), seed=0, count=90)


def _asked(id_, reference="", **kwargs):
    return InstructionTarget("", (Instruction(id_, kwargs),), reference)


def _kinds(items):
    return collections.Counter(instruction.id for item in items for instruction in item.target.instructions)


def _digest(items):
    text = "\n".join(repr((item.id, item.target.prompt, item.target.instructions)) for item in items)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def test_every_item_is_solved_by_rules_and_not_by_reference_or_input(made):
    for one in made:
        asked = one.target
        assert all(strict(asked, obey(asked.reference, asked))), one.id
        assert not all(strict(asked, asked.reference)), one.id
        assert not all(strict(asked, one.source)), one.id


def test_items_are_the_same_everywhere(made):
    assert _digest(made) == "65044c82e52c620f"


def test_an_item_depends_on_its_source_and_not_on_the_others(made):
    alone = clinical_items("mts_dialog", _sources()[1:2], seed=0, count=2)
    assert [one for one in made if one.cluster == "row-1"][:2] == alone
    assert clinical_items("mts_dialog", _sources(), 1, 3) != made[:3]


def test_prompts_hold_input_request_and_instructions_and_no_reference(made):
    for one in made:
        assert one.source in one.target.prompt and "GENHX" in one.target.prompt
        assert one.target.reference not in one.target.prompt
        assert one.fields["text"] == one.source
        form = FOLLOWING_TASKS["clinical_following_mts_dialog"].form
        assert form.question.format_map(one.fields) == one.target.prompt


def test_items_of_one_source_are_one_cluster(made):
    assert collections.Counter(one.cluster for one in made) == {"row-0": 30, "row-1": 30, "row-2": 30}
    encounter = dataclasses.replace(_sources()[0], cluster="visit")
    assert clinical_items("aci_bench", [encounter], 0, 1)[0].cluster == "visit"


def test_development_and_test_share_neither_words_nor_pairs():
    said = {split: {wording for kind in kinds_of(split) for wording in kind.wordings} for split in ("dev", "test")}
    assert not said["dev"] & said["test"]
    pairs, kinds = {}, {}
    for split in ("dev", "test"):
        items = clinical_items("mts_dialog", _sources(), 0, 150, split)
        ids = [sorted(instruction.id for instruction in item.target.instructions) for item in items]
        pairs[split] = {pair for one in ids for pair in itertools.combinations(one, 2)}
        kinds[split] = set(_kinds(items))
    assert not pairs["dev"] & pairs["test"]
    assert kinds["test"] - kinds["dev"] == {"clinical:headings", "detectable_content:postscript"}


def test_a_required_word_is_given_by_the_input_and_never_by_the_instruction(made):
    for one in made:
        for instruction in one.target.instructions:
            for word in instruction.kwargs.get("keywords", ()):
                assert word in one.source and word in one.target.reference


def test_short_references_are_passed_over():
    short = dataclasses.replace(_sources()[0], id="short", target="Noncontributory.")
    clusters = [item.cluster for item in clinical_items("mts_dialog", [short, *_sources()], 0, 6)]
    assert set(clusters) == {"row-0", "row-1", "row-2"}
    with pytest.raises(BadInput, match="mts_dialog: no reference has 6 words"):
        clinical_items("mts_dialog", [short], 0, 1)


@pytest.mark.parametrize(
    ("id_", "kwargs", "answer", "said"),
    [
        (
            "clinical:json_keys",
            {"keys": ("a", "b")},
            '```json\n{"a": "One", "b": ["two", "three"]}\n```',
            "one two three",
        ),
        ("clinical:json_keys", {"keys": ("a",)}, "No object.", "no object."),
        (
            "clinical:headings",
            {"headings": ("Main point", "Details")},
            "**Main point:**\nOne.\nDETAILS\nTwo.",
            "one. two.",
        ),
        ("clinical:uppercase", {}, "<<A>> [B] *C*", "<<a>> [b] *c*"),
        ("detectable_content:number_placeholders", {"num_placeholders": 1}, "On [date] fell.", "on fell."),
        ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Text.\n\nP. S. More.\nMore.", "text."),
        ("detectable_format:multiple_sections", _PARTS, "Part 1\nA\nPart 2 B", "a b"),
        ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* One\n - two-fold", "one two-fold"),
        ("detectable_format:number_highlighted_sections", {"num_highlights": 1}, "*So* it is", "so it is"),
        ("detectable_format:title", {}, "<<Title here>>\nText.", "text."),
        ("keywords:forbidden_words", {"forbidden_words": ("patient",)}, "The Patient, patients", "the , patients"),
        ("length_constraints:nth_paragraph_first_word", _NTH, "Today a.\n\nToday, b.", "today a. , b."),
        ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "A\n***\nB", "a b"),
        ("punctuation:no_comma", {}, "A, b", "a b"),
        ("startend:end_checker", {"end_phrase": "The end."}, 'Text. The END."', "text."),
        ("startend:quotation", {}, '"Text."', "text."),
    ],
)
def test_what_is_demanded_is_taken_out_of_an_answer_and_nothing_else(id_, kwargs, answer, said):
    assert content(_asked(id_, **kwargs), answer) == said


def test_forbidden_words_do_not_count_on_either_side():
    asked = _asked("keywords:forbidden_words", "The patient fell today.", forbidden_words=("patient",))
    assert reference_content(asked) == "the fell today."
    assert CLINICAL.count(Output("The fell today"), asked)[0] == 100
    assert on_reference(length_ratio()).count(Output("The patient fell"), asked) == (2, 3)


def test_joint_is_the_clinical_score_of_answers_that_follow_and_nothing_else():
    asked = _asked("clinical:lowercase", "Fell off a ladder.")
    answers = [Output("fell off a roof"), Output("Fell off a ladder."), Output("")]
    counts = count_items([JOINT, CLINICAL], answers, [asked] * 3)
    assert list(JOINT.of_items(counts["joint"])) == [75, 0, 0]
    assert list(CLINICAL.of_items(counts[CLINICAL.name])) == [75, 100, 0]
    assert JOINT.score(counts["joint"].sum(axis=0)) == 25


def test_to_obey_costs_no_clinical_score(made):
    for one in made:
        score = CLINICAL.count(Output(obey(one.target.reference, one.target)), one.target)[0]
        assert score > 60 if "relation" in str(one.target.instructions) else score == 100, one.id


def test_floors_part_what_is_said_from_how(made):
    metrics = [JOINT, CLINICAL, FOLLOWING["prompt_strict"]]
    scores = {}
    for name, outputs in floors(made).items():
        counts = count_items(metrics, outputs, [item.target for item in made])
        scores[name] = [float(metric.score(counts[metric.name].sum(axis=0))) for metric in metrics]
    assert scores["the reference itself"] == [0, 100, 0]
    assert scores["copy the input"][0] == scores["copy the input"][2] == 0
    assert scores["obedient nothing"][2] > 90 and scores["obedient nothing"][0] < 25
    assert scores["obedient reference"][0] > 98 and scores["obedient reference"][2] == 100


@pytest.mark.parametrize(
    ("answer", "follows"),
    [
        ('{"a": "x", "b": "y"}', True),
        ('{"b": "y", "a": ["x", "z"]}', True),
        ('```json\n{"a": "x", "b": "y"}\n```', True),
        ('{"a": "x"}', False),
        ('{"a": "x", "b": "y", "c": "z"}', False),
        ('{"a": "x", "b": " "}', False),
        ('{"a": "x", "b": []}', False),
        ('{"a": "x", "b": 3}', False),
        ('["a", "b"]', False),
        ('Here: {"a": "x", "b": "y"}', False),
        ("", False),
    ],
)
def test_json_keys(answer, follows):
    assert notes.json_keys(answer, keys=("a", "b")) == follows


@pytest.mark.parametrize(
    ("answer", "follows"),
    [
        ("One\ntext\nTwo\ntext", True),
        ("## one:\n\ntext\n\n**Two**\ntext\nmore", True),
        ("Preface\nOne\ntext\nTwo\ntext", True),
        ("Two\ntext\nOne\ntext", False),
        ("One\ntext\nTwo", False),
        ("One\n\nTwo\ntext", False),
        ("One: text\nTwo: text", False),
        ("One\ntext\nTwo\ntext\nOne\ntext", False),
        ("", False),
    ],
)
def test_headings(answer, follows):
    assert notes.headings(answer, headings=("One", "Two")) == follows


def test_case_needs_letters_and_no_language():
    assert notes.lowercase("naproxène 500 mg") and notes.uppercase("NAPROXEN 500 MG")
    assert not notes.lowercase("500") and not notes.uppercase("500") and not notes.uppercase("500 mg")


def test_items_of_refuses_a_split_that_a_task_lacks(tmp_path):
    with pytest.raises(BadInput, match="ifeval has no split dev"):
        items_of("ifeval", Source(str(tmp_path)), "dev")
    with pytest.raises(BadInput, match="has no split valid"):
        items_of("clinical_following_mts_dialog", Source(str(tmp_path)), "valid")


def test_published_prompts_are_read_from_the_users_folder(shared):
    source = Source(str(shared / "data"))
    assert len(items_of("ifeval", source)) == 541
    assert 0 < len(items_of("ifbench_defined", source)) < 299


def test_generated_tasks_need_no_files(tmp_path):
    source = Source(str(tmp_path))
    for name, count in (("following_development", 300), ("two_turn", 60)):
        assert len(items_of(name, source)) == count and name in FOLLOWING_TASKS


@pytest.fixture(scope="module")
def real(shared, tmp_path_factory):
    """The items of the three tests and of development, by data set."""
    source = Source(str(shared / "data"), cache=str(tmp_path_factory.mktemp("records")))
    names = "mts_dialog", "aci_bench", "meqsum"
    return {
        split: {name: items_of(f"clinical_following_{name}", source, split) for name in names}
        for split in ("test", "dev")
    }


def test_500_items_of_real_data_are_solvable_and_not_trivial(real, figures):
    items = [item for part in real["test"].values() for item in part]
    assert len({item.id for item in items}) == len(items) == 500
    assert _digest(items) == "27224c5a6d52fcd5"
    for item in items:
        assert all(strict(item.target, obey(item.target.reference, item.target))), item.name
        assert not all(strict(item.target, item.target.reference)), item.name
        assert not all(strict(item.target, item.source)), item.name
    kinds = _kinds(items)
    assert set(kinds) == {kind.id for kind in kinds_of("test")} and min(kinds.values()) >= 15
    figures.append(f"clinical following: {', '.join(f'{count} {name}' for name, count in sorted(kinds.items()))}")


def test_development_on_real_data_takes_other_inputs(real):
    sources = {split: {item.source for part in real[split].values() for item in part} for split in ("test", "dev")}
    assert [len(part) for part in real["dev"].values()] == [100, 40, 100]
    assert len(sources["dev"] & sources["test"]) <= 1  # MTS-Dialog has one conversation twice


@pytest.mark.slow  # ROUGE-L of whole transcripts
def test_floors_of_real_data(real, figures):
    for name, items in real["test"].items():
        for floor, outputs in floors(items).items():
            metrics = [JOINT, CLINICAL, FOLLOWING["prompt_strict"], FOLLOWING["instruction_strict"]]
            counts = count_items(metrics, outputs, [item.target for item in items])
            joint, clinical, prompt, instruction = (
                float(metric.score(counts[metric.name].sum(axis=0))) for metric in metrics
            )
            figures.append(
                f"clinical following, {name}, {floor}: joint {joint:.2f}, clinical {clinical:.2f}, followed by prompt "
                f"{prompt:.2f}, by instruction {instruction:.2f}"
            )
            if floor in ("copy the input", "the reference itself"):
                assert joint == prompt == 0 and instruction < 30
            if floor in ("obedient nothing", "obedient input"):
                assert prompt > 85 and joint < 25
            if floor == "obedient reference":
                assert joint > 99 and prompt == 100
