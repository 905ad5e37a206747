"""Damaged config, tokenizer, template and recipe files: a job refuses them in one line, or its result is whole.

Each case merges two tiny models and encodes a conversation with the result's tokenizer. `test_mutations` takes a few
cases of each kind; with -m slow 2,000 in all.
"""

import json
import random
import shutil
import time

import process_memory
import pytest
import support
from mutations import mutate_json, mutate_text

from clinmerge_jax.checkpoint.folder import open_checkpoint

TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}{% if add_generation_prompt %}.{% endif %}"
RECIPE = """\
merge_method: slerp
base_model: {tmp}/instruct
models:
- model: {tmp}/instruct
- model: {tmp}/clinical
parameters:
  t:
  - filter: self_attn
    value: [0, 0.5, 1]
  - value: 0.4
dtype: float32
"""
KINDS = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "recipe.yaml")
SECONDS, KILOBYTES = 10, 1 << 20
FEW, MANY = 6, 400


@pytest.fixture(scope="module")
def good(tmp_path_factory, repository):
    folder = tmp_path_factory.mktemp("mutations")
    for seed, role in enumerate(("instruct", "clinical")):
        support.write_llama(folder / role, seed)
        support.write_tokenizer(folder / role)
        (folder / role / "chat_template.jinja").write_text(TEMPLATE)
    messages = [{"role": "user", "content": "the patient"}, {"role": "assistant", "content": "has a fever ."}]
    (folder / "held_out.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    (folder / "recipe.yaml").write_text(RECIPE.format(tmp=folder))
    command = _command(folder, folder, repository, "config.json")  # imports and compiles, which no later case does
    assert support.run_command(*command, f"--config.output={folder}/out") == 0
    return folder


def _command(good, tmp, repository, kind):
    fields = [f"instruct={tmp}/instruct", f"clinical={tmp}/clinical", "base=", f"evaluate=notes={good}/held_out.jsonl"]
    if kind == "recipe.yaml":
        fields = [f"recipe={tmp}/recipe.yaml"]
    return [f"--config={repository}/configs/merge.py", *(f"--config.{field}" for field in fields)]


def damage(folder, kind, seed):
    rng = random.Random(f"{kind}/{seed}")
    file = folder / kind if kind == "recipe.yaml" else folder / rng.choice(("instruct", "clinical")) / kind
    text = file.read_text()
    if kind.endswith(".json") and rng.random() < 0.8:
        file.write_text(mutate_json(text, rng), errors="surrogatepass")
    else:
        file.write_bytes(mutate_text(text, rng))


def check(good, tmp, repository, capfd, kind, seed):
    for name in ("instruct", "clinical"):
        shutil.copytree(good / name, tmp / name)
    (tmp / "recipe.yaml").write_text(RECIPE.format(tmp=tmp))
    damage(tmp, kind, seed)
    capfd.readouterr()
    process_memory.forget_peak()
    start, held = time.process_time(), process_memory.kib("VmRSS")
    status = support.run_command(*_command(good, tmp, repository, kind), f"--config.output={tmp}/out")
    err = capfd.readouterr().err
    assert time.process_time() - start < SECONDS
    assert process_memory.kib("VmHWM") - held < KILOBYTES
    assert "Traceback" not in err, err
    if status == 0:
        open_checkpoint(str(tmp / "out"), "result")
        return
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert status == 2 and len(lines) == 1 and len(lines[0]) < 1500, err
    assert not (tmp / "out").exists()


MORE = pytest.param(range(FEW, MANY), marks=pytest.mark.slow)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cases", [range(FEW), MORE], ids=["few", "many"])
def test_damaged_files_are_refused_or_harmless(kind, cases, good, tmp_path, repository, capfd):
    for seed in cases:
        (tmp_path / str(seed)).mkdir()
        try:
            check(good, tmp_path / str(seed), repository, capfd, kind, seed)
        except Exception as error:
            raise AssertionError(f"{kind}, case {seed}") from error
        shutil.rmtree(tmp_path / str(seed))
