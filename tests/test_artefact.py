"""Small models as files: the same bits in a process that never saw the pruner, and refusals."""

import copy
import hashlib
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from nni_gconv import GroupConvPruner, ModelSpeedup, load_compact, save_compact
from nni_gconv.artefact import FORMAT, plan_of, read_plan, rebuild
from nni_gconv.errors import CheckpointError, ConfigError
from nni_gconv.graph import Coupling
from nni_gconv.training.zoo import create_model

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def small_net(name="resnet8", share=2, constants="silence", **options):
    """Build a zoo model and cut every `share`-th channel of every set that can be cut."""
    torch.manual_seed(0)
    model = create_model(name, **options).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    coupling = Coupling.trace(model, IMAGES)
    removed = coupling.empty()
    for coupled in coupling.sets:
        if coupled.reason is None:
            removed[coupled.classes[::share]] = True
    ModelSpeedup(model, IMAGES, coupling.masks(removed), constants=constants).speedup_model()
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model = small_net()
    path = tmp_path_factory.mktemp("artefact") / "m.safetensors"
    save_compact(model, path, recipe={"prune": {"method": "fpgm"}})
    return model, path


def rewrite(source, target, change):
    """Copy a file with its metadata changed by a function."""
    with safe_open(source, framework="pt") as file:
        metadata = file.metadata()
    change(metadata)
    save_file(load_file(source), target, metadata=metadata)
    return target


def change_plan(source, target, change):
    """Change the plan and its digest, as only a program of ours would."""

    def apply(metadata):
        plan = json.loads(metadata["nni_gconv.plan"])
        changed = change(plan)
        text = json.dumps(plan if changed is None else changed)
        metadata["nni_gconv.plan"] = text
        metadata["nni_gconv.plan_sha256"] = hashlib.sha256(text.encode()).hexdigest()

    return rewrite(source, target, apply)


# -- there and back ------------------------------------------------------------------------------


SAVED = {
    "resnet8": {}, "resnet8b": {}, "densenet10": {}, "vgg11": {"width": 0.125},
    "torchvision:mobilenet_v3_small": {"num_classes": 10},
}  # fmt: skip


@pytest.fixture(scope="module")
def in_a_new_process(tmp_path_factory):
    """What a new process says of each file: in eval mode, the same bits; and what it loaded."""
    folder = tmp_path_factory.mktemp("saved")
    for number, (name, options) in enumerate(SAVED.items()):
        model = small_net(name, **options)
        assert model.state_dict() != {}
        save_compact(model, folder / f"{number}.safetensors")
        with torch.no_grad():
            torch.save({"images": IMAGES, "logits": model(IMAGES)}, folder / f"{number}.pt")
    code = f"""
        import json, sys, torch
        from nni_gconv import load_compact
        from nni_gconv.training.zoo import create_model
        torch.manual_seed(999)
        torch.set_num_threads({torch.get_num_threads()})
        found = {{}}
        for number, (name, options) in enumerate({SAVED!r}.items()):
            file = f"{{number}}.safetensors"
            model = load_compact(file, lambda: create_model(name, **options))
            expected = torch.load(f"{{number}}.pt", weights_only=True)
            with torch.no_grad():
                same = torch.equal(model(expected["images"]), expected["logits"])
            found[name] = {{"training": model.training, "same": same}}
        print(json.dumps({{"found": found, "loaded": list(sys.modules)}}))
    """
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False,
        cwd=folder, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAVED)
def test_same_bits_in_a_new_process(in_a_new_process, name):
    assert in_a_new_process["found"][name] == {"training": False, "same": True}


@pytest.mark.slow
def test_loading_a_file_loads_no_pruner(in_a_new_process):
    rooms = ("nni_gconv.speedup.", "nni_gconv.pruning", "nni.compression")
    parts = {"nni_gconv.groupconv.gather", "nni_gconv.speedup.residual"}
    loaded = set(in_a_new_process["loaded"])
    assert {m for m in loaded if m.startswith(rooms)} - parts == set()


