"""The zoo against the published counts, against PyTorch, and against users' mistakes."""

import pickle
import sys

import pytest
import torch
import torchvision
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from nni_gconv.errors import CheckpointError, ConfigError
from nni_gconv.profiling.costs import count, profile
from nni_gconv.training.zoo import (
    ModelSettings,
    create_model,
    input_size,
    list_models,
    load_weights,
    read_state_dict,
    register_model,
    registry,
)

SMALL = {
    "resnet8": {"width": 0.5},
    "resnet8b": {"width": 0.5},
    "preresnet11": {"width": 0.25},
    "vgg11": {"width": 0.125},
    "densenet10": {"width": 0.5},
    "condensenet": {"stages": (2, 2, 2), "width": 0.5},
}


def cifar(batch=1, channels=3, size=32):
    return torch.rand(batch, channels, size, size, generator=torch.Generator().manual_seed(0))


def conv_outputs(found):
    """Numbers that convolutions write for one sample: what counters add that price a bias."""
    rows = [row for row in found.layers if row.type == "Conv2d"]
    return sum(torch.Size(row.output_shape).numel() for row in rows)


# --- published counts ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "conv_macs", "params"),
    [
        # FPGM (CVPR 2019), which counts convolutions only; parameters: He et al. 2016, Table 6.
        ("resnet20", 40_550_400, "0.27"),
        ("resnet32", 68_861_952, "0.46"),
        ("resnet56", 125_485_056, "0.85"),
        ("resnet110", 252_887_040, "1.73"),
    ],
)
def test_resnet_counts(name, conv_macs, params):
    found = profile(create_model(name), cifar())
    assert sum(row.macs for row in found.layers if row.type == "Conv2d") == conv_macs
    assert found.macs == conv_macs + 64 * 10
    assert f"{found.params / 1e6:.2f}" == params


def test_resnet20_params_exactly():
    # 19 convolutions and their norms by hand: stem, 6 of 16, 1 + 5 of 32, 1 + 5 of 64 channels.
    convs = 27 * 16 + 6 * 9 * 16**2 + 9 * (16 * 32 + 5 * 32**2) + 9 * (32 * 64 + 5 * 64**2)
    norms = 2 * (7 * 16 + 6 * 32 + 6 * 64)
    assert count(create_model("resnet20"), cifar()).params == convs + norms + 650 == 269_722
    # Option B adds two 1x1 convolutions with norms.
    b = count(create_model("resnet20b"), cifar()).params
    assert b - 269_722 == 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64


def test_vgg16_counts():
    # classifier-pruner's VGG-16 on CIFAR-10: 14 728 266 parameters, 313.20M MACs.
    found = count(create_model("vgg16"), cifar())
    assert found.params == 14_728_266
    assert f"{found.macs / 1e6:.2f}" == "313.20"


@pytest.mark.parametrize(
    ("name", "classes", "params", "flops"),
    [
        # Liu et al. (ICCV 2017), Table 1: two FLOPs a MAC and one for each number that a
        # convolution writes.
        ("vgg19", 10, "20.04", "7.97e+08"),
        ("preresnet164", 10, "1.70", "4.99e+08"),
        ("preresnet164", 100, "1.73", None),
        ("densenet40", 10, "1.02", None),
        ("densenet40", 100, "1.06", None),
    ],
)
def test_slimming_counts(name, classes, params, flops):
    found = profile(create_model(name, num_classes=classes), cifar())
    assert f"{found.params / 1e6:.2f}" == params
    if flops:
        assert f"{2 * found.macs + conv_outputs(found):.2e}" == flops


def test_vgg19_macs():
    # foolwood/pytorch-slimming prints 398.4M for the dense net, a bias counted as one.
    found = profile(create_model("vgg19"), cifar())
    assert f"{(found.macs + conv_outputs(found)) / 1e6:.1f}" == "398.4"


def test_densenet40_macs():
    # Liu et al., Table 1: 5.33e8 FLOPs; what it adds to the products is not said, hence 1 %.
    assert 2 * count(create_model("densenet40"), cifar()).macs == pytest.approx(5.33e8, rel=0.01)


