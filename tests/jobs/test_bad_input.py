"""Broken input through the command line: exit status 2, one line that says what to mend, nothing left behind."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import support
from support import in_every_run

NORM, QUERY = "model.norm.weight", "model.layers.1.self_attn.q_proj.weight"
WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
SHARD_1, SHARD_2 = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@dataclasses.dataclass(frozen=True)
class Case:
    """One kind of broken input.

    Attributes:
      name: of the kind.
      says: what the line must name, "{tmp}" standing for the folder of the test.
      arguments: appended to a good command line.
      change: breaks something in the folder of the test, which holds good parents.
      config: the config file, with its argument; "" for none.
      shards: weight files of the clinical parent.
    """

    name: str
    says: Sequence[str]
    arguments: Sequence[str] = ()
    change: Callable[[pathlib.Path], Any] = lambda tmp: None
    config: str = "{root}/configs/merge.py"
    shards: int = 1


def _text(place, text):
    return lambda tmp: (tmp / place).write_text(text)


def _delete(place):
    return lambda tmp: (tmp / place).unlink()


def _all(*changes):
    return lambda tmp: [change(tmp) for change in changes]


def _fields(**fields):
    """Changes fields of the clinical parent's config.json."""

    def change(tmp):
        path = tmp / "clinical" / CONFIG
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return change


def _tensors(change):
    """Rewrites the clinical parent's tensors."""

    def rewrite(tmp):
        tensors = support.llama_tensors(support.TINY, seed=2)
        change(tensors)
        safetensors.numpy.save_file(tensors, tmp / "clinical" / WEIGHTS)

    return rewrite


def _not_finite(value):
    def change(tensors):
        tensors[QUERY][1, 2] = value

    return _tensors(change)


def _index(change):
    def rewrite(tmp):
        weight_map = json.loads((tmp / "clinical" / INDEX).read_text())["weight_map"]
        change(weight_map)
        support.write_index(tmp / "clinical", weight_map)

    return rewrite


def _truncated(tmp):
    path = tmp / "clinical" / SHARD_2
    path.write_bytes(path.read_bytes()[:-1])


def _pickles_only(tmp):
    (tmp / "clinical" / WEIGHTS).rename(tmp / "clinical" / "pytorch_model.bin")


