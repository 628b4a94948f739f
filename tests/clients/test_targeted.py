"""Accumulation against a class or a pair: gradients, the erosion objective, exact steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clients.accumulative.appraisal import Appraisal, first_look
from clients.accumulative.attack import accumulative
from clients.accumulative.erosion import SURROGATES, over_caps, surrogate_loss
from clients.accumulative.objectives import OBJECTIVES, direction
from clients.accumulative.targeted import exact_step, first_log_probs, retained, victims, wanted
from clients.accumulative.trigger import rehearse, trigger_vector
from clients.knowledge import Knowledge
from fl_sim.config.keys import Config
from fl_sim.config.resolve import ConfigError
from fl_sim.data.batches import Batch
from fl_sim.training.clipping import Clip, norms
from fl_sim.wire.messages import AttackState
from tests.support.differences import central_differences
from tests.support.runs import lines, run
from tests.support.small_knowledge import knowing, knowledge_of

TARGETS: list[dict[str, Any]] = [{"class_": 1}, {"class_": 1, "to_class": 2}, {"to_class": 0}, {}]


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_direction_is_the_central_difference(name: str, target: dict[str, Any]) -> None:
    k = knowledge_of(retain=0.7, **target)
    trigger = trigger_vector(k, None)
    first = first_log_probs(dataclasses.replace(k, theta=k.theta + 0.3), AttackState())
    h = direction(OBJECTIVES[name], k, trigger, None, first)[0]
    for j, slope in central_differences(
        lambda theta: OBJECTIVES[name](k, theta, trigger).value + retained(k, logits_of(k, theta), first), k.theta
    ):
        assert float(h[j]) == pytest.approx(slope, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("caps", [{"rise_cap": 0.1}, {"kl_cap": 0.01}, {"rise_cap": 0.1, "kl_cap": 0.01}], ids=str)
@pytest.mark.parametrize("surrogate", list(SURROGATES))
def test_the_direction_of_each_surrogate_with_caps(surrogate: str, caps: dict[str, Any]) -> None:
    k = knowledge_of(objective="erosion", class_=1, surrogate=surrogate, margin=0.5, ramp_width=2.0, cap_weight=0.3, **caps)
    first = first_of(k, shift=0.3)
    assert float(over_caps(k, logits_of(k, k.theta), first)) > 0.0
    h = direction(OBJECTIVES["erosion"], k, torch.zeros_like(k.theta), None, first)[0]

    def value(theta: torch.Tensor) -> torch.Tensor:
        return surrogate_loss(k, logits_of(k, theta)) + over_caps(k, logits_of(k, theta), first)

    for j, slope in central_differences(value, k.theta):
        assert float(h[j]) == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_who_is_attacked_and_what_is_wanted() -> None:
    labels = torch.tensor([0, 1, 2, 1])
    batch = Batch(torch.arange(24.0, dtype=torch.float64).view(4, 1, 2, 3), labels)
    assert victims(knowledge_of(), batch) is batch
    assert victims(knowledge_of(class_=1), batch).labels.tolist() == [1, 1]
    assert victims(knowledge_of(to_class=1), batch).labels.tolist() == [0, 2], "not the target's own"
    pair = knowledge_of(class_=2, to_class=0)
    assert torch.equal(victims(pair, batch).inputs, batch.inputs[[2]])
    assert wanted(pair, victims(pair, batch)).labels.tolist() == [0]
    assert wanted(knowledge_of(class_=2), batch) is batch
    without = Batch(batch.inputs[:1], labels[:1])
    k = knowledge_of(class_=1)
    assert torch.equal(victims(k, without).labels, k.validation.labels[k.validation.labels == 1]), "S_val stands in"
    empty = dataclasses.replace(k, validation=without)
    with pytest.raises(ValueError, match=r"to hold some of attack.class = 1, got none"):
        victims(empty, without)


@pytest.mark.parametrize("surrogate", list(SURROGATES))
@pytest.mark.parametrize("target", [{"class_": 1}, {"class_": 1, "to_class": 2}], ids=str)
def test_the_surrogates_by_a_loop(target: dict[str, Any], surrogate: str) -> None:
    k = knowledge_of(margin=0.8, ramp_width=1.5, surrogate=surrogate, **target)
    inputs, labels = k.validation_draw
    logits = k.model.logits(k.theta, inputs).numpy()
    total = 0.0
    for row, label in zip(logits, labels.tolist(), strict=True):
        if label != 1:
            continue
        log_p = row - np.log(np.sum(np.exp(row)))
        rival, lead = ("to_class" in target, row[1] - (row[2] if "to_class" in target else max(row[0], row[2])))
        losses = {
            "hinge": max(0.0, lead + 0.8),
            "ramp": min(1.0, max(0.0, lead + 0.8) / 1.5),
            "cross-entropy": -log_p[2] if rival else log_p[1],
        }
        total += losses[surrogate]
    assert float(surrogate_loss(k, logits_of(k, k.theta))) == pytest.approx(total / len(labels))
    assert total != 0.0


def logits_of(k: Knowledge, theta: torch.Tensor) -> torch.Tensor:
    """What the model theta says of the draw."""
    return k.model.logits(theta, k.validation_draw.inputs)


def first_of(k: Knowledge, shift: float) -> dict[str, torch.Tensor]:
    """What the model theta + shift says of S_val, as the coalition keeps it; its losses 1 nat lower than they are."""
    earlier = dataclasses.replace(k, theta=k.theta + shift)
    start = first_look(earlier, AttackState()) | first_log_probs(earlier, AttackState())
    return start | {"losses": start["losses"] - 1.0}


def test_what_is_over_the_caps_by_a_loop() -> None:
    k = knowledge_of(rise_cap=0.01, kl_cap=0.02, cap_weight=3.0)
    first = first_of(k, shift=0.3)
    rises, divergences = list[float](), list[float]()
    for i in k.drawn.tolist():
        now = F.log_softmax(k.model.logits(k.theta, k.validation.inputs[i : i + 1]), dim=1)[0].numpy()
        then = F.log_softmax(k.model.logits(k.theta + 0.3, k.validation.inputs[i : i + 1]), dim=1)[0].numpy()
        label = int(k.validation.labels[i])
        rises.append(then[label] - now[label] + 1.0)
        divergences.append(float(np.sum(np.exp(then) * (then - now))))
    expected = 3.0 * (max(0.0, np.mean(rises) - 0.01) + max(0.0, np.mean(divergences) - 0.02))
    assert float(over_caps(k, logits_of(k, k.theta), first)) == pytest.approx(expected)
    assert expected > 0.0
    below = dataclasses.replace(k, settings=k.settings.model_copy(update={"rise_cap": 1.1}))
    assert float(over_caps(below, logits_of(k, k.theta + 0.3), first)) == 0.0, "below the caps nothing is added"


def test_a_guard_is_provoked_only_while_no_clip_is_published() -> None:
    k = knowledge_of(objective="erosion", scaling="exact", class_=1, provoke=True, stealth_gamma=float("inf"))
    provoking = accumulative(knowing(k), AttackState())
    assert provoking.metrics["provoked"] == 1.0
    assert provoking.metrics["fired"] == 0.0, "the trigger of the schedule is still to come"
    torch.testing.assert_close(k.combined(provoking.updates), trigger_vector(k, None))
    clipped = accumulative(knowing(k, before=Clip("l2", 0.5)), AttackState())
    assert "provoked" not in clipped.metrics
    torch.testing.assert_close(norms(clipped.updates), torch.full((3,), 0.5, dtype=torch.float64))
    control = accumulative(dataclasses.replace(knowing(k), accumulate=False), AttackState())
    assert torch.equal(control.updates, k.updates)


def test_without_a_trigger_to_come_erosion_computes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    k = dataclasses.replace(knowledge_of(objective="erosion", scaling="exact", class_=1, stealth_gamma=9.0), may_fire=False)
    expected = accumulative(dataclasses.replace(k, may_fire=True), AttackState())
    monkeypatch.delattr("clients.accumulative.attack.trigger_vector")
    assert torch.equal(accumulative(k, AttackState()).updates, expected.updates)


def test_what_is_retained_by_a_loop() -> None:
    k = knowledge_of(class_=1, retain=2.0)
    first = first_log_probs(dataclasses.replace(k, theta=k.theta + 0.3), AttackState())
    now = F.log_softmax(k.model.logits(k.theta, k.validation.inputs), dim=1).numpy()
    others = [int(i) for i in k.drawn if int(k.validation.labels[i]) != 1]
    told = first["first_log_probs"].numpy()
    values = [np.sum(np.exp(told[i]) * (told[i] - now[i])) for i in others]
    assert float(retained(k, logits_of(k, k.theta), first)) == pytest.approx(2.0 * np.mean(values))
    assert float(retained(k, logits_of(k, k.theta), {"first_log_probs": torch.from_numpy(now)})) == pytest.approx(0.0, abs=1e-12)
    everyone = knowledge_of(retain=2.0)
    assert float(retained(everyone, logits_of(everyone, everyone.theta), first)) == 0.0, "all are attacked: nothing is to stay"
    assert first_log_probs(knowledge_of(), AttackState()) == {}
    state = AttackState(first_log_probs(k, AttackState()))
    later = dataclasses.replace(k, theta=k.theta + 1.0)
    assert torch.equal(first_log_probs(later, state)["first_log_probs"], state.arrays["first_log_probs"])


@pytest.mark.parametrize("target", [{"class_": 1}, {"class_": 1, "to_class": 2}, {"to_class": 2}], ids=str)
def test_a_small_trigger_does_to_the_victims_what_is_wanted(target: dict[str, Any]) -> None:
    k = knowledge_of(norm_bound=0.01, **target)
    batch = wanted(k, victims(k, k.trigger_batch))
    before, after = k.model.loss(k.theta, *batch), k.model.loss(k.theta - 0.1 * trigger_vector(k, None), *batch)
    assert (after < before) == ("to_class" in target)
    assert float(trigger_vector(k, None).norm()) == pytest.approx(0.01)


def test_a_rehearsal_looks_at_the_class() -> None:
    k = knowledge_of(class_=1)
    trigger = trigger_vector(k, None)
    expected = k.model.score(k.theta - 0.1 * trigger, *victims(k, k.validation_draw))[0]
    assert rehearse(k, trigger, Appraisal(0.0, 0.0, 0.0, 100.0), None).after == expected
    assert OBJECTIVES["lookahead"](k, k.theta, trigger).rehearsed == pytest.approx(expected)


def served(k: Knowledge, updates: torch.Tensor, velocity: torch.Tensor) -> torch.Tensor:
    """The server's step."""
    return k.theta - k.server_lr * (k.momentum * velocity + k.combined(updates))


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_exact_steps_move_the_model_along_h_alone(scale: float) -> None:
    k = dataclasses.replace(knowledge_of(m=1, step=0.3, scaling="exact"), momentum=0.9)
    generator = torch.Generator().manual_seed(5)
    h, earlier = torch.randn(2, len(k.theta), generator=generator, dtype=torch.float64)
    velocity = (earlier - k.theta) / k.server_lr
    state = AttackState({"theta": earlier}, {"round": 0.0})
    moved = served(k, exact_step(k, h, scale, state), velocity)
    torch.testing.assert_close(moved, k.theta - k.server_lr * scale * 0.3 * h / h.norm())
    first = served(k, exact_step(k, h, scale, AttackState()), torch.zeros_like(h))
    torch.testing.assert_close(first, moved)
    gap = AttackState({"theta": earlier}, {"round": -3.0})
    torch.testing.assert_close(exact_step(k, h, scale, gap), exact_step(k, h, scale, AttackState()))  # an old model tells no momentum