def test_loaded_model_is_the_saved_one(saved):
    model, path = saved
    loaded = load_compact(path, lambda: create_model("resnet8"))
    first, second = model.state_dict(), loaded.state_dict()
    assert list(first) == list(second)
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert plan_of(loaded) == plan_of(model)
    assert str(loaded) == str(model)
    dense = create_model("resnet8")
    assert loaded.conv1.out_channels == dense.conv1.out_channels // 2
    assert loaded.layer2[0].shortcut[1].padding == (0, 0, 0, 0, 4, 4)


def test_file_says_where_it_comes_from(saved):
    _, path = saved
    read = read_plan(path)
    assert read["recipe"] == {"prune": {"method": "fpgm"}}
    assert read["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"nni_gconv", "python", "nni"} <= set(read["versions"])
    assert read["plan"]["format"] == FORMAT
    assert read["plan"]["modules"]["conv1"]["attrs"]["out_channels"] == 8


def test_folded_bias_comes_back(tmp_path):
    def dense():
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sigmoid(), nn.Conv2d(8, 4, 1, bias=False))

    torch.manual_seed(0)
    model = dense().eval()
    mask = torch.ones(8, 3, 3, 3)
    mask[:3] = 0
    ModelSpeedup(model, IMAGES, {"0": {"weight": mask}}, constants="fold").speedup_model()
    assert model[2].bias is not None
    path = save_compact(model, tmp_path / "m.safetensors")
    loaded = load_compact(path, dense)
    assert torch.equal(loaded(IMAGES), model(IMAGES))


class Tied(nn.Module):
    """Two convolutions with one weight, one module under two names."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)
        self.b.weight = self.a.weight
        self.head = self.again = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.again(torch.relu(self.a(x) * self.b(x))) + self.head(self.a(x))


def test_tied_parameters(tmp_path):
    torch.manual_seed(0)
    model = Tied().eval()
    masks = {}
    for name in ("a", "b"):
        weight, bias = torch.ones(8, 3, 3, 3), torch.ones(8)
        weight[:3], bias[:3] = 0, 0
        masks[name] = {"weight": weight, "bias": bias}
    ModelSpeedup(model, IMAGES, masks).speedup_model()
    path = save_compact(model, tmp_path / "m.safetensors")
    loaded = load_compact(path, Tied)
    assert loaded.b.weight is loaded.a.weight
    assert loaded.again is loaded.head
    assert (loaded.b.out_channels, loaded.head.in_channels) == (5, 5)
    assert torch.equal(loaded(IMAGES), model(IMAGES))
    assert sum(p.numel() for p in loaded.parameters()) == sum(p.numel() for p in model.parameters())


def test_parts_of_one_memory(tmp_path):
    def dense():
        return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))

    model = dense()
    both = torch.randn(8, 4)
    model[0].weight, model[1].weight = nn.Parameter(both[:4]), nn.Parameter(both[4:])
    loaded = load_compact(save_compact(model, tmp_path / "m.safetensors"), dense)
    assert torch.equal(loaded[0].weight, both[:4])
    assert torch.equal(loaded[1].weight, both[4:])


def called(layer, *inputs):
    found = layer.eval()(*inputs)
    return found[0] if isinstance(found, tuple) else found


@pytest.mark.parametrize(
    ("make", "shape", "inputs"),
    [
        (lambda n: nn.Linear(n, 2 * n), (2, 4), 1),
        (lambda n: nn.Bilinear(n, n, n), (2, 4), 2),
        (lambda n: nn.Conv1d(n, n, 3, groups=n), (2, 4, 5), 1),
        (lambda n: nn.ConvTranspose2d(n, 2 * n, 3), (2, 4, 5, 5), 1),
        (nn.BatchNorm2d, (2, 4, 3, 3), 1),
        (lambda n: nn.InstanceNorm1d(n, affine=True), (2, 4, 3), 1),
        (lambda n: nn.GroupNorm(n // 2, n), (2, 4, 3), 1),
        (nn.LayerNorm, (2, 3, 4), 1),
        (lambda n: nn.LayerNorm((n, 3)), (2, 4, 3), 1),
        (nn.RMSNorm, (2, 3, 4), 1),
        (nn.PReLU, (2, 4), 1),
        (lambda n: nn.MultiheadAttention(n, n // 2), (5, 2, 4), 3),
        (lambda n: nn.MultiheadAttention(n, n // 2, kdim=n, vdim=n), (5, 2, 4), 3),
    ],
)
def test_layers_that_another_tool_has_cut_come_back(tmp_path, make, shape, inputs):
    """Such as Torch-Pruning, which makes torch's own layers smaller in place."""
    small, given = make(4), [torch.randn(shape) for _ in range(inputs)]
    save_compact(nn.ModuleList([small]), tmp_path / "small.safetensors")
    (loaded,) = load_compact(tmp_path / "small.safetensors", lambda: nn.ModuleList([make(8)]))
    assert torch.equal(called(loaded, *given), called(small, *given))
    assert repr(loaded) == repr(small)


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_tables_that_another_tool_has_cut_come_back(tmp_path, kind):
    small, asked = kind(5, 4), torch.tensor([[0, 4], [2, 1]])
    save_compact(nn.ModuleList([small]), tmp_path / "small.safetensors")
    (loaded,) = load_compact(tmp_path / "small.safetensors", lambda: nn.ModuleList([kind(9, 8)]))
    assert torch.equal(loaded(asked), small(asked))
    assert repr(loaded) == repr(small)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_precision_comes_back(tmp_path, dtype):
    model = small_net().to(dtype)
    loaded = load_compact(
        save_compact(model, tmp_path / "m.safetensors"), lambda: create_model("resnet8")
    )
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert torch.equal(loaded(IMAGES.to(dtype)), model(IMAGES.to(dtype)))


