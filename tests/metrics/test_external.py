"""Programs that score: small ones, written to a folder, that do what they should or what they should not."""

import re
import shlex
import sys
import time

import numpy as np
import pytest

from clinmerge_jax.errors import BadInput, RunFailure
from clinmerge_jax.metrics import RESERVED, Output, count_items, external, parse_external

SECRET = "Mr. Miller has a fever"
LOOP = "import json, sys\nfor line in sys.stdin:\n    item = json.loads(line)\n    n = item['id']\n    "


@pytest.fixture
def command(tmp_path):
    """Writes a scorer and gives the command that runs it."""

    def written(program: str) -> str:
        path = tmp_path / "a scorer.py"
        path.write_text(program)
        return shlex.join([sys.executable, "-S", str(path)])

    return written


def _count(metrics, items=4, sources=None, text=SECRET):
    outputs = [Output(f"{text} {index}") for index in range(items)]
    counts = count_items(metrics, outputs, [text] * items, sources)
    return [metric.of_items(counts[metric.name]).tolist() for metric in metrics]


def test_a_program_gets_every_text_and_its_scale_becomes_0_to_100(command):
    program = LOOP + (
        "right = (item['output'], item['reference'], item['source']) == (f'é\\n {n}', 'é\\n', f's{n}')\n"
        "    print(json.dumps({'id': n, 'score': 1 + n if right else 1}), flush=True)"
    )
    metrics = external("judge", command(program), lower=1, upper=5)
    assert [metric.name for metric in metrics] == ["judge"]
    assert _count(metrics, 5, [f"s{index}" for index in range(5)], "é\n") == [[0, 25, 50, 75, 100]]
    assert metrics[0].score(np.array([[175.0, 2]])) == [87.5]


def test_answers_may_come_at_the_end_in_any_order_and_of_several_scores(command):
    program = (
        "import json, pathlib, sys\n"
        "with open(sys.argv[0] + '.started', 'a') as file:\n    file.write('x')\n"
        "items = [json.loads(line) for line in sys.stdin]\n"
        "assert all(item['source'] is None for item in items)\n"
        "for item in reversed(items):\n"
        "    print(json.dumps({'id': item['id'], 'scores': {'recall': item['id'] / 4, 'f1': 1}}))\n"
    )
    line = command(program)
    metrics = external("radgraph", line, parts=("f1", "recall"), upper=1)
    assert [metric.name for metric in metrics] == ["radgraph_f1", "radgraph_recall"]
    assert _count(metrics) == [[100] * 4, [0, 25, 50, 75]]
    with open(shlex.split(line)[-1] + ".started") as file:
        assert file.read() == "x"  # once for both scores


def test_more_than_a_pipe_holds_goes_both_ways(command):
    program = (
        "import json, sys\n"
        "for line in sys.stdin:\n"
        "    print(json.dumps({'id': json.loads(line)['id'], 'score': 1, 'comment': 'x' * 200000}))\n"
    )
    assert _count(external("long", command(program)), 8, text="y" * 200_000) == [[1] * 8]


def test_no_items_need_no_program(command):
    assert _count(external("none", "there-is-no-such-program"), 0) == [[]]


