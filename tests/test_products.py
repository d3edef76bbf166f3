"""The fastest of several ways, and products that any of them computes alike."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from ceval_suite.backends import products


def test_the_fastest_way_is_chosen_and_those_that_fail_are_out() -> None:
    def slow(x: int) -> int:
        time.sleep(0.02)
        return x

    def broken(x: int) -> int:
        raise RuntimeError("no such kernel")

    ways = products.Fastest({"slow": slow, "broken": broken, "quick": lambda x: x + 0})
    assert (ways(7), ways.name, ways.chosen) == (7, "slow", False)
    ways.choose(7)
    assert (ways(7), ways.name, ways.chosen) == (7, "quick", True)
    assert list(ways.ways) == ["slow", "quick"]


def test_what_the_first_way_cannot_compute_is_an_error() -> None:
    def broken() -> int:
        raise RuntimeError("wrong shapes")

    with pytest.raises(RuntimeError, match="wrong shapes"):
        products.Fastest({"first": broken, "second": int}).choose()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_each_kernel_computes_the_same_product_however_its_input_lies(
    dtype: torch.dtype, bias: bool
) -> None:
    torch.manual_seed(0)
    whole = torch.randn(3, 50, 40).to(dtype)
    inputs = [whole, whole[:, ::2], whole.transpose(0, 1), whole[..., 10:]]
    for x in inputs:
        weight = torch.randn(24, 80).to(dtype)[:, : x.shape[-1]]  # a slice: neither way round
        for w in (weight, weight.contiguous(), weight.T.contiguous().T):
            b = torch.randn(24).to(dtype) if bias else None
            exact = x.double() @ w.double().T + (0 if b is None else b.double())
            within = 1e-4 if dtype == torch.float32 else 0.2
            for way in products.kernel("cpu", dtype).ways.values():
                found = way(x, w, b)
                assert found.dtype == dtype
                torch.testing.assert_close(found.double(), exact, atol=within, rtol=0.01)


@pytest.fixture
def three() -> Any:
    class Quantised(torch.nn.Linear):
        pass

    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 8), Quantised(8, 8), torch.nn.Linear(8, 8))


def test_linear_layers_are_fast_inside_and_untouched_outside(
    three: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[torch.Tensor] = []

    def counted(x: torch.Tensor, weight: torch.Tensor, bias: Any = None) -> torch.Tensor:
        calls.append(weight)
        return torch.nn.functional.linear(x, weight, bias)

    monkeypatch.setattr(products, "linear", counted)
    x = torch.randn(2, 8)
    usual = three(x)
    linears = products.Linears(three, room=0)
    with linears.fast():
        torch.testing.assert_close(three(x), usual)
    assert [id(w) for w in calls] == [id(three[0].weight), id(three[2].weight)]
    assert all("forward" not in vars(m) for m in three)
    with pytest.raises(ZeroDivisionError), linears.fast():
        raise ZeroDivisionError
    assert all("forward" not in vars(m) for m in three)
    calls.clear()
    with products.Linears(three, apart=three[2], room=0).fast():
        torch.testing.assert_close(three(x), usual)
    assert [id(w) for w in calls] == [id(three[0].weight)]


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copied_weights_follow_the_model_and_keep_to_their_room(
    three: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[int] = []
    real = products._packed
    try:
        real(torch.zeros(8, 8, dtype=dtype))
    except RuntimeError as e:  # bfloat16 asks for AVX-512 or better
        pytest.skip(f"this CPU has no such order of weights: {e}")

    def counted(weight: torch.Tensor) -> torch.Tensor:
        copies.append(id(weight))
        return real(weight)

    monkeypatch.setattr(products, "packing_pays", lambda _: True)
    monkeypatch.setattr(products, "_packed", counted)
    model = three.to(dtype)
    x = torch.randn(1, 5, 8).to(dtype)
    size = 2 * 64 * dtype.itemsize
    small, large = products.Linears(model, room=size - 1), products.Linears(model, room=size)
    with torch.no_grad(), small.fast():
        model(x)
    assert copies == []
    with torch.no_grad():
        for _ in range(2):
            with large.fast():
                found = model(x)
            torch.testing.assert_close(found, model(x), atol=1e-2, rtol=1e-2)
        assert len(copies) == 2
        model[0].weight.mul_(3)  # an optimiser's step
        with large.fast():
            found = model(x)
        torch.testing.assert_close(found, model(x), atol=1e-2, rtol=1e-2)
    assert len(copies) == 3