def test_saving_replaces_the_file_whole(tmp_path, saved):
    model, _ = saved
    path = tmp_path / "folder" / "m.safetensors"
    save_compact(model, path)
    before = path.read_bytes()
    broken = copy.deepcopy(model)
    broken.conv1.weight = nn.Parameter(torch.empty_like(broken.conv1.weight, device="meta"))
    with pytest.raises(NotImplementedError):
        save_compact(broken, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["m.safetensors"]


# -- another architecture ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (lambda: create_model("resnet14"), "it has no layer 'layer1.1.conv1'"),
        (
            lambda: create_model("resnet8b"),
            "layer2.0.shortcut.1 is a ZeroPad3d, here a BatchNorm2d",
        ),
        (lambda: create_model("vgg11", width=0.125), "ResNet has 'conv1', VGG has not"),
    ],
)
def test_other_architectures(saved, other, text):
    _, path = saved
    with pytest.raises(CheckpointError, match="is of another architecture") as caught:
        load_compact(path, other)
    assert text in str(caught.value)
    assert path.name in str(caught.value)


def test_other_type_of_layer(saved):
    def other():
        model = create_model("resnet8")
        model.layer1[0].bn1 = nn.InstanceNorm2d(16, affine=True, track_running_stats=True)
        return model

    with pytest.raises(CheckpointError, match=r"layer1.0.bn1 is a BatchNorm2d, here a Instance"):
        load_compact(saved[1], other)


def test_missing_layer(saved):
    def other():
        model = create_model("resnet8")
        del model.linear
        return model

    with pytest.raises(CheckpointError, match="ResNet has 'linear', ResNet has not"):
        load_compact(saved[1], other)