def test_condensenet86_counts():
    # The official README's 0.52M and 65.8M are for 4 groups in every layer but stem and head. Its
    # counter adds one for every ReLU output, every input of a pooling, and every bias.
    found = profile(create_model("condensenet86"), cifar())
    grouped = [row for row in found.layers if row.name.startswith("blocks") and row.macs]
    params = found.params - sum(row.params for row in grouped) * 3 // 4
    macs = found.macs - sum(row.macs for row in grouped) * 3 // 4
    assert len(grouped) == 84
    assert f"{params / 1e6:.2f}" == "0.52"
    relu = 0
    for row in found.layers:
        if row.type == "BatchNorm2d":  # each is followed by a ReLU of its size
            relu += torch.Size(row.output_shape).numel()
    pooled = sum(
        4 * torch.Size(row.output_shape).numel() for row in found.layers if row.type == "AvgPool2d"
    )
    last = 800 * 8 * 8
    assert f"{(macs + relu + pooled + last + 10) / 1e6:.1f}" == "65.8"


# --- architecture -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(list_models()) - {"preresnet110", "resnet110b"}))
def test_every_name_builds_with_classes_and_channels(name):
    model = create_model(name, num_classes=7, in_channels=1).eval()
    with torch.no_grad():
        assert model(cifar(channels=1)).shape == (1, 7)
    assert input_size(name) == (3, 32, 32)


@pytest.mark.parametrize("size", [8, 16, 28, 32])
@pytest.mark.parametrize("name", SMALL)
def test_input_sizes(name, size):
    if name == "vgg11" and size == 8:
        pytest.skip("four poolings need 16x16")
    model = create_model(name, **SMALL[name]).eval()
    assert model(cifar(2, size=size)).shape == (2, 10)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "condensenet")) for n in SMALL]
)
def test_traces(name):
    model = create_model(name, **SMALL[name]).eval()
    x = cifar(2)
    program = torch.export.export(model, (x,), strict=False)
    torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.parametrize("name", SMALL)
def test_trains_a_step(name):
    model = create_model(name, **SMALL[name])
    F.cross_entropy(model(cifar(4)), torch.arange(4)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_width_scales_the_net(name):
    options = {k: v for k, v in SMALL[name].items() if k != "width"}
    sizes = [count(create_model(name, width=w, **options), cifar()).params for w in (0.5, 1, 2)]
    assert 2 < sizes[1] / sizes[0] < 4.2
    assert 2 < sizes[2] / sizes[1] < 4.2


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("width", [1.0, 5 / 16])
def test_option_a_is_every_second_pixel_between_zero_channels(width, size):
    model = create_model("resnet8", width=width)
    base = model.conv1.out_channels
    shortcut = model.layer2[0].shortcut
    assert not list(shortcut.parameters())
    assert not list(shortcut.buffers())
    assert [type(m) for m in shortcut] == [nn.AvgPool2d, nn.ZeroPad3d]
    x = cifar(2, base, size)
    before = base // 2
    expected = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, before, base - before))
    assert torch.equal(shortcut(x), expected)


def test_resnet_keys():
    norm = ["bias", "num_batches_tracked", "running_mean", "running_var", "weight"]
    expected = {"conv1.weight", "linear.weight", "linear.bias", *(f"bn1.{n}" for n in norm)}
    for stage in (1, 2, 3):
        for block in (0, 1, 2):
            for i in (1, 2):
                prefix = f"layer{stage}.{block}"
                expected |= {f"{prefix}.conv{i}.weight", *(f"{prefix}.bn{i}.{n}" for n in norm)}
    assert set(create_model("resnet20").state_dict()) == expected
    for stage in (2, 3):
        prefix = f"layer{stage}.0.shortcut"
        expected |= {f"{prefix}.0.weight", *(f"{prefix}.1.{n}" for n in norm)}
    assert set(create_model("resnet20b").state_dict()) == expected


def test_vgg_last_pool_is_the_fifth_2x2_pooling_at_32():
    model = create_model("vgg11", width=0.125, last_pool="max").eval()
    plain = nn.Sequential(*model.features[:-1], nn.MaxPool2d(2), nn.Flatten(), model.classifier)
    with torch.no_grad():
        assert torch.equal(plain(cifar(2)), model(cifar(2)))