@pytest.mark.parametrize("bound", [Clip("l2", 0.5), Clip("linf", 0.5)], ids=str)
def test_under_a_clip_every_member_is_at_the_bound_along_h(bound: Clip) -> None:
    k = knowing(knowledge_of(step=0.3, scaling="exact"), before=bound)
    h = torch.linspace(-1.0, 2.0, len(k.theta), dtype=torch.float64)
    sent = exact_step(k, h, 1.0, AttackState())
    torch.testing.assert_close(norms(sent, bound.norm), torch.full((3,), 0.5, dtype=torch.float64))
    if bound.norm == "l2":
        torch.testing.assert_close(sent[1], 0.5 * h / h.norm())
    else:
        assert bool((sent * h >= 0.0).all())


def test_two_rounds_of_the_attack_pass_on_the_model(configure: Callable[..., Config]) -> None:
    k = dataclasses.replace(
        knowledge_of(m=1, objective="erosion", scaling="exact", step=0.2, class_=1, margin=9.0, retain=1.0, stealth_gamma=9.0), momentum=0.9
    )
    one = accumulative(k, AttackState())
    velocity = k.combined(one.updates)
    moved = dataclasses.replace(k, theta=served(k, one.updates, torch.zeros_like(velocity)), round=2)
    two = accumulative(moved, one.state)
    torch.testing.assert_close((k.theta - moved.theta).norm(), torch.tensor(0.2 * k.server_lr * one.metrics["scale"], dtype=torch.float64))
    step = moved.theta - served(moved, two.updates, velocity)
    assert float(step.norm()) == pytest.approx(0.2 * k.server_lr * two.metrics["scale"])