CASES = {
    "dies": (
        LOOP + "sys.exit(3) if n == 2 else print(json.dumps({'id': n, 'score': 1}))",
        RunFailure,
        "x: its program ended with status 3 after 2 of 4 items",
    ),
    "killed": (
        LOOP + "import os; os.kill(os.getpid(), 9)",
        RunFailure,
        "x: its program was ended by signal 9 after 0 of 4 items",
    ),
    "dies at the end": (
        LOOP + "print(json.dumps({'id': n, 'score': 1}))\nsys.exit(1)",
        RunFailure,
        "ended with status 1 after 4 of 4 items",
    ),
    "reads nothing": ("", BadInput, "left 4 of 4 items without an answer, the first is id 0"),
    "leaves one out": (
        LOOP + "n == 1 or print(json.dumps({'id': n, 'score': 1}))",
        BadInput,
        "left 1 of 4 items without an answer, the first is id 1",
    ),
    "no JSON": (LOOP + "print(item['output'])", BadInput, "answer after 0 of 4 items is not JSON; correct the program"),
    "a list": (LOOP + "print([n])", BadInput, "has no valid item id"),
    "unknown id": (
        LOOP + "print(json.dumps({'id': n + 1, 'score': 1}))",
        BadInput,
        "answer after 3 of 4 items has no valid item id",
    ),
    "id as text": (LOOP + "print(json.dumps({'id': str(n), 'score': 1}))", BadInput, "has no valid item id"),
    "id twice": (
        LOOP + "print(json.dumps({'id': 0, 'score': 1}))",
        BadInput,
        "answer after 1 of 4 items is a second one for id 0",
    ),
    "no score": (LOOP + "print(json.dumps({'id': n, 'value': 1}))", BadInput, "has no numeric score for id 0"),
    "score as text": (
        LOOP + "print(json.dumps({'id': n, 'score': item['output']}))",
        BadInput,
        "has no numeric score for id 0",
    ),
    "score not finite": (
        LOOP + "print(json.dumps({'id': n, 'score': float('nan')}))",
        BadInput,
        "has a score for id 0 outside of 0 to 100",
    ),
    "out of scale": (
        LOOP + "print(json.dumps({'id': n, 'score': 100.5}))",
        BadInput,
        r"has a score for id 0 outside of 0 to 100 \(state its scale",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_failure_is_one_line_without_a_text(command, capfd, case):
    program, kind, message = CASES[case]
    program = "import sys; print('Miller', file=sys.stderr)\n" + program
    with pytest.raises(kind, match=message) as caught:
        _count(external("x", command(program)))
    assert "Miller" not in str(caught.value) and "\n" not in str(caught.value)
    assert "Miller" not in "".join(capfd.readouterr())


def test_standard_error_is_shown_where_it_is_asked_for(command, capfd):
    program = LOOP + "print(json.dumps({'id': n, 'score': 1})); print('loud', file=sys.stderr)"
    _count(external("x", command(program), show_stderr=True), 1)
    assert capfd.readouterr().err == "loud\n"


def test_wrong_parts_are_refused(command):
    program = LOOP + "print(json.dumps({'id': n, 'scores': {'f1': 1, 'other': 1}}))"
    with pytest.raises(BadInput, match="does not have exactly the scores f1, recall for id 0"):
        _count(external("x", command(program), parts=("f1", "recall")))


def test_silence_is_not_waited_for_and_ends_all_that_the_program_started(command, tmp_path):
    beat = tmp_path / "beat"
    child = f"import time\nwhile True:\n    open({str(beat)!r}, 'a').write('x')\n    time.sleep(0.02)\n"
    program = (
        f"import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-S', '-c', {child!r}])\n"
        'print(\'{"id": 0, "score": 1}\', flush=True)\ntime.sleep(60)\n'
    )
    start = time.monotonic()
    with pytest.raises(RunFailure, match="printed nothing for 0.5 s after 1 of 4 items, and did not end"):
        _count(external("x", command(program), timeout=0.5))
    assert time.monotonic() - start < 20
    size = beat.stat().st_size
    time.sleep(0.2)
    assert size > 0 and beat.stat().st_size <= size + 1


def test_references_that_are_no_texts_are_refused():
    with pytest.raises(BadInput, match="x: a reference is a dict"):
        count_items(external("x", "true"), [Output("a")], [{"rule": 1}])


def test_sources_must_pair():
    with pytest.raises(BadInput, match="sources: 1 for 2 references"):
        _count(external("x", "true"), 2, ["a"])


def test_the_spelling_in_a_config():
    metrics = parse_external(
        "medcon=./medcon 'a b=c'; radgraph:f1, recall 0..1 = python r.py --x=1; j -1.5..5=j;", RESERVED
    )
    signatures = {name: re.sub(r" \([0-9a-f]{12}\)", "", metric.signature) for name, metric in metrics.items()}
    assert signatures == {
        "medcon": "external program './medcon', 0 to 100 as 0 to 100",
        "radgraph_f1": "external program 'python', 0 to 1 as 0 to 100",
        "radgraph_recall": "external program 'python', 0 to 1 as 0 to 100",
        "j": "external program 'j', -1.5 to 5 as 0 to 100",
    }


def test_another_script_is_another_metric(tmp_path):
    script, found = tmp_path / "score.py", set()
    for text in ("print(1)", "print(2)"):
        script.write_text(text)
        found.add(parse_external(f"judge=python {script}", RESERVED)["judge"].signature)
    assert len(found) == 2 and not any(str(tmp_path) in signature for signature in found)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("judge", "external: 'judge' is not NAME=COMMAND"),
        ("judge=", "judge: has no command"),
        ("judge='a", "judge: its command cannot be parsed"),
        ("judge 5..1=a", "judge: its scale goes from 5 to 1"),
        ("judge 1..inf=a", "judge: its scale goes from 1 to inf"),
        ("judge 1..x=a", "judge: its scale has 'x'; give numbers"),
        ("bleu=a", "a metric 'bleu' exists already"),
        ("bertscore:f1=a", "a metric 'bertscore_f1' exists already"),
        ("judge=a;judge=b", "a metric 'judge' exists already"),
    ],
)
def test_spellings_that_mean_nothing_are_refused(spec, message):
    with pytest.raises(BadInput, match=message):
        parse_external(spec, RESERVED)


def test_programs_that_do_not_start_are_named(tmp_path):
    (tmp_path / "plain").write_text("no program")
    for program in ("there-is-no-such-program", str(tmp_path / "plain")):
        with pytest.raises(BadInput, match=f"x: '{program}' cannot be started"):
            _count(external("x", program))
    with pytest.raises(BadInput, match="x: its timeout is 0; give seconds"):
        external("x", "true", timeout=0)
