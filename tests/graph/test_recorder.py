"""The tracer: what it sees, where it says it was, and that nothing of it stays in the model."""

from __future__ import annotations

import copy

import pytest
import torch
from speedup_tools import line_of
from torch import nn
from torch.utils.checkpoint import checkpoint

from nni_gconv.errors import TraceError
from nni_gconv.graph import location, op_name, shape_of, trace

X = torch.zeros(2, 3, 8, 8)


def operators(graph):
    return [op_name(node) for node in graph.nodes if node.op == "call_function"]


def named(graph, name):
    return [n for n in graph.nodes if n.op == "call_function" and op_name(n) == name]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        x = self.bn(self.conv(x)).relu_()
        return self.fc(x.mean((2, 3)))


def test_operators_are_seen_whole():
    graph = trace(nn.Sequential(Block()), X)
    assert operators(graph) == ["conv2d", "batch_norm", "relu", "mean", "linear"]
    assert [shape_of(n) for n in graph.nodes if n.op == "call_function"] == [
        (2, 4, 6, 6), (2, 4, 6, 6), (2, 4, 6, 6), (2, 4), (2, 5)
    ]  # fmt: skip
    assert [graph.owner(n) for n in graph.nodes if n.op == "call_function"] == [
        "0.conv", "0.bn", "0", "0", "0.fc"
    ]  # fmt: skip
    (conv,) = named(graph, "conv2d")
    assert graph.tensors[conv.args[1].name] == "0.conv.weight"
    assert location(conv).endswith(f"{line_of(Block, 'self.bn(self.conv')} in forward")
    assert [shape_of(n) for n in graph.inputs] == [(2, 3, 8, 8)]


def test_what_was_written_in_place_is_read_afterwards():
    class Net(nn.Module):
        def forward(self, x):
            y = x * 2
            y.add_(1)
            return y.exp()

    graph = trace(Net(), X)
    (exp,) = named(graph, "exp")
    assert op_name(exp.args[0]) == "add"


def test_a_shape_changed_in_place():
    class Net(nn.Module):
        def forward(self, x):
            y = x * 2
            y.unsqueeze_(0)
            return y + 1

    graph = trace(Net(), X)
    assert shape_of(named(graph, "mul")[0]) == (2, 3, 8, 8)
    assert shape_of(named(graph, "unsqueeze")[0]) == (1, 2, 3, 8, 8)


def test_parts_of_a_result():
    class Net(nn.Module):
        def forward(self, x):
            first, second = x.split([1, 2], 1)
            return {"sum": first + second, "n": 3}

    graph = trace(Net(), X)
    items = named(graph, "getitem")
    assert [shape_of(item) for item in items] == [(2, 1, 8, 8), (2, 2, 8, 8)]
    assert graph.nodes[-1].args == ((named(graph, "add")[0], 3),)


def test_a_module_called_twice_and_tied_weights():
    conv = nn.Conv2d(3, 3, 1)
    net = nn.Sequential(conv, conv, nn.Conv2d(3, 3, 1))
    net[2].weight = conv.weight
    graph = trace(net, X)
    convs = named(graph, "conv2d")
    assert [graph.owner(n) for n in convs] == ["0", "0", "2"]
    assert {graph.tensors[n.args[1].name] for n in convs} == {"0.weight"}


def test_constants():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean = torch.ones(3)  # neither parameter nor buffer
            self.register_buffer("times", torch.tensor(2))

        def forward(self, x):
            x = (x - self.mean.view(1, 3, 1, 1)) * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
            for _ in range(int(self.times)):  # numbers of the model itself are certain
                x = x.exp()
            ends = torch.linspace(0, 1, 3)
            ends[0] = 2
            shares = torch.linspace(0, 1, 3).tolist()
            return x * shares[2] if torch.tensor(1.0) > shares[1] else -x

    graph = trace(Net(), X)
    assert operators(graph).count("exp") == 2
    assert "neg" not in operators(graph)
    assert list(graph.tensors.values()) == ["times"]
    assert named(graph, "mul")[-1].args[1] == 1.0


def test_a_constant_that_was_written_is_none():
    class Net(nn.Module):
        def forward(self, x):
            known = torch.zeros(3)
            first = known[0]
            known[:1] = x.sum()
            return x * float(first)

    with pytest.raises(TraceError, match="depends on the values of a tensor"):
        trace(Net(), X)