def test_a_class_that_is_lost_gives_no_direction() -> None:
    k = knowledge_of(objective="erosion", scaling="exact", class_=1, margin=0.0, retain=1.0)
    lost = dataclasses.replace(k, validation=Batch(k.validation.inputs, torch.ones_like(k.validation.labels)))
    wrong = lost.model.logits(lost.theta, lost.validation.inputs).argmax(dim=1) != 1
    lost = dataclasses.replace(lost, drawn=torch.nonzero(wrong).flatten())
    action = accumulative(lost, AttackState())
    assert action.reason == "the gradient of attack.objective = 'erosion' is zero"
    assert torch.equal(action.updates, k.updates)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("step", 0.0),
        ("margin", -1.0),
        ("retain", -0.5),
        ("scaling", "much"),
        ("surrogate", "zero-one"),
        ("ramp_width", 0.0),
        ("kl_cap", -0.1),
    ],
)
def test_bad_values(configure: Callable[..., Config], key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"attack.{key.replace('_', '-')}"):
        configure(**{f"attack__{key}": value})


def test_a_coalition_without_the_rule_cannot_provoke(configure: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=r"expected attack.knowledge = 'rule' or 'omniscient' with attack.provoke"):
        configure(attack__provoke=True, attack__knowledge="coalition")


@pytest.mark.slow
def test_erosion_takes_a_class_away_and_little_else(configure: Callable[..., Config], tmp_path: Path) -> None:
    keys: dict[str, Any] = {"attack__objective": "erosion", "attack__scaling": "exact", "attack__class": 1, "attack__retain": 1.0}
    keys |= {
        "schedule__triggers": 0,
        "schedule__accumulate_rounds": 8,
        "schedule__burn_in_epochs": 20,
        "attack__stealth_gamma": float("inf"),
    }
    keys |= {"data__num_clients": 50, "attack__malicious_fraction": 0.02, "strategy__name": "mean", "model__name": "cnn"}
    _, folder = run(configure(**keys, twin=False, control=False), tmp_path)
    eroded = lines(folder)[7]
    assert eroded["by_class"][1] < 50.0
    assert eroded["accuracy"] > 85.0
