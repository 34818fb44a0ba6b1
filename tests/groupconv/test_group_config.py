"""The JSON of group counts: what is written is read, and what does not fit is an error."""

from __future__ import annotations

import json

import pytest
from torch import nn

from nni_gconv.errors import ConfigError
from nni_gconv.groupconv import check_groups, read_group_config, write_group_config
from nni_gconv.training.zoo import create_model


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3)
        self.layer1 = nn.Sequential(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3))
        self.wide = nn.Conv2d(16, 32, 3, groups=4)
        self.fc = nn.Linear(16, 4)


@pytest.fixture
def written(tmp_path):
    def write(data):
        path = tmp_path / "groups.json"
        path.write_text(data if isinstance(data, str) else json.dumps(data))
        return path

    return write


def test_the_published_format_is_read(written):
    path = written(
        {
            "module.layer1.0": {"G": 4, "F": 16, "C": 8, "id": 2},
            "module.layer1.2": {"F": 16, "C": 16, "G": 8, "id": 4},
            "conv1": {"G": 1, "F": 8, "C": 3},
            "wide": {"G": 1},
        }
    )
    expected = {"layer1.0": 4, "layer1.2": 8, "conv1": 1, "wide": 1}
    assert read_group_config(path, Block()) == expected
    assert list(read_group_config(path, Block())) == list(expected)


def test_a_model_in_data_parallel_is_the_same_model(written):
    path = written({"layer1.0": {"G": 4}, "module.layer1.2": {"G": 2}})
    wrapped = nn.DataParallel(Block())
    assert read_group_config(path, wrapped) == {"module.layer1.0": 4, "module.layer1.2": 2}
    written_again = write_group_config(path, read_group_config(path, wrapped), wrapped)
    assert read_group_config(written_again, Block()) == {"layer1.0": 4, "layer1.2": 2}


def test_what_is_written_is_read(tmp_path):
    model = create_model("resnet8")
    groups = {
        name: 4 if m.in_channels > 3 else 1
        for name, m in model.named_modules()
        if isinstance(m, nn.Conv2d)
    }
    path = write_group_config(tmp_path / "new" / "folder" / "groups.json", groups, model)
    assert read_group_config(path, model) == groups
    first = json.loads(path.read_text())["module.layer1.0.conv1"]
    assert first == {"G": 4, "F": 16, "C": 16}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"module.layer1.1.0": {"G": 2}}, "'module.layer1.1.0': the model has no such layer; "
         "did you mean 'layer1.0'?"),
        ({"qqqq": {"G": 2}}, "'qqqq': the model has no such layer"),
        ({"": {"G": 2}}, "'': the model has no such layer"),
        ({"layer1.0": {"G": 2, "F": 8, "C": 8}}, "F is 8, but the layer has 16 filters"),
        ({"layer1.0": {"G": 2, "C": 16}}, "C is 16, but the layer has 8 input channels"),
        ({"layer1.0": {"G": 3}}, "3 groups do not divide 16 filters and 8 input channels"),
        ({"layer1.0": {"G": 16}}, "16 groups do not divide 16 filters and 8 input channels"),
        ({"layer1.0": {"G": 0}}, "'layer1.0': G: 0 is not allowed (a whole number from 1)"),
        ({"layer1.0": {"G": "2"}}, "'layer1.0': G: '2' is not allowed"),
        ({"layer1.0": {"G": 2, "F": 16.0}}, "'layer1.0': F: 16.0 is not allowed"),
        ({"layer1.0": {"g": 2}}, "'layer1.0': expected {\"module.layer1.0.conv1\": {\"G\": 4"),
        ({"layer1.0": 2}, "'layer1.0': expected {"),
        ({"layer1.0": {"G": 2}, "module.layer1.0": {"G": 4}}, "the layer layer1.0 has an entry"),
        ({"wide": {"G": 2}}, "2 is no multiple of the 4 groups that it has already"),
        ({"fc": {"G": 1}}, "'fc': cannot be grouped, a Linear is no convolution"),
        ({"conv1": {"G": 2}}, "'conv1': 2 groups are not possible: its 3 input channels"),
        ([1], "expected an object of layers"),
        ("{", "is not JSON"),
        ('{"layer1.0": {"G": 2}, "layer1.0": {"G": 4}}', "the layer layer1.0 has an entry already"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line_with_file_and_entry(written, data, said):
    path = written(data)
    with pytest.raises(ConfigError) as caught:
        read_group_config(path, Block())
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert said in message
    assert "\n" not in message


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere.json: cannot be read: No such file"):
        read_group_config(tmp_path / "nowhere.json", Block())


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not JSON"):
        read_group_config(tmp_path / "a.json", Block())


def test_nothing_is_written_that_could_not_be_read(tmp_path):
    path = tmp_path / "groups.json"
    for groups in ({"layer1.0": 3}, {"layer1.9": 2}, {"wide": 2}, {"layer1.0": True}):
        with pytest.raises(ConfigError, match=r"^groups: "):
            write_group_config(path, groups, Block())
    assert not path.exists()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_group_config(tmp_path / "file" / "groups.json", {"layer1.0": 2}, Block())


def test_groups_named_in_code_are_checked_alike():
    assert check_groups({"module.layer1.0": 2}, Block()) == {"layer1.0": 2}
    with pytest.raises(ConfigError, match=r"prune.options.groups: 'layer1.7': the model has no"):
        check_groups({"layer1.7": 2}, Block(), "prune.options.groups")
    with pytest.raises(ConfigError, match=r"groups: 'layer1.0': the layer layer1.0 has an entry"):
        check_groups({"module.layer1.0": 2, "layer1.0": 4}, Block())


def test_names_may_be_taken_apart_at_their_dots():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3)))
    assert check_groups({"0": {"1": 4}, "0.0": 2}, model) == {"0.1": 4, "0.0": 2}
    with pytest.raises(ConfigError, match=r"'0\.2'"):
        check_groups({"0": {"2": 4}}, model)


@pytest.mark.parametrize("entry", [{"G": 1}, {"G": 2, "F": 512, "C": 256, "id": 99}])
def test_a_dead_entry_of_the_original_is_a_warning(tmp_path, caplog, entry):
    """As ``layer4.downsample.0`` of its ``resnet34_A.json``."""
    path = tmp_path / "resnet34_A.json"
    path.write_text(json.dumps({"module.0": {"G": 2}, "module.downsample.0": entry}))
    model = nn.Sequential(nn.Conv2d(4, 8, 3))
    assert read_group_config(path, model) == {"0": 2}
    assert "'module.downsample.0': the model has no such layer" in caplog.text
    assert "passed over" in caplog.text