def test_missing_and_unknown_tensors(tmp_path, saved):
    _, path = saved
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    weight = tensors.pop("linear.bias")
    save_file(tensors, tmp_path / "less.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError, match=r"lacks linear\.bias"):
        load_compact(tmp_path / "less.safetensors", lambda: create_model("resnet8"))
    save_file(
        {**tensors, "linear.bias": weight, "more": weight.clone()},
        tmp_path / "more.safetensors",
        metadata=metadata,
    )
    with pytest.raises(CheckpointError, match="has unknown more"):
        load_compact(tmp_path / "more.safetensors", lambda: create_model("resnet8"))
    save_file({**tensors, "linear.bias": weight[:1]}, tmp_path / "w.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError, match=r"linear\.bias has shape \(1,\), its plan \(10,\)"):
        load_compact(tmp_path / "w.safetensors", lambda: create_model("resnet8"))


@pytest.mark.parametrize(
    ("model_fn", "words"),
    [
        (None, "got 'NoneType'"),
        ("resnet8", "got 'resnet8'"),
        (torch.nn.Linear(2, 2), "got 'Linear'"),
        (lambda: None, "made a 'NoneType'"),
    ],
)
def test_what_makes_no_model(saved, model_fn, words):
    with pytest.raises(ConfigError, match=f"model_fn: .*{words}"):
        load_compact(saved[1], model_fn)


# -- damaged files -------------------------------------------------------------------------------


def test_no_file(tmp_path):
    with pytest.raises(CheckpointError, match="no file at"):
        read_plan(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.999])
def test_truncated_file(tmp_path, saved, part):
    content = saved[1].read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors is damaged"):
        load_compact(path, lambda: create_model("resnet8"))


def test_edited_plan(tmp_path, saved):
    def edit(metadata):
        metadata["nni_gconv.plan"] = metadata["nni_gconv.plan"].replace(
            '"out_channels": 8', '"out_channels": 9', 1
        )

    path = rewrite(saved[1], tmp_path / "edited.safetensors", edit)
    with pytest.raises(CheckpointError, match="the plan was edited"):
        load_compact(path, lambda: create_model("resnet8"))


@pytest.mark.parametrize("place", [0.001, 0.5, 1.0])
def test_flipped_bit_in_the_weights(tmp_path, saved, place):
    content = bytearray(saved[1].read_bytes())
    body = 8 + int.from_bytes(content[:8], "little")
    content[body + int(place * (len(content) - body - 1))] ^= 1
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"flipped\.safetensors: the weights were changed"):
        load_compact(path, lambda: create_model("resnet8"))


def test_changed_weights(tmp_path, saved):
    """Other numbers, another type, two layers exchanged: all by a program that reads the format."""
    _, path = saved
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    first, second = "layer1.0.conv1.weight", "layer1.0.conv2.weight"
    changes = {
        "number": {first: tensors[first] + 1e-6},
        "type": {first: tensors[first].half()},
        "order": {first: tensors[second], second: tensors[first]},
    }
    for name, change in changes.items():
        other = tmp_path / f"{name}.safetensors"
        save_file({**tensors, **change}, other, metadata=metadata)
        with pytest.raises(CheckpointError, match="the weights were changed"):
            load_compact(other, lambda: create_model("resnet8"))
    del metadata["nni_gconv.weights_sha256"]
    save_file(tensors, tmp_path / "none.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError, match="the weights were changed"):
        load_compact(tmp_path / "none.safetensors", lambda: create_model("resnet8"))


def test_newer_format(tmp_path, saved):
    def newer(plan):
        plan["format"] = FORMAT + 1

    path = change_plan(saved[1], tmp_path / "newer.safetensors", newer)
    with pytest.raises(CheckpointError, match=f"plan format {FORMAT + 1}.*upgrade nni-gconv"):
        load_compact(path, lambda: create_model("resnet8"))


@pytest.mark.parametrize("plan", [{}, [], {"format": "new"}])
def test_plan_that_is_none(tmp_path, saved, plan):
    path = change_plan(saved[1], tmp_path / "odd.safetensors", lambda _: plan)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_compact(path, lambda: create_model("resnet8"))


def test_files_of_others(tmp_path):
    save_file({"w": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"it was not written by save_compact\(\)"):
        load_compact(tmp_path / "w.safetensors", lambda: create_model("resnet8"))
    torch.save(create_model("resnet8").state_dict(), tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="no safetensors file"):
        load_compact(tmp_path / "w.pt", lambda: create_model("resnet8"))


# -- the plan alone ------------------------------------------------------------------------------


def test_plan_alone_trains_from_scratch(saved):
    """The plan gives the architecture: new weights, and they learn."""
    model, path = saved
    plan = read_plan(path)["plan"]
    torch.manual_seed(3)
    fresh = rebuild(create_model("resnet8"), plan)
    assert plan_of(fresh) == plan
    assert not torch.equal(fresh.conv1.weight, model.conv1.weight)
    # The spread of fresh weights is that of the narrow layer, not a part of the wide one's.
    spread = (3 * fresh.linear.in_features) ** -0.5
    assert fresh.linear.weight.std().item() == pytest.approx(spread, rel=0.1)
    labels = torch.tensor([1, 7])
    optimizer = torch.optim.SGD(fresh.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(20):
        loss = nn.functional.cross_entropy(fresh.train()(IMAGES), labels)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in fresh.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_what_has_no_initialisation_of_its_own_is_cut():
    class Scaled(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.conv = nn.Conv2d(3, width, 1)
            self.scale = nn.Parameter(torch.full((width, 1, 1), 0.5))

        def forward(self, x):
            return self.conv(x) * self.scale

    fresh = rebuild(Scaled(8), plan_of(Scaled(5)))
    assert fresh(IMAGES).shape[1] == 5
    assert torch.equal(fresh.scale, torch.full((5, 1, 1), 0.5))


def test_layers_that_keep_their_shape_keep_their_weights():
    dense = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 4), nn.Linear(4, 1))
    last = dense[2].weight
    plan = plan_of(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4), nn.Linear(4, 1)))
    assert torch.equal(rebuild(dense, plan)[2].weight, last)