def test_bn_gamma():
    model = create_model("vgg11", width=0.125, bn_gamma=0.5)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert all((m.weight == 0.5).all() for m in norms)


def test_same_seed_same_weights():
    def draw():
        torch.manual_seed(3)
        return create_model("resnet8", width=0.5).state_dict()

    first, second = draw(), draw()
    assert all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize(
    ("depth", "params"),
    [
        # https://github.com/kuangliu/pytorch-cifar, whose stem and widths these are.
        (18, 11_173_962),
        (34, 21_282_122),
        (50, 23_520_842),
        (101, 42_512_970),
        (152, 58_156_618),
    ],
)
def test_resnets_of_imagenets_widths(depth, params):
    model = create_model(f"cifar_resnet{depth}")
    assert sum(p.numel() for p in model.parameters()) == params
    if depth == 18:
        found = count(model, cifar())
        assert found.macs == 555_422_720
        assert model(cifar(2)).shape == (2, 10)


# --- names and options --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnt20", {}, "did you mean 'resnet20'"),
        ("resnet50", {}, "did you mean 'torchvision:resnet50'"),
        ("torchvision:resnet51", {}, "did you mean 'resnet50'|did you mean 'resnet5"),
        ("mypackage.models", {}, "package.module:factory"),
        ("resnet20", {"widht": 0.5}, "did you mean 'width'"),
        ("resnet20", {"depth": 8}, "unknown option of resnet20 'depth'"),
        ("resnet", {"depth": 21}, r"6n\+2 \(8, 14, 20"),
        ("preresnet", {"depth": 2}, r"9n\+2 \(11, 20, 29"),
        ("vgg", {"depth": 12}, "11, 13, 16, 19"),
        ("resnet20", {"width": 0}, "greater than 0"),
        ("resnet20", {"shortcut": "C"}, "allowed: A, B"),
        ("vgg11", {"last_pool": "mean"}, "allowed: avg, max"),
        ("condensenet", {"stages": (1, 2)}, "same length"),
    ],
)
def test_wrong_names_and_options(name, options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        create_model(name, **options)
    assert "\n" not in str(caught.value)


def test_register_model(monkeypatch):
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))

    @register_model(input_size=(1, 8, 8))
    def tiny(num_classes: int = 10, in_channels: int = 1) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 64, num_classes))

    assert "tiny" in list_models()
    assert input_size("tiny") == (1, 8, 8)
    assert create_model("tiny", num_classes=3)(torch.zeros(1, 1, 8, 8)).shape == (1, 3)
    with pytest.raises(ConfigError, match="'tiny' is taken"):
        register_model("tiny")(tiny)
    with pytest.raises(ConfigError, match="colon"):
        register_model("a:b")(tiny)


def test_settings():
    model = ModelSettings(name="resnet8", num_classes=4, options={"width": 0.5}).build(
        in_channels=1
    )
    assert model.conv1.in_channels == 1
    assert model.linear.out_features == 4
    assert ModelSettings(name="resnet8").build(num_classes=6).linear.out_features == 6
    with pytest.raises(ValidationError, match="nam"):
        ModelSettings(nam="resnet8")
    with pytest.raises(ValidationError, match="num_classes"):
        ModelSettings(name="resnet8", num_classes=0)


# --- weights ------------------------------------------------------------------------------------


@pytest.fixture
def trained():
    torch.manual_seed(1)
    model = create_model("resnet8b", width=0.5)
    model(cifar(4))  # moves the running statistics
    return model.eval()