def _doubled(tmp):
    tensors = support.llama_tensors(support.TINY)
    second = dict(list(tensors.items())[len(tensors) // 2 :])
    safetensors.numpy.save_file({**second, "model.embed_tokens.weight": second[NORM]}, tmp / "clinical" / SHARD_2)


def _other_ids(tmp):
    support.write_tokenizer(tmp / "instruct")
    support.write_tokenizer(tmp / "clinical", (*support.WORDS[:5], *reversed(support.WORDS[5:])))


def _conversation(chat_template=None):
    def change(tmp):
        support.write_tokenizer(tmp / "instruct", chat_template=chat_template)
        messages = [{"role": "user", "content": "the patient"}, {"role": "assistant", "content": "has a fever ."}]
        (tmp / "held_out.jsonl").write_text(json.dumps({"messages": messages}) + "\n")

    return change


def _foreign_output(tmp):
    (tmp / "runs" / "out").mkdir(parents=True)
    (tmp / "runs" / "out" / "notes.txt").write_text("mine")


def _other_result(tmp):
    (tmp / "runs" / "out").mkdir(parents=True)
    provenance = {"identity": {"job": "merge", "recipe": {}, "inputs": {}}}
    (tmp / "runs" / "out" / "provenance.json").write_text(json.dumps(provenance))


def _held_out(content: bytes):
    return lambda tmp: (tmp / "held_out.jsonl").write_bytes(content)


def _string_id(tmp):
    support.write_tokenizer(tmp / "clinical")
    path = tmp / "clinical" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["has"] = "5"
    path.write_text(json.dumps(content))


def _settings(**fields):
    """A tokenizer for the instruct parent, with these fields of tokenizer_config.json."""

    def change(tmp):
        support.write_tokenizer(tmp / "instruct")
        path = tmp / "instruct" / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return change


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
EVALUATE = ("--config.evaluate=notes={tmp}/held_out.jsonl",)
HELD_OUT = "{tmp}/held_out.jsonl"
REFUSING = "{{ raise_exception('the rows are odd') }}"

CASES = [
    # The command line.
    Case("no config", ["--config: is missing"], config=""),
    Case("missing config file", ["--config: ", "configs/nothing.py"], config="{root}/configs/nothing.py"),
    Case("config file is a folder", ["--config: ", "{tmp}"], config="{tmp}"),
    Case("unknown config argument", ["--config: ", "'foo'", "biomistral"], config="{root}/configs/merge.py:foo"),
    Case("unknown config field", ["config.instruckt", "did you mean instruct"], ["--config.instruckt=x"]),
    Case("unknown nested config field", ["config.training"], ["--config.training.steps=1"]),
    Case("unknown flag", ["--instruct"], ["--instruct=x"]),
    Case("stray positional argument", ["stray"], ["stray"]),
    Case("unknown job", ["config.job: 'quench'", "merge"], ["--config.job=quench"]),
    Case("flag that is no truth value", ["--config.overwrite=maybe"], ["--config.overwrite=maybe"]),
    Case("size that is no number", ["--config.max_shard_gb=big"], ["--config.max_shard_gb=big"]),
    Case("infinite size", ["config.max_shard_gb: is inf"], ["--config.max_shard_gb=inf"]),
    Case("negative size", ["config.max_shard_gb: is -1.0"], ["--config.max_shard_gb=-1"]),
    Case("size that is NaN", ["config.max_shard_gb: is nan"], ["--config.max_shard_gb=nan"]),
    # The recipe.
    Case("t no number", ["config.t: 'abc'"], ["--config.t=abc"]),
    Case("t empty", ["config.t: is ''"], ["--config.t="]),
    Case("t with a gap", ["config.t: ''"], ["--config.t=0,,1"]),
    Case("t infinite", ["config.t: 'inf'"], ["--config.t=inf"]),
    Case("t with a filter that fits nothing", ["config.t: filter 'attn_self'"], ["--config.t=attn_self=0,1; 0.5"]),
    Case("t without fallback", ["config.t: no filter matches tensor"], ["--config.t=self_attn=0,1; mlp=0.5"]),
    Case("t with a filter twice", ["config.t: filter 'mlp'"], ["--config.t=mlp=0; mlp=1; 0.5"]),
    Case("t with an empty filter", ["config.t: '=1'"], ["--config.t==1; 0.5"]),
    Case("unknown method", ["config.method: 'tees'", "linear, slerp"], ["--config.method=tees"]),
    Case("method without its base", ["config.base: is missing", "ties"], ["--config.method=ties"]),
    Case("parameter of another method", ["config.density: linear has no"], ["--config.density=0.5"]),
    Case("switch that is a number", ["config.normalize: '0.5'", "true or false"], ["--config.normalize=0.5"]),
    Case("unknown dtype", ["config.dtype: 'float8'", "bfloat16"], ["--config.dtype=float8"]),
    # The parents' folders.
    Case("parent missing", ["config.instruct: {tmp}/nothing"], ["--config.instruct={tmp}/nothing"]),
    Case("parent no folder, hub id or URL", ["config.clinical: llama", "org/name"], ["--config.clinical=llama"]),
    Case("parent in a hub's URL", ["hf://org/model", "only its id: org/model"], ["--config.clinical=hf://org/model"]),
    Case("parent empty", ["config.clinical: is empty"], ["--config.clinical="]),
    Case("unknown miniature", ["config.base: ", "'huge'"], ["--config.base=miniature:huge"]),
    Case("no config.json", ["config.clinical: {tmp}/clinical"], change=_delete("clinical/config.json")),
    Case("malformed config.json", ["{tmp}/clinical/config.json"], change=_text("clinical/config.json", "{")),
    Case("pickles only", ["config.clinical: {tmp}/clinical", "pytorch_model.bin"], change=_pickles_only),
    Case("truncated shard", ["{tmp}/clinical/" + SHARD_2, "truncated"], change=_truncated, shards=2),
    Case(
        "weight_map outside the folder",
        ["{tmp}/clinical/" + INDEX, "'../x.safetensors'"],
        change=_index(lambda weight_map: weight_map.update({NORM: "../x.safetensors"})),
        shards=2,
    ),
    Case("missing shard", [INDEX, SHARD_1], change=_delete("clinical/" + SHARD_1), shards=2),
    Case("tensor in two shards", ["{tmp}/clinical/" + SHARD_2, SHARD_1, "embed_tokens"], change=_doubled, shards=2),
    Case("unmapped tensor", [SHARD_2, NORM], change=_index(lambda weight_map: weight_map.pop(NORM)), shards=2),
    Case("damaged tokenizer", ["{tmp}/clinical/tokenizer.json"], change=_text("clinical/tokenizer.json", "{}")),
    Case(
        "name of a tensor with a line break",
        ["config.instruct: ", "two lines"],
        change=_tensors(lambda tensors: tensors.update({"two\nlines": np.zeros(2, np.float32)})),
    ),
    Case(
        "quantized parent",
        ["{tmp}/clinical/" + CONFIG, "quantization_config (bitsandbytes)", ".dequantize()"],
        change=_all(
            _tensors(lambda tensors: tensors.update({NORM: np.zeros(8, np.uint8)})),
            _fields(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        ),
    ),
    Case(
        "quantization key over plain weights",
        ["{tmp}/clinical/" + CONFIG, "quantization_config over weights that are not", "remove the key"],
        change=_fields(quantization_config={"quant_method": "gptq"}),
    ),
    Case(
        "tied head that differs",
        ["{tmp}/clinical", "lm_head.weight", "set it to false", "remove the tensor"],
        change=_fields(tie_word_embeddings=True),
    ),
    Case(
        "tokens without a row",
        ["{tmp}/instruct/tokenizer.json: 4 tokens ('x16', ", "id 16", "16 rows", "resize", "union"],
        change=lambda tmp: support.write_tokenizer(
            tmp / "instruct", [*support.WORDS, *(f"x{n}" for n in range(13, 20))]
        ),
    ),
    Case(
        "token id of another type",
        ["{tmp}/clinical/tokenizer.json: token 'has' has id '5'", "integers"],
        change=_all(lambda tmp: support.write_tokenizer(tmp / "instruct"), _string_id),
    ),
    Case(
        "length limit of another type",
        ["{tmp}/instruct/tokenizer_config.json: model_max_length is 'long'"],
        EVALUATE,
        _all(_held_out(b'{"text": "a"}'), _settings(model_max_length="long")),
    ),
    Case(
        "chat template without end",
        ["config.instruct: the chat template of {tmp}/instruct takes more than 4 seconds"],
        EVALUATE,
        _all(_held_out(b'{"text": "a"}'), _settings(chat_template=ENDLESS)),
    ),
    # The parents together.
    Case("missing tensor", ["config.clinical: ", NORM], change=_tensors(lambda tensors: tensors.pop(NORM))),
    Case(
        "extra tensor",
        ["config.instruct: ", "extra", "config.clinical"],
        change=_tensors(lambda tensors: tensors.update(extra=np.zeros(2, np.float32))),
    ),
    Case(
        "wrong shape",
        ["config.clinical: ", NORM, "[9]", "[8]"],
        change=_tensors(lambda tensors: tensors.update({NORM: np.zeros(9, np.float32)})),
    ),
    Case(
        "unsupported dtype",
        ["{tmp}/clinical/" + WEIGHTS, NORM, "I64"],
        change=_tensors(lambda tensors: tensors.update({NORM: np.zeros(8, np.int64)})),
    ),
    Case(
        "other heads of equal shapes",
        ["config.clinical: num_attention_heads is 2", "has 4"],
        change=_fields(num_attention_heads=2, head_dim=4, num_key_value_heads=1),
    ),
    Case("other model type", ["config.clinical: model_type is 'mistral'"], change=_fields(model_type="mistral")),
    Case("same token with different ids", ["config.clinical: token 'has'", "12", "5"], change=_other_ids),
    Case("NaN in a tensor", ["{tmp}/clinical/" + WEIGHTS, QUERY, "NaN"], change=_not_finite(np.nan)),
    Case(
        "infinity in a tensor, slerp",
        ["{tmp}/clinical/" + WEIGHTS, QUERY, "infinity"],
        ["--config.method=slerp"],
        _not_finite(np.inf),
    ),
    # The output.
    Case("output empty", ["config.output: is empty"], ["--config.output="]),
    Case("output below a file", ["config.output: "], ["--config.output={tmp}/file/out"], _text("file", "")),
    Case("output a foreign folder", ["config.output: {tmp}/runs/out", "not a result of this"], change=_foreign_output),
    Case(
        "output a foreign folder, to overwrite",
        ["config.output: {tmp}/runs/out", "not a result of this"],
        ["--config.overwrite=True"],
        _foreign_output,
    ),
    Case("output holds another result", ["config.output: {tmp}/runs/out", "overwrite=True"], change=_other_result),
    Case("output in a parent", ["config.output: ", "config.clinical"], ["--config.output={tmp}/clinical/out"]),
    Case("output a parent", ["config.output: ", "config.instruct"], ["--config.output={tmp}/instruct"]),
    # Held-out text.
    Case("evaluate malformed", ["config.evaluate: 'notes'"], ["--config.evaluate=notes"]),
    Case("evaluate without a name", ["config.evaluate: '=x.jsonl'"], ["--config.evaluate==x.jsonl"]),
    Case("evaluate file missing", ["config.evaluate: " + HELD_OUT], EVALUATE),
    Case("evaluate file empty", [HELD_OUT], EVALUATE, _held_out(b"\n")),
    Case("evaluate file not UTF-8", [HELD_OUT, "byte 10"], EVALUATE, _held_out(b'{"text": "\xff"}')),
    Case("evaluate line not JSON", [HELD_OUT + ":2"], EVALUATE, _held_out(b'{"text": "a"}\nprivate words\n')),
    Case("evaluate line without text", [HELD_OUT + ":3"], EVALUATE, _held_out(b'{"text": "a"}\n\n{"note": "a"}\n')),
    Case("evaluate message without role", [HELD_OUT + ":1"], EVALUATE, _held_out(b'{"messages": [{"content": "a"}]}')),
    Case("no tokenizer", ["config.instruct: {tmp}/instruct"], EVALUATE, _held_out(b'{"text": "a fever"}')),
    Case("conversation without chat template", [HELD_OUT + ":1", "chat template"], EVALUATE, _conversation()),
    Case(
        "chat template that refuses",
        [HELD_OUT + ":1", "the chat template refuses it"],
        EVALUATE,
        _conversation(REFUSING),
    ),
    Case("chat template malformed", [HELD_OUT + ":1", "chat template"], EVALUATE, _conversation("{% if %}")),
    Case(
        "evaluate text with half a surrogate pair",
        [HELD_OUT + ":1"],
        EVALUATE,
        _all(_held_out(b'{"text": "\\ud83d"}'), lambda tmp: support.write_tokenizer(tmp / "instruct")),
    ),
    Case(
        "tokenizer that does not load",
        ["config.instruct: {tmp}/instruct"],
        EVALUATE,
        _all(_held_out(b'{"text": "a"}'), _text("instruct/tokenizer.json", '{"model": {"vocab": {}}}')),
    ),
    Case(
        "damaged provenance of a parent",
        ["{tmp}/clinical/provenance.json"],
        change=_text("clinical/provenance.json", "{"),
    ),
    Case(
        "not a Llama, to evaluate",
        ["{tmp}/instruct/config.json", "hidden_size"],
        EVALUATE,
        _all(_held_out(b'{"text": "a"}'), lambda tmp: (tmp / "instruct" / CONFIG).write_text(_without("hidden_size"))),
    ),
]


def _without(field):
    return json.dumps({key: value for key, value in support.TINY.items() if key != field})


def _tree(folder):
    """Every path below a folder, with the bytes of the files."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def _prepare(case, tmp, repository):
    """Good parents, then what the case breaks; returns the command line."""
    support.write_llama(tmp / "instruct", seed=1)
    support.write_llama(tmp / "clinical", seed=2, shards=case.shards)
    case.change(tmp)
    config = [f"--config={case.config}"] if case.config else []
    good = ["instruct={tmp}/instruct", "clinical={tmp}/clinical", "base=", "output={tmp}/runs/out"] if config else []
    command = [*config, *(f"--config.{field}" for field in good), *case.arguments]
    return [argument.format(tmp=tmp, root=repository) for argument in command]


def _check(case, tmp, before, status, stderr):
    assert status == 2, stderr
    lines = [
        line for line in stderr.splitlines() if not line.startswith(("I", "W"))
    ]  # absl's information and warning lines
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in stderr, stderr
    for part in case.says:
        assert part.format(tmp=tmp) in errors[0]
    where, _, rest = errors[0].removeprefix("error: ").partition(": ")
    assert where and "; " in rest, "the line says where, what, and how to fix it"
    assert "private" not in stderr, "held-out text is never quoted"
    assert _tree(tmp) == before, "nothing is left behind and nothing that was there is touched"
    return lines


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input(case, tmp_path, repository, capfd):
    command = _prepare(case, tmp_path, repository)
    before = _tree(tmp_path)
    capfd.readouterr()
    status = support.run_command(*command)
    _check(case, tmp_path, before, status, capfd.readouterr().err)


REAL_PROCESS = ("unknown config argument", "stray positional argument", "truncated shard", "NaN in a tensor")


REAL = [case for case in CASES if case.name in REAL_PROCESS]


@pytest.mark.parametrize("case", in_every_run(REAL, lambda case: "argument" in case.name, lambda case: case.name))
def test_bad_input_in_a_process_of_its_own(case, tmp_path, repository):
    command = _prepare(case, tmp_path, repository)
    before = _tree(tmp_path)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    program = [sys.executable, "-m", "clinmerge_jax.main", *command]
    result = subprocess.run(program, capture_output=True, text=True, cwd=repository, env=environment, timeout=120)
    lines = _check(case, tmp_path, before, result.returncode, result.stderr)
    lines = [line for line in lines if line.strip() and not line.startswith("merge: ")]  # the progress bar's
    assert len(lines) == 1 and result.stdout == ""


def test_names_of_cases_are_unique():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names) >= 20 and set(REAL_PROCESS) <= set(names)


def test_the_good_command_line_succeeds(tmp_path, repository, capfd):
    """What every case starts from is not itself at fault."""
    command = _prepare(Case("good", []), tmp_path, repository)
    assert support.run_command(*command) == 0
    assert (tmp_path / "runs" / "out" / WEIGHTS).is_file()
    assert os.listdir(tmp_path / "runs") == ["out"]
    assert "error: " not in capfd.readouterr().err