def test_memory_of_loaded_weights_is_aligned(tmp_path):
    """Kernels may round otherwise on unaligned memory, and a file aligns to eight bytes only."""
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 7))
    for length in range(0, 64, 8):
        path = save_compact(model, tmp_path / "m.safetensors", recipe={"x": "x" * length})
        for tensor in load_compact(path, lambda: copy.deepcopy(model)).state_dict().values():
            assert tensor.data_ptr() % 64 == 0


def test_plan_is_json():
    plan = plan_of(small_net("vgg11", width=0.125))
    assert json.loads(json.dumps(plan)) == plan


class Shared(nn.Module):
    """Three convolutions with one weight, a fourth beside them."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(w, 16, 1) for w in (3, 16, 16, 16))
        self.c.weight = self.d.weight = self.b.weight

    def forward(self, x):
        return self.d(self.c(self.b(self.a(x)).relu()).relu())


@pytest.mark.parametrize("apart", [["b"], ["c"], ["d"], ["b", "c", "d"], []])
def test_weights_that_are_no_longer_shared_come_back(apart, tmp_path):
    """What a cut has untied (group convolution does) is untied in the model loaded."""
    torch.manual_seed(0)
    net = Shared().eval()
    for name in apart:
        net.get_submodule(name).weight = nn.Parameter(torch.randn(16, 16, 1, 1))
    x = torch.randn(2, 3, 4, 4)
    loaded = load_compact(save_compact(net, tmp_path / "m.safetensors"), Shared)
    with torch.no_grad():
        assert torch.equal(loaded(x), net(x))
    for first, second in (("b", "c"), ("c", "d"), ("b", "d")):
        same = [getattr(m, first).weight is getattr(m, second).weight for m in (net, loaded)]
        assert same[0] == same[1]


@pytest.mark.slow
def test_grouping_that_unties_comes_back(tmp_path):
    torch.manual_seed(0)
    net, x = Shared().eval(), torch.randn(2, 3, 4, 4)
    pruner = GroupConvPruner(net, [{"op_names": ["b", "c"], "num_groups": 4}], dummy_input=x)
    _, masks = pruner.compress()
    pruner.unwrap_model()
    small = ModelSpeedup(net, x, masks).speedup_model()
    assert small.b.groups == 4
    loaded = load_compact(save_compact(small, tmp_path / "m.safetensors"), Shared)
    with torch.no_grad():
        assert torch.equal(loaded(x), small(x))