@pytest.mark.parametrize("form", ["safetensors", "plain", "state_dict", "parallel", "old"])
def test_loads_weights(form, trained, tmp_path):
    state = trained.state_dict()
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    if form == "safetensors":
        save_file(state, path)
    elif form == "plain":
        torch.save(state, path)
    elif form == "state_dict":
        torch.save({"epoch": 3, "state_dict": state}, path)
    elif form == "parallel":
        torch.save({"model": {f"module.{k}": v for k, v in state.items()}}, path)
    elif form == "old":  # before batch norms counted their batches
        torch.save({k: v for k, v in state.items() if not k.endswith("tracked")}, path)
    model = create_model("resnet8b", weights=str(path), width=0.5).eval()
    assert torch.equal(model(cifar()), trained(cifar()))


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"not a checkpoint", "not a"),
        (Evil(), "would run code"),
        ([1, 2], "holds a list"),
        ({"epoch": 3}, "epoch is no tensor"),
        ({}, "empty"),
    ],
)
def test_bad_files(content, message, tmp_path, capsys):
    path = tmp_path / "w.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, Evil):
        path.write_bytes(pickle.dumps(content))
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_state_dict(path)
    assert "w.pt" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "code ran" not in capsys.readouterr().out


def test_damaged_safetensors(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"\x10" * 30)
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        read_state_dict(path)


def test_weights_that_do_not_fit(trained, tmp_path):
    path = tmp_path / "w.pt"
    state = trained.state_dict()
    state["extra.weight"] = torch.zeros(1)
    del state["linear.bias"]
    state["conv1.weight"] = torch.zeros(5, 3, 3, 3)
    torch.save(state, path)
    model = create_model("resnet8b", width=0.5)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, path)
    text = str(caught.value)
    assert "missing linear.bias" in text
    assert "not in the model extra.weight" in text
    assert "conv1.weight (5, 3, 3, 3) (model: (8, 3, 3, 3))" in text
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_many_misfits_are_cut_short(tmp_path):
    path = tmp_path / "w.pt"
    torch.save(create_model("resnet14", width=0.5).state_dict(), path)
    with pytest.raises(CheckpointError, match=r"not in the model layer1\.1\.conv1.* and \d+ more"):
        create_model("resnet8", weights=str(path), width=0.5)


# --- torchvision --------------------------------------------------------------------------------


def test_torchvision_classes_and_channels():
    model = create_model("torchvision:resnet18", num_classes=5, in_channels=1)
    assert model.fc.out_features == 5
    assert (model.conv1.in_channels, model.conv1.stride, model.conv1.bias) == (1, (2, 2), None)
    assert model(cifar(2, channels=1)).shape == (2, 5)
    assert create_model("torchvision:squeezenet1_1")(cifar(size=64)).shape == (1, 1000)
    assert input_size("torchvision:resnet18") == (3, 224, 224)
    assert input_size("torchvision:inception_v3") == (3, 299, 299)


def test_side_heads_are_left_out():
    model = create_model("torchvision:googlenet", num_classes=4, init_weights=False)
    assert isinstance(model(cifar(2, size=64)), torch.Tensor)
    model = create_model("torchvision:googlenet", 4, aux_logits=True, init_weights=False)
    assert model.aux1 is not None


@pytest.fixture
def published(monkeypatch):
    """torchvision's resnet18 weights without the download."""
    torch.manual_seed(5)
    state = torchvision.models.resnet18().state_dict()
    enum = torchvision.models.ResNet18_Weights
    monkeypatch.setattr(enum, "get_state_dict", lambda self, *args, **kwargs: state)
    return state


def test_published_weights(published):
    model = create_model("torchvision:resnet18", weights="DEFAULT")
    assert all(torch.equal(published[k], v) for k, v in model.state_dict().items())
    model = create_model("torchvision:resnet18", 3, "IMAGENET1K_V1", in_channels=1)
    assert model.fc.weight.shape == (3, 512)
    assert torch.equal(model.layer4[1].conv2.weight, published["layer4.1.conv2.weight"])
    # A grey image in one channel gives what it gave in three.
    grey = cifar(channels=1)
    expected = F.conv2d(grey.expand(1, 3, 32, 32), published["conv1.weight"], None, 2, 3)
    torch.testing.assert_close(model.conv1(grey), expected)


def test_published_weights_that_do_not_fit(published):
    published["layer1.0.conv1.weight"] = torch.zeros(64, 32, 3, 3)
    with pytest.raises(CheckpointError, match=r"other shapes layer1\.0\.conv1"):
        create_model("torchvision:resnet18", weights="DEFAULT")


