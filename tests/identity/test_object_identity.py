"""The identity of Python objects: equal content, equal digest, in every process; any change that can change a result, another one."""

from __future__ import annotations

import functools
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fl_sim.object_identity import UnidentifiedError, object_digest
from fl_sim.registry import load_outside, offer


def define(source: str, name: str = "f", module: str = "users_module", **variables: Any) -> Any:
    """What a source defines, in a module of the user's that has these variables besides."""
    place = ModuleType(module)
    vars(place).update(variables)
    exec(textwrap.dedent(source), place.__dict__)
    return getattr(place, name)


def closing_over(value: Any) -> Callable[[], Any]:
    return lambda: value


class Scaled:
    def __init__(self, factor: Any) -> None:
        self.factor = factor

    def act(self, x: Any) -> Any:
        return self.factor * x


class Slotted:
    __slots__ = ("factor",)

    def __init__(self, factor: float) -> None:
        self.factor = factor


class Numbers(list[int]):
    pass


def power(x: float, *, k: int = 2) -> float:
    return x**k


def with_default(k: Any) -> Callable[..., Any]:
    def f(x: Any = k, *, y: Any = k) -> Any:
        return x, y

    return f


LONG = torch.arange(5000.0)
CHANGED = torch.cat([LONG[:2500], torch.tensor([-1.0]), LONG[2501:]])
BODY = "def f(x):\n    return {}\n"
HELPER = "def helper(x):\n    return x {} 1\ndef f(x):\n    return helper(x)\n"
CLASS = "class C:\n    k = {}\n    def act(self):\n        return {}\ndef f(x):\n    return C().act()\n"
BASES = "class A:\n    def act(self):\n        return {}\nclass f(A):\n    pass\n"
NESTED = "def f(x):\n    def g():\n        return {}\n    return g\n"


@pytest.mark.parametrize(
    "versions",
    [
        [define(BODY.format("x + 1")), define(BODY.format("x - 1")), define(BODY.format("x + 2")), define(BODY.format("x + 1.0"))],
        [define(BODY.format("abs(x)")), define(BODY.format("len(x)"))],
        [define(BODY.format("A * x"), A=1), define(BODY.format("A * x"), A=2)],
        [define(BODY.format("A['k'] * x"), A={"k": 1}), define(BODY.format("A['k'] * x"), A={"k": 2})],
        [define(BODY.format("A * x"), A=LONG), define(BODY.format("A * x"), A=CHANGED)],
        [define(HELPER.format("+")), define(HELPER.format("-"))],
        [define(CLASS.format(1, 1)), define(CLASS.format(2, 1)), define(CLASS.format(1, 2))],
        [define(BASES.format(1)), define(BASES.format(2))],
        [define(NESTED.format(1)), define(NESTED.format(2)), define(NESTED.format("A"), A=1), define(NESTED.format("A"), A=2)],
        [functools.partial(power, k=1), functools.partial(power, k=2), functools.partial(power, 1), power],
        [with_default(1), with_default(2), with_default(LONG), with_default(CHANGED)],
        [Scaled(1).act, Scaled(2).act, Scaled(LONG).act, Scaled(CHANGED).act],
        [Scaled(1), Scaled(2), Scaled([1, [2]]), Scaled([[1], 2]), Scaled({"a": 1}), Scaled({"a": "1"})],
        [Slotted(1.0), Slotted(2.0)],
        [Numbers([1]), Numbers([2])],
        [closing_over(value) for value in (1, 2, LONG, CHANGED, LONG.numpy(), CHANGED.numpy(), LONG[::2], LONG.bool(), nn.Linear(2, 2))],
        [closing_over(np.random.default_rng(seed)) for seed in (1, 2)],
        [closing_over(torch.Generator().manual_seed(seed)) for seed in (1, 2)],
        [closing_over(np.array([1, "a"], dtype=object)), closing_over(np.array([2, "a"], dtype=object))],
        [torch.no_grad()(closing_over(1)), torch.no_grad()(closing_over(2)), torch.enable_grad()(closing_over(2))],
        [closing_over((power, closing_over, power)), closing_over((power, power, closing_over))],
        [closing_over({1, 2}), closing_over({1, 3})],
        [functools.lru_cache(closing_over(1)), functools.lru_cache(closing_over(2))],
    ],
)
def test_every_change_gives_another_digest(versions: Sequence[Any]) -> None:
    digests = [object_digest(version) for version in versions]
    assert len(set(digests)) == len(versions)
    assert digests == [object_digest(version) for version in versions]


