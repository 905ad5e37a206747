"""Recipe files: what mergekit's documentation shows parses and plans, what is wrong is refused in a line of its own."""

import pathlib
import tempfile
import textwrap

import pytest
import support
import yaml

from clinmerge_jax.errors import BadInput
from clinmerge_jax.merging.plan import Model, open_model, plan_merge
from clinmerge_jax.merging.recipes import mergekit_yaml
from clinmerge_jax.merging.recipes.recipe import TokenSource

QUERY, UP, NORM = "self_attn.q_proj.weight", "mlp.up_proj.weight", "model.norm.weight"
TWO = "models: [{model: one}, {model: two}]"


def _write(folder, text, name="recipe.yml"):
    file = folder / name
    file.write_text(textwrap.dedent(text))
    return str(file)


def _read(folder, text):
    return mergekit_yaml.read_stages(_write(folder, text), str(folder / "out"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with models of four layers, whose recipes name them as they lie beside them."""
    folder = tmp_path_factory.mktemp("recipes")
    for seed, name in enumerate(("one", "two", "three", "base")):
        support.write_llama(folder / name, seed, num_hidden_layers=4)
        support.write_tokenizer(folder / name, chat_template="{{ messages[0].content }}" * (seed % 2))
    return folder


def _plans(folder, text):
    """The plans of a file's documents, by name; those that use others' results are planned from their plans."""
    results, plans = {}, {}
    for stage in _read(folder, text):
        models = [results.get(model) or open_model(model, model) for model in stage.recipe.models]
        plans[stage.name] = plan_merge(stage.recipe, models)
        planned = pathlib.Path(tempfile.mkdtemp(dir=folder))
        results[stage.output] = Model(plans[stage.name].as_checkpoint(stage.output, planned))
    return plans


def _value(plan, name, key, model=None):
    spec = plan.tensors[name].spec
    if model is None:
        return spec.values[key]
    inputs = [pathlib.Path(one.model).name for one in plan.tensors[name].inputs]
    return spec.source_values[inputs.index(model) - spec.from_base][key]


# Recipes of the shapes that mergekit's README, documentation and examples show for decoders of the Llama family.
SHAPES = {
    "linear with weights": """
        models:
          - {model: one, parameters: {weight: 1.0}}
          - {model: two, parameters: {weight: 0.3}}
          - {model: three, parameters: {weight: 0.5}}
        merge_method: linear
        dtype: float16
        """,
    "ties with gradients and filters": """
        models:
          - model: one
            parameters:
              density: [1, 0.7, 0.1]  # over depth
              weight: 1.0
          - model: two
            parameters:
              density: 0.5
              weight: [0, 0.3, 0.7, 1]
          - model: three
            parameters:
              density: 0.33
              weight:
                - filter: mlp
                  value: 0.5
                - value: 0
        merge_method: ties
        base_model: base
        parameters:
          normalize: true
          int8_mask: true
        dtype: float16
        """,
    "slerp over slices": """
        slices:
          - sources:
              - {model: one, layer_range: [0, 4]}
              - {model: two, layer_range: [0, 4]}
        merge_method: slerp
        base_model: one
        parameters:
          t:
            - filter: self_attn
              value: [0, 0.5, 0.3, 0.7, 1]
            - filter: mlp
              value: [1, 0.5, 0.7, 0.3, 0]
            - value: 0.5
        dtype: bfloat16
        """,
    "layers stacked": """
        slices:
          - sources:
            - {model: one, layer_range: [0, 3]}
          - sources:
            - {model: two, layer_range: [1, 4]}
        merge_method: passthrough
        dtype: float16
        """,
    "layers repeated with scaled outputs": """
        slices:
          - sources: [{model: one, layer_range: [0, 2]}]
          - sources:
            - model: one
              layer_range: [1, 3]
              parameters:
                scale:
                  - {filter: o_proj, value: 0.0}
                  - {filter: down_proj, value: 0.0}
                  - value: 1.0
          - sources: [{model: one, layer_range: [2, 4]}]
        merge_method: passthrough
        dtype: bfloat16
        """,
    "slices of ties with a base": """
        slices:
          - sources:
            - {model: base, layer_range: [0, 2]}
            - {model: one, layer_range: [0, 2], parameters: {weight: 0.4}}
            - {model: two, layer_range: [0, 2], parameters: {weight: 0.6}}
          - sources:
            - {model: base, layer_range: [2, 4]}
            - {model: one, layer_range: [2, 4], parameters: {weight: 0.7}}
            - {model: two, layer_range: [2, 4], parameters: {weight: 0.3}}
            parameters: {density: 0.25}
        merge_method: dare_ties
        base_model: base
        parameters: {density: 0.5}
        """,
    "the module of a decoder": """
        modules:
          default:
            models: [{model: one}, {model: two, parameters: {weight: 0.25}}]
            parameters: {weight: [{filter: mlp, value: 0.5}]}
        parameters: {weight: 0.75}
        merge_method: linear
        """,
    "dare without int8": """
        models:
          - model: base
            # no parameters necessary for the base
          - {model: one, parameters: {density: 0.6, weight: 0.5}}
          - {model: two, parameters: {density: 0.8, weight: 0.5}}
        merge_method: dare_ties
        base_model: base
        parameters: {int8_mask: true}
        dtype: bfloat16
        """,
    "della": """
        models:
          - {model: one, parameters: {density: 0.7, weight: 0.5, epsilon: 0.1}}
          - {model: two, parameters: {density: 0.6, weight: 0.4, epsilon: 0.2}}
        merge_method: della
        base_model: base
        parameters: {lambda: 1.1, rescale: true}
        """,
    "breadcrumbs": """
        models:
          - {model: one, parameters: {density: 0.9, gamma: 0.01, weight: 0.5}}
          - {model: two, parameters: {density: 0.9, gamma: 0.02, weight: 0.5}}
        merge_method: breadcrumbs_ties
        base_model: base
        """,
    "model stock": "{merge_method: model_stock, base_model: base, models: [{model: one}, {model: two}]}",
    "nuslerp by rows": """
        models:
          - {model: one, parameters: {weight: 0.7}}
          - {model: two, parameters: {weight: 0.3}}
        merge_method: nuslerp
        base_model: base
        parameters: {nuslerp_flatten: false}
        """,
    "multislerp": """
        models: [{model: one, parameters: {weight: 1}}, {model: two, parameters: {weight: 2}}]
        merge_method: multislerp
        parameters: {eps: 1.0e-8, normalize_weights: true}
        """,
    "karcher": """
        models: [{model: one}, {model: two}, {model: three}]
        merge_method: karcher
        parameters: {max_iter: 20, tol: 1.0e-6}
        """,
    "sce": "{merge_method: sce, base_model: base, models: [{model: one}, {model: two}], parameters: {select_topk: .1}}",
    "nearswap": "{merge_method: nearswap, base_model: one, models: [{model: two}], parameters: {t: 0.001}}",
    "arcee fusion": "{merge_method: arcee_fusion, base_model: one, models: [{model: one}, {model: two}]}",
    "ram": "{merge_method: ram, base_model: base, models: [{model: one}, {model: two}], parameters: {epsilon: 1.0e-6}}",
    "ramplus": "{merge_method: ramplus_tl, base_model: base, models: [{model: one}], parameters: {r: .2, alpha: .1}}",
    "a tokenizer of the base": """
        models: [{model: one, parameters: {weight: 1}}, {model: two, parameters: {weight: 1}}]
        merge_method: task_arithmetic
        base_model: base
        tokenizer_source: base
        dtype: float32
        out_dtype: bfloat16
        """,
    "a tokenizer section": """
        models: [{model: one, parameters: {weight: 1}}, {model: two, parameters: {weight: 1}}]
        merge_method: linear
        tokenizer:
          source: union
          tokens:
            the: {source: two}
            has: {source: one, force: true}
            user: {source: {kind: model_token, model: two, token: assistant}}
            cough: {source: {kind: model_token, model: two, token_id: 3}}
            fever: {source: {kind: zero}}
          pad_to_multiple_of: 8
        chat_template: chatml
        """,
    "documents that feed one another": """
        merge_method: dare_ties
        base_model: base
        models:
          - {model: second, parameters: {density: 0.6, weight: 0.5}}
          - {model: three, parameters: {density: 0.8, weight: 0.5}}
        ---
        name: second
        merge_method: slerp
        base_model: first
        models: [{model: two}]
        parameters: {t: 0.5}
        ---
        name: first
        merge_method: linear
        models: [{model: one}, {model: two}]
        parameters: {weight: 0.5}
        """,
    "models as mappings": """
        models:
          - model: {model: {path: one}}
          - model: {model: {path: two, revision: null}, lora: null}
        parameters: {weight: 1}
        merge_method: linear
        """,
    "names with quotes and anchors": """
        models: [{model: 'one', parameters: &shared {weight: 0.5}}, {model: "two", parameters: *shared}]
        merge_method: linear
        chat_template: "{% for m in messages %}{{ m.content }}{% endfor %}"
        """,
}


@pytest.mark.parametrize("name", SHAPES)
def test_recipes_of_mergekits_shapes_parse_and_plan(folder, name):
    plans = _plans(folder, SHAPES[name])
    for plan in plans.values():
        assert len(plan.tensors) == 3 + 9 * plan.config["num_hidden_layers"]
        again = yaml.safe_load(mergekit_yaml.write(plan.recipe))
        assert again["merge_method"] == plan.recipe.method


@pytest.mark.parametrize("name", SHAPES)
def test_a_recipe_that_was_written_reads_as_the_same_merge(folder, name):
    for stage in _read(folder, SHAPES[name]):
        if stage.name or "---" not in SHAPES[name]:
            (again,) = _read(folder, mergekit_yaml.write(stage.recipe))
            assert again.recipe.to_mergekit() == stage.recipe.to_mergekit()
            assert again.recipe.dtype == stage.recipe.dtype and again.recipe.vocabulary == stage.recipe.vocabulary


def test_gradients_and_filters_come_to_the_values_that_mergekit_gives_them(folder):
    plan = _plans(folder, SHAPES["ties with gradients and filters"])[""]
    layer = "model.layers.{}." + QUERY
    assert [_value(plan, layer.format(n), "weight", "two") for n in range(4)] == pytest.approx([0, 0.3, 0.7, 1])
    assert [_value(plan, layer.format(n), "density", "one") for n in range(4)] == pytest.approx([1, 0.8, 0.5, 0.1])
    assert _value(plan, NORM, "density", "one") == 1.0 and _value(plan, NORM, "weight", "two") == 0.0
    assert _value(plan, "model.layers.2." + UP, "weight", "three") == 0.5
    assert _value(plan, layer.format(2), "weight", "three") == 0.0
    assert _value(plan, NORM, "normalize") == 1.0
    plan = _plans(folder, SHAPES["slerp over slices"])[""]
    assert [_value(plan, layer.format(n), "t") for n in (0, 3)] == [0.0, 1.0]
    assert _value(plan, NORM, "t") == 0.5


def test_parameters_are_looked_up_in_source_slice_module_and_recipe(folder):
    plan = _plans(folder, SHAPES["slices of ties with a base"])[""]
    assert _value(plan, "model.layers.0." + QUERY, "density", "one") == 0.5
    assert _value(plan, "model.layers.3." + QUERY, "density", "one") == 0.25
    assert _value(plan, "model.layers.3." + QUERY, "weight", "two") == 0.3
    plan = _plans(folder, SHAPES["the module of a decoder"])[""]
    assert _value(plan, "model.layers.0." + UP, "weight", "one") == 0.5
    assert _value(plan, "model.layers.0." + QUERY, "weight", "one") == 0.75  # no filter of the module fits
    assert _value(plan, "model.layers.0." + UP, "weight", "two") == 0.25


def test_stacked_layers_come_from_where_the_slices_say(folder):
    plan = _plans(folder, SHAPES["layers stacked"])[""]
    assert plan.config["num_hidden_layers"] == 6
    origins = [plan.tensors[f"model.layers.{n}.{QUERY}"].inputs[0] for n in range(6)]
    assert [(pathlib.Path(one.model).name, one.name) for one in origins] == [
        *(("one", f"model.layers.{n}.{QUERY}") for n in (0, 1, 2)),
        *(("two", f"model.layers.{n}.{QUERY}") for n in (1, 2, 3)),
    ]
    assert pathlib.Path(plan.tensors["model.embed_tokens.weight"].inputs[0].model).name == "one"
    assert pathlib.Path(plan.tensors["lm_head.weight"].inputs[0].model).name == "two"
    plan = _plans(folder, SHAPES["layers repeated with scaled outputs"])[""]
    assert _value(plan, "model.layers.2.self_attn.o_proj.weight", "scale", "one") == 0.0
    assert _value(plan, "model.layers.1.self_attn.o_proj.weight", "scale", "one") == 1.0


def test_a_base_that_is_no_model_is_added_and_leads(folder):
    plan = _plans(folder, SHAPES["nearswap"])[""]
    assert [pathlib.Path(one.model).name for one in plan.tensors[NORM].inputs] == ["one", "two"]
    plan = _plans(folder, SHAPES["model stock"])[""]
    assert [pathlib.Path(one.model).name for one in plan.tensors[NORM].inputs] == ["base", "one", "two"]
    assert plan.leading.path.name == "base"


def test_documents_come_in_the_order_of_their_needs(folder):
    stages = _read(folder, SHAPES["documents that feed one another"])
    assert [stage.name for stage in stages] == ["first", "second", ""]
    assert stages[1].recipe.base == stages[0].output == f"{folder / 'out'}.stages/first"
    assert stages[2].recipe.sources[0].model == stages[1].output and stages[2].output == str(folder / "out")


def test_the_tokenizer_section_is_read_whole(folder):
    (stage,) = _read(folder, SHAPES["a tokenizer section"])
    choice = stage.recipe.vocabulary
    one, two = str(folder / "one"), str(folder / "two")
    assert (choice.source, choice.pad_to_multiple_of, stage.recipe.chat_template) == ("union", 8, "chatml")
    assert choice.tokens == {
        "the": TokenSource(two),
        "has": TokenSource(one, True),
        "user": TokenSource((two, "assistant")),
        "cough": TokenSource((two, 3)),
        "fever": TokenSource("zero"),
    }


def test_models_may_carry_adapters_and_revisions(folder):
    text = "{merge_method: linear, parameters: {weight: 1}, models: [{model: org/a@v1+org/b@v2}, {model: %s}]}"
    (stage,) = _read(folder, text % "{model: {path: org/a, revision: v2}, lora: {path: org/c}}")
    assert [source.model for source in stage.recipe.sources] == ["org/a@v1+org/b@v2", "org/a@v2+org/c"]


def test_filters_that_do_nothing_are_said_and_the_recipe_runs(folder, caplog):
    plan = _plans(folder, "{merge_method: slerp, base_model: one, models: [{model: two}], parameters: {t: "
                  "[{filter: attn_self, value: 1}, {value: .5}, {filter: mlp, value: 0}]}}")[""]  # fmt: skip
    assert _value(plan, "model.layers.0." + UP, "t") == 0.5
    assert "'attn_self' matches no tensor" in caplog.text and "'mlp' comes after a value" in caplog.text


def test_parameters_of_the_base_are_said_to_be_unused(folder, caplog):
    text = "{merge_method: ties, base_model: base, models: [{model: base, parameters: {weight: 1}}, {model: one}],"
    _read(folder, text + " parameters: {weight: 1}}")
    assert "weight of the base model is not used" in caplog.text


LINEAR = "merge_method: linear\nparameters: {weight: 1}\n"
SLICES = "merge_method: passthrough\nslices:\n"
WRONG = {
    "not YAML": "models: [",
    "a list": "- a\n- b",
    "a word": "linear",
    "empty": "# nothing",
    "doubled key": "merge_method: linear\nmerge_method: slerp\n" + TWO,
    "no method": TWO,
    "method a number": "merge_method: 3\n" + TWO,
    "unknown method": "merge_method: tie\n" + TWO,
    "unknown key": LINEAR + TWO + "\nmodel: one",
    "no layout": LINEAR,
    "two layouts": LINEAR + TWO + "\nslices: []",
    "models no list": LINEAR + "models: one",
    "models empty": LINEAR + "models: []",
    "model no mapping": LINEAR + "models: [one, two]",
    "model without place": LINEAR + "models: [{parameters: {weight: 1}}]",
    "model a number": LINEAR + "models: [{model: 7}]",
    "model with a bare plus": LINEAR + "models: [{model: one+}]",
    "model twice": LINEAR + "models: [{model: one}, {model: one}]",
    "model with layers": LINEAR + "models: [{model: one, layer_range: [0, 2]}]",
    "override of the architecture": LINEAR + "models: [{model: {model: one, override_architecture: x}}]",
    "unknown parameter": "merge_method: linear\nparameters: {wieght: 1}\n" + TWO,
    "parameters a list": "merge_method: linear\nparameters: [1]\n" + TWO,
    "weight text": "merge_method: linear\nparameters: {weight: heavy}\n" + TWO,
    "weight true": "merge_method: linear\nparameters: {weight: true}\n" + TWO,
    "weight infinite": "merge_method: linear\nparameters: {weight: .inf}\n" + TWO,
    "gradient empty": "merge_method: linear\nparameters: {weight: []}\n" + TWO,
    "filter without value": "merge_method: linear\nparameters: {weight: [{filter: mlp}]}\n" + TWO,
    "filter with more": "merge_method: linear\nparameters: {weight: [{filter: mlp, valeu: 1, value: 1}]}\n" + TWO,
    "filter a number": "merge_method: linear\nparameters: {weight: {filter: 3, value: 1}}\n" + TWO,
    "switch a number": LINEAR.replace("}", ", normalize: 0.5}") + TWO,
    "switch a gradient": LINEAR.replace("}", ", normalize: [true, false]}") + TWO,
    "whole number broken": "merge_method: karcher\nparameters: {max_iter: 2.5}\n" + TWO,
    "weight missing": "merge_method: linear\nmodels: [{model: one, parameters: {weight: 1}}, {model: two}]",
    "t missing": "merge_method: slerp\nbase_model: one\n" + TWO,
    "t of a model": "merge_method: slerp\nmodels: [{model: one, parameters: {t: 1}}, {model: two}]\nparameters: {t: 1}",
    "base missing": "merge_method: ties\nparameters: {weight: 1}\n" + TWO,
    "base no model": LINEAR + TWO + "\nbase_model: [one]",
    "base beside linear": LINEAR + TWO + "\nbase_model: base",
    "three for slerp": "merge_method: slerp\nparameters: {t: 1}\nmodels: [{model: one}, {model: two}, {model: three}]",
    "dtype unknown": LINEAR + TWO + "\ndtype: float8",
    "out_dtype a number": LINEAR + TWO + "\nout_dtype: 16",
    "slice without sources": SLICES + "- {parameters: {scale: 1}}",
    "slice with residual weight": SLICES + "- {residual_weight: 1, sources: [{model: one, layer_range: [0, 2]}]}",
    "source without layers": SLICES + "- {sources: [{model: one}]}",
    "layers the wrong way": SLICES + "- {sources: [{model: one, layer_range: [2, 1]}]}",
    "layers that do not exist": SLICES + "- {sources: [{model: one, layer_range: [0, 9]}]}",
    "slices of unlike length": (
        "merge_method: linear\nparameters: {weight: 1}\nslices:\n"
        "- {sources: [{model: one, layer_range: [0, 2]}, {model: two, layer_range: [0, 3]}]}"
    ),
    "module unknown": LINEAR + "modules: {vision: {models: [{model: one}]}}",
    "module empty": LINEAR + "modules: {default: {parameters: {weight: 1}}}",
    "tokenizer twice": LINEAR + TWO + "\ntokenizer_source: union\ntokenizer: {source: base}",
    "tokenizer key": LINEAR + TWO + "\ntokenizer: {sauce: union}",
    "tokens a list": LINEAR + TWO + "\ntokenizer: {tokens: [the]}",
    "token a number": LINEAR + TWO + "\ntokenizer: {tokens: {3: {source: one}}}",
    "token kind": LINEAR + TWO + "\ntokenizer: {tokens: {the: {source: {kind: mean}}}}",
    "token twice named": (
        LINEAR + TWO + "\ntokenizer: {tokens: {the: {source: {kind: model_token, model: one, token: a, token_id: 1}}}}"
    ),
    "token force": LINEAR + TWO + "\ntokenizer: {tokens: {the: {source: one, force: 2}}}",
    "padding": LINEAR + TWO + "\ntokenizer: {source: union, pad_to_multiple_of: 0}",
    "padding at the top": LINEAR + TWO + "\npad_to_multiple_of: 8",
    "chat template": LINEAR + TWO + "\nchat_template: vicuna",
    "chat template broken": LINEAR + TWO + '\nchat_template: "{% for m in messages %}"',
    "name no word": LINEAR + TWO + "\nname: a/b",
    "two without names": LINEAR + TWO + "\n---\n" + LINEAR + TWO,
    "one name twice": f"{LINEAR}{TWO}\nname: x\n---\n{LINEAR}{TWO}\nname: x",
    "in a circle": (
        f"{LINEAR}models: [{{model: y}}, {{model: one}}]\nname: x\n---\n"
        f"{LINEAR}models: [{{model: x}}, {{model: one}}]\nname: y"
    ),
    "of itself": f"{LINEAR}models: [{{model: x}}, {{model: one}}]\nname: x",
}


def _refusal(folder, text):
    with pytest.raises(BadInput) as refusal:
        _plans(folder, text)
    return str(refusal.value)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_recipe_is_refused_in_one_line_that_names_the_place_and_the_mend(folder, name):
    line = _refusal(folder, WRONG[name])
    assert "\n" not in line and "; " in line
    assert line.startswith(str(folder)) and "recipe.yml" in line, line


def test_every_wrong_recipe_has_a_line_of_its_own(folder):
    lines = {name: _refusal(folder, text) for name, text in WRONG.items()}
    assert len(lines) >= 40
    seen = {}
    for name, line in lines.items():
        assert line not in seen, (name, seen.get(line))
        seen[line] = name


def test_a_file_that_is_missing_or_no_text(tmp_path):
    with pytest.raises(BadInput, match="config.recipe: the file"):
        mergekit_yaml.read_stages(str(tmp_path / "no.yml"), "out")
    (tmp_path / "bytes.yml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="cannot be read as text"):
        mergekit_yaml.read_stages(str(tmp_path / "bytes.yml"), "out")