def test_torchvision_files_and_mistakes(tmp_path):
    path = tmp_path / "w.pt"
    source = create_model("torchvision:resnet18", num_classes=2)
    torch.save(source.state_dict(), path)
    model = create_model("torchvision:resnet18", num_classes=2, weights=str(path))
    assert torch.equal(model.fc.weight, source.fc.weight)
    with pytest.raises(ConfigError, match=r"did you mean 'IMAGENET1K_V1'.*no file"):
        create_model("torchvision:resnet18", weights="IMAGENET_V1")
    with pytest.raises(ConfigError, match="widht"):
        create_model("torchvision:resnet18", widht=2)
    with pytest.raises(ConfigError, match="base_width=64"):
        create_model("torchvision:resnet18", width_per_group=32)


# --- a user's own constructor -------------------------------------------------------------------


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    (tmp_path / "zoo_test_nets.py").write_text(
        "import torch\n"
        "def net(num_classes=2, hidden=4):\n"
        "    return torch.nn.Sequential(torch.nn.Linear(8, hidden), "
        "torch.nn.Linear(hidden, num_classes))\n"
        "def fixed():\n"
        "    import zoo_test_late\n"
        "    return torch.nn.Linear(8, zoo_test_late.CLASSES)\n"
        "def wrong():\n    return 3\n"
        "def broken():\n    return torch.zeros(1).no_such_thing\n"
        "net.input_size = (1, 1, 8)\n"
        "number = 4\n"
    )
    (tmp_path / "zoo_test_late.py").write_text("CLASSES = 6\n")
    (tmp_path / "zoo_test_raises.py").write_text("raise RuntimeError('no licence')\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("zoo_test_nets", "zoo_test_late", "zoo_test_raises"):
        sys.modules.pop(name, None)


def test_factory_path(workdir):
    path = list(sys.path)
    model = create_model("zoo_test_nets:net", num_classes=5, hidden=3)
    assert (model[0].out_features, model[1].out_features) == (3, 5)
    assert create_model("zoo_test_nets:net")[1].out_features == 2
    # Takes no num_classes, and imports a neighbour only when it is called.
    assert create_model("zoo_test_nets:fixed", num_classes=5).out_features == 6
    assert input_size("zoo_test_nets:net") == (1, 1, 8)
    assert sys.path == path


def test_factory_weights(workdir):
    torch.save(create_model("zoo_test_nets:net").state_dict(), "w.pt")
    state = torch.load("w.pt", weights_only=True)
    model = create_model("zoo_test_nets:net", weights="w.pt")
    assert torch.equal(model[0].weight, state["0.weight"])


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("zoo_test_absent:net", {}, "module 'zoo_test_absent' .* cannot be imported"),
        ("zoo_test_raises:net", {}, "cannot be imported .RuntimeError: no licence"),
        ("zoo_test_nets:nett", {}, "factory in module 'zoo_test_nets' 'nett'; did you mean 'net'"),
        ("zoo_test_nets:number", {}, "is a int, not a constructor"),
        ("zoo_test_nets:wrong", {}, "returns a int, not a torch.nn.Module"),
        ("zoo_test_nets:net", {"depth": 3}, "unexpected keyword argument 'depth'"),
        (":net", {}, "not of the form"),
        ("zoo_test_nets:", {}, "not of the form"),
    ],
)
def test_bad_factories(workdir, path, options, message):
    with pytest.raises(ConfigError, match=message):
        create_model(path, **options)


def test_a_factory_own_error_is_not_hidden(workdir):
    with pytest.raises(AttributeError, match="no_such_thing"):
        create_model("zoo_test_nets:broken")


def test_factory_without_input_size(workdir):
    with pytest.raises(ConfigError, match=r"set fixed\.input_size"):
        input_size("zoo_test_nets:fixed")


# --- checkpoints of others ----------------------------------------------------------------------


def test_masks_beside_weights_are_applied(tmp_path):
    """As GConv Prune saves them: one number for each kernel, beside the weight it acts on."""
    model = create_model("resnet8", width=0.5)
    state = {f"module.{k}": v for k, v in model.state_dict().items()}
    mask = torch.ones(8, 8)
    mask[:4, 4:] = mask[4:, :4] = 0
    state["module.layer1.0.conv1.mask"] = mask
    state["module.layer1.0.conv2.mask"] = mask[:, :, None, None]
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "c.pth.tar")
    loaded = load_weights(create_model("resnet8", width=0.5), tmp_path / "c.pth.tar")
    for name in ("conv1", "conv2"):
        got = getattr(loaded.layer1[0], name).weight
        assert torch.equal(got, getattr(model.layer1[0], name).weight * mask[:, :, None, None])
    assert torch.equal(loaded.conv1.weight, model.conv1.weight)


