"""Reading recipes: what is wrong is one line."""

from __future__ import annotations

import pytest
import yaml
from tiny_recipes import tiny

from nni_gconv.errors import ConfigError
from nni_gconv.recipe.load import apply_overrides, load_recipe, parse_recipe
from nni_gconv.recipe.schema import Recipe


def wrong(**changes):
    return tiny(**changes)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (wrong(prun={}), r"recipe: prun: unknown key; did you mean 'prune'\? \(allowed: "),
        (
            wrong(train={"epoch": 3}),
            r"train.epoch: unknown key; did you mean 'epochs'\? \(allowed: amp, ",
        ),
        (
            wrong(train={"optimizer": {"momentun": 0.9}}),
            r"train.optimizer.momentun: unknown key; did you mean 'momentum'",
        ),
        (
            wrong(report={"latency": {"thread": 2}}),
            r"report.latency.thread: unknown key; did you mean 'threads'",
        ),
        (wrong(train={"epochs": "many"}), r"train.epochs: 'many' is not allowed: "),
        (wrong(train={"epochs": -1}), r"train.epochs: -1 is not allowed: "),
        (wrong(train=[1]), r"train: list is not allowed: "),
        (
            wrong(train={"optimizer": {"name": "SDG"}}),
            r"train.optimizer.name: 'SDG' is not allowed",
        ),
        (wrong(model={}), r"model.name: this key is needed"),
        (wrong(data=None), r"data: this key is needed"),
        (wrong(prune={"budget": {"macs": 0.5}}), r"prune.method: is missing"),
        (wrong(export={"formats": ["onyx"]}), r"export.formats.0: 'onyx' is not allowed"),
        (wrong(objective={"acuracy": 1}), r"objective.acuracy"),
        (wrong(seed=-1), r"seed: -1 is not allowed"),
        (wrong(prune=None, sparsify={"epochs": 1}), r"sparsify: needs a prune section"),
        (wrong(train=None), r"nothing to prune: give model.weights, or a train section"),
        (
            wrong(objective={"latency_ratio": 1.0}),
            r"objective.latency_ratio: not measured, since report.latency is null",
        ),
    ],
)
def test_a_wrong_recipe_is_one_line_that_names_the_key(recipe, said):
    with pytest.raises(ConfigError, match=said) as caught:
        parse_recipe(recipe)
    assert "\n" not in str(caught.value)


def test_a_good_recipe_is_read_from_a_file_and_named_by_it(tmp_path):
    file = tmp_path / "my-trial.yml"
    content = tiny(name=None)
    file.write_text(yaml.safe_dump(content))
    assert load_recipe(file).name == "my-trial"
    assert load_recipe(str(file)).train.epochs == 2
    assert load_recipe(content).name is None
    recipe = load_recipe(tiny())
    assert load_recipe(recipe) == recipe
    assert isinstance(recipe, Recipe)


def test_a_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "recipe.yml").write_text("{}")
    with pytest.raises(ConfigError, match=r"no recipe at .*recpe.yml; nearest: recipe.yml"):
        load_recipe(tmp_path / "recpe.yml")
    with pytest.raises(ConfigError, match="no recipe at "):
        load_recipe(tmp_path / "nowhere" / "recipe.yml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: {name: resnet8}\ndata: [1, 2\n", r"bad.yml, line 3: not valid YAML: "),
        ("model: a: b\n", r"bad.yml, line 1: not valid YAML: "),
        ("- 1\n- 2\n", r"bad.yml: expected a mapping of sections, got list"),
        ("", r"bad.yml: expected a mapping of sections, got NoneType"),
        ("a: !!python/object:os.system {}\n", r"bad.yml, line 1: not valid YAML"),
    ],
)
def test_bad_yaml_names_the_line(tmp_path, text, said):
    file = tmp_path / "bad.yml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        load_recipe(file)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text(tmp_path):
    file = tmp_path / "bad.yml"
    file.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ConfigError, match=r"bad.yml: not valid YAML"):
        load_recipe(file)


def test_overrides_reach_sections_items_and_new_places():
    config = [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}]
    recipe = tiny(prune={"method": "fpgm", "config_list": config})
    changed = load_recipe(
        recipe,
        {
            "train.epochs": 7,
            "prune.config_list.0.sparse_ratio": 0.25,
            "prune.options.norm_ratio": 0.1,
            "train.schedule.warmup": 2,
            "objective": {"accuracy": 1.0, "macs_ratio": -0.1},
            "seed": 5,
        },
    )
    assert changed.train.epochs == 7
    assert changed.prune.config_list == [{"op_types": ["Conv2d"], "sparse_ratio": 0.25}]
    assert changed.prune.options == {"norm_ratio": 0.1}
    assert changed.train.schedule.warmup == 2
    assert changed.objective == {"accuracy": 1.0, "macs_ratio": -0.1}
    assert changed.seed == 5
    assert config[0]["sparse_ratio"] == 0.5  # the recipe given is not touched
    assert "objective" not in recipe


def test_an_override_may_hold_a_whole_list():
    made = load_recipe(tiny(), {"prune.config_list": [{"op_names": ["conv1"]}]})
    assert made.prune.config_list == [{"op_names": ["conv1"]}]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"prune.config_list.2.sparse_ratio": 0.5}, r"'2' is not an item from 0 to 0"),
        ({"prune.config_list.first": 1}, r"'first' is not an item from 0 to 0"),
        ({"seed.x": 1}, r"override seed.x: seed is no section"),
        ({"seed.x.y": 1}, r"override seed.x: there is no section to set it in"),
        ({"trian.epochs": 1}, r"trian: unknown key; did you mean 'train'"),
        ({"train.epochs": "x"}, r"train.epochs: 'x' is not allowed"),
    ],
)
def test_a_wrong_override_is_one_line(overrides, said):
    recipe = tiny(seed=1, prune={"method": "fpgm", "config_list": [{"op_types": ["Conv2d"]}]})
    with pytest.raises(ConfigError, match=said) as caught:
        load_recipe(recipe, overrides)
    assert "\n" not in str(caught.value)


def test_an_empty_list_has_no_items():
    with pytest.raises(ConfigError, match=r"override a\.0: the list is empty"):
        apply_overrides({"a": []}, {"a.0": 1})