def test_what_changes_nothing_gives_the_same_digest() -> None:
    """Another place in the file, a variable that is not used, equal contents made twice."""
    assert object_digest(define(BODY.format("x + 1"))) == object_digest(define("\n\n# a comment\n" + BODY.format("x + 1"), unused=3))
    assert object_digest(define(CLASS.format(1, 1))) == object_digest(define(CLASS.format(1, 1)))
    for value in ([1, {"a": LONG}], {3, 1, 2}, np.arange(3), nn.Linear(2, 2).eval().zero_grad, threading.Lock()):
        assert object_digest(closing_over(value)) == object_digest(closing_over(value))
    assert object_digest(closing_over(LONG.clone())) == object_digest(closing_over(LONG))


def test_a_changed_variable_or_a_redefined_helper_is_seen() -> None:
    """As in a notebook: the function is the same object, what it uses changes."""
    f = define(HELPER.format("+"))
    before = object_digest(f)
    f.__globals__["helper"] = define(HELPER.format("-"), "helper")
    assert object_digest(f) != before
    scaled = Scaled([1, 2])
    before = object_digest(scaled.act)
    scaled.factor.append(3)
    assert object_digest(scaled.act) != before


def test_what_a_users_module_defines_counts_and_what_is_installed_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "users_helper.py").write_text("K = 1\nUNUSED = 1\ndef times(x):\n    return K * x\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    helper = __import__("users_helper")
    f = define(BODY.format("users_helper.times(np.abs(x))"), users_helper=helper, np=np)
    before = object_digest(f)
    helper.UNUSED = 2
    assert object_digest(f) == before
    helper.K = 2
    assert object_digest(f) != before
    monkeypatch.delitem(sys.modules, "users_helper")


@pytest.mark.slow
def test_the_digest_is_the_same_in_another_process() -> None:
    """Sets have another order there, addresses are others."""
    source = """
        import torch
        K = {"b", "a", "c", "d"}
        class C:
            def __init__(self, t):
                self.t = t
            def act(self, x):
                return x in K or x in {"x", "y", "z"} or len(frozenset(("p", "q"))) or self.t
        f = C(torch.arange(9.0)).act
    """
    code = f"import textwrap\nexec(textwrap.dedent({source!r}))\nfrom fl_sim.object_identity import object_digest\nprint(object_digest(f))"
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True, env={"PYTHONHASHSEED": seed})
        for seed in ("1", "2")
    ]
    assert runs[0].stdout == runs[1].stdout


def numbers() -> Iterator[int]:
    yield 1


def endless() -> Any:
    nested: Any = 1
    for _ in range(100_000):
        nested = [nested]
    return nested


@pytest.mark.parametrize("make", [numbers, lambda: sys.__stdout__, endless], ids=["generator", "file", "nested"])
def test_what_cannot_be_read_gets_a_new_name_each_time_and_a_warning(make: Callable[[], Any]) -> None:
    f = closing_over(make())
    with pytest.raises(UnidentifiedError):
        object_digest(f)
    with pytest.warns(UserWarning, match=r"cannot be identified .*: each call makes a new run, and none is opened or continued"):
        names = {offer(f), offer(f)}
    assert len(names) == 2
    assert all(load_outside(name) is f for name in names)