def test_a_mask_of_nothing_is_refused(tmp_path):
    state = {**create_model("resnet8").state_dict(), "nowhere.mask": torch.ones(3)}
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"not in the model nowhere\.mask"):
        load_weights(create_model("resnet8"), tmp_path / "w.pt")


def test_a_prefix_inside_the_names(tmp_path):
    """DataParallel around a part, as in the first VGG scripts."""
    model = create_model("vgg11", width=0.125)
    state = {k.replace("features.", "features.module."): v for k, v in model.state_dict().items()}
    assert state.keys() != model.state_dict().keys()
    torch.save(state, tmp_path / "w.pt")
    loaded = load_weights(create_model("vgg11", width=0.125), tmp_path / "w.pt")
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in loaded.state_dict().items())


class Task(nn.Module):
    """A module around a network, as Lightning's are."""

    def __init__(self, model):
        super().__init__()
        self.model = model


@pytest.mark.parametrize(
    ("around", "name"),
    [
        (torch.compile, "_orig_mod.conv1.weight"),
        (lambda m: nn.DataParallel(torch.compile(m)), "module._orig_mod.conv1.weight"),
        (Task, "model.conv1.weight"),
        (lambda m: Task(torch.compile(m)), "model._orig_mod.conv1.weight"),
    ],
)
def test_a_prefix_of_what_wrapped_the_network(tmp_path, around, name):
    model = create_model("resnet8", width=0.5)
    state = around(model).state_dict()
    assert name in state
    torch.save({"epoch": 3, "model_state_dict": state, "optimizer": {}}, tmp_path / "w.ckpt")
    loaded = load_weights(create_model("resnet8", width=0.5), tmp_path / "w.ckpt")
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in loaded.state_dict().items())


def test_a_prefix_that_does_not_help_stays_in_the_message(tmp_path):
    torch.save({"model.weight": torch.ones(2, 2), "loss.weight": torch.ones(2)}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"not in the model model\.weight, loss\.weight"):
        load_weights(nn.Linear(2, 2, bias=False), tmp_path / "w.pt")
    torch.save({"weight": torch.ones(2, 2)}, tmp_path / "w.pt")
    assert load_weights(nn.Linear(2, 2, bias=False), tmp_path / "w.pt").weight.sum() == 4
    torch.save({"weights": torch.ones(2, 2)}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"not in the model weights"):
        load_weights(nn.Linear(2, 2, bias=False), tmp_path / "w.pt")


def test_names_of_two_wrappers_are_not_thrown_together(tmp_path):
    torch.save({"module.a": torch.ones(1), "_orig_mod.a": torch.zeros(1)}, tmp_path / "w.pt")
    assert read_state_dict(tmp_path / "w.pt").keys() == {"module.a", "_orig_mod.a"}


@pytest.mark.parametrize("classes", [10, 3])
def test_a_new_head_on_weights_of_other_classes(tmp_path, classes):
    source = create_model("resnet8", 10)
    torch.save(source.state_dict(), tmp_path / "w.pt")
    settings = {"name": "resnet8", "num_classes": classes}
    weights = {"file": str(tmp_path / "w.pt"), "head": "new"}
    made = ModelSettings(**settings, weights=weights).build()
    assert torch.equal(made.layer3[0].conv2.weight, source.layer3[0].conv2.weight)
    assert made.linear.weight.shape == (classes, 64)
    if classes == 10:
        assert not torch.equal(made.linear.weight, source.linear.weight)
    else:
        with pytest.raises(CheckpointError, match=r"other shapes linear\.weight"):
            ModelSettings(**settings, weights=str(tmp_path / "w.pt")).build()
    with pytest.raises(ValidationError):
        ModelSettings(**settings, weights={"file": "w.pt", "head": "old"})
