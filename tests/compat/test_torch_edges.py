"""Work that is done in several threads: in order, with the same numbers however many these are."""

import threading

import pytest
import torch

from nni_gconv import SecondOrderPruner, compat
from nni_gconv.training.zoo import create_model


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_order_and_each_thread_has_one_of_torchs(threads):
    begun = threading.Barrier(threads)

    def work(number):
        begun.wait(30)  # breaks where fewer run at a time
        return number, torch.get_num_threads()

    assert list(compat.side_by_side(work, range(6))) == [(n, 1) for n in range(6)]


def test_later_threads_are_as_before(threads):
    list(compat.side_by_side(str, range(2)))
    found = []
    later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert found == [threads] == [torch.get_num_threads()]


def test_what_fails_ends_the_rest(threads):
    done = []

    def work(number):
        done.append(number)
        raise ValueError(number)

    with pytest.raises(ValueError, match="0"):
        list(compat.side_by_side(work, range(100)))
    assert len(done) < 100
    assert torch.get_num_threads() == threads


def test_an_elimination_is_the_same_however_many_threads_there_are():
    before = torch.get_num_threads()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(64, 3, 16, 16, generator=generator)
    found = []
    try:
        for threads in (1, 2, 3):
            torch.manual_seed(0)
            model = create_model("resnet8").eval()
            pruner = SecondOrderPruner(
                model,
                [{"op_types": ["Conv2d"]}],
                budget={"macs": 0.5},
                dummy_input=images[:1],
                calibration=images,
            )
            torch.set_num_threads(threads)
            _, masks = pruner.compress()
            found.append({m: of["weight"] for m, of in masks.items()})
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(found[0][name], mask) for name, mask in other.items())