class Counting(nn.Module):
    """Changes a buffer, and reads it."""

    def __init__(self, *, branch):
        super().__init__()
        self.branch = branch
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count.add_(1)
        return -x if self.branch and self.count > 3 else x * self.count


def test_a_buffer_that_the_forward_writes():
    net = Counting(branch=False)
    graph = trace(net, X)
    (mul,) = named(graph, "mul")
    assert op_name(mul.args[1]) == "add"
    assert int(net.count) == 0
    with pytest.raises(TraceError, match="depends on the values of a tensor"):
        trace(Counting(branch=True), X)


@pytest.mark.slow
def test_a_compiled_module_is_followed_as_it_is_written():
    net = nn.Sequential(torch.compile(Block()))
    graph = trace(net, X)
    assert operators(graph) == ["conv2d", "batch_norm", "relu", "mean", "linear"]
    assert "0._orig_mod.conv.weight" in graph.tensors.values()


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * torch.sigmoid(x)


def test_functions_scripts_and_checkpoints():
    @torch.jit.script
    def gate(x):
        return x * torch.sigmoid(x)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            with torch.no_grad():
                x = checkpoint(self.conv, x, use_reentrant=False)
            with torch.enable_grad():
                return gate(Swish.apply(x))

    graph = trace(Net(), X)
    found = operators(graph)
    assert found[found.index("conv2d") :] == ["conv2d", "sigmoid", "mul", "sigmoid", "mul"]


def test_recurrent_layers():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(8, 6, batch_first=True)

        def forward(self, x):
            return self.lstm(x.flatten(1, 2))[0]

    graph = trace(Net(), X)
    (lstm,) = named(graph, "lstm")
    read = {graph.tensors[n.name] for n in lstm.args[2]}
    assert read == {f"lstm.{k}_{p}_l0" for k in ("weight", "bias") for p in ("ih", "hh")}


class Keeping(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("seen", torch.zeros(4))
        self.calls = 0

    def forward(self, x):
        self.last = self.conv(x)
        self.seen = self.seen + self.last.mean((0, 2, 3))
        self.calls += 1
        return self.last


def test_nothing_stays_in_the_model():
    net = Keeping()
    before = copy.deepcopy(net.state_dict())
    trace(net, X)
    assert not hasattr(net, "last")
    assert net.calls == 0
    assert net.training
    assert not net._forward_hooks
    assert not net.conv._forward_pre_hooks
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert type(net.seen) is torch.Tensor


def test_nothing_stays_after_a_failure():
    net = Keeping()
    with pytest.raises(TraceError, match="channels"):
        trace(net, torch.zeros(1, 5, 8, 8))
    assert not net._forward_hooks
    assert "forward" not in net.__dict__


@pytest.mark.parametrize("legacy", [True, False])
def test_weight_norm(legacy):
    norm = torch.nn.utils.weight_norm if legacy else nn.utils.parametrizations.weight_norm
    net = norm(nn.Conv2d(3, 4, 3))
    trace(net, X)
    net(X).sum().backward()  # the weight is a real tensor again
    assert all(p.grad is not None for p in net.parameters())


class ByValue(nn.Module):
    def forward(self, x):
        return x[x > 0]


class ByNumber(nn.Module):
    def forward(self, x):
        return x * float(x.mean())


@pytest.mark.parametrize(("kind", "line"), [(ByValue, "x[x > 0]"), (ByNumber, "float(x.mean())")])
def test_what_depends_on_values_is_refused(kind, line):
    with pytest.raises(TraceError) as caught:
        trace(kind(), X)
    message = str(caught.value)
    assert f"{line_of(kind, line)} in forward" in message
    assert "depends on the values of a tensor" in message
    assert "\n" not in message


class Result:
    def __init__(self, x):
        self.x = x


class Opaque(nn.Module):
    def forward(self, x):
        return Result(x)


def test_a_result_whose_tensors_cannot_be_found():
    with pytest.raises(TraceError, match=r"trace Opaque.*it returns a Result, whose"):
        trace(Opaque(), X)
    with pytest.raises(TraceError, match="it takes a Result"):
        trace(Opaque(), (Result(X),))
