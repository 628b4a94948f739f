"""Keys that are set and that nothing reads: the numbers of such a run are those of a run without them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fl_sim.config.checks import BACKDOORS
from fl_sim.config.keys import Config
from fl_sim.config.resolve import default_flat, to_flat

Readers = tuple[str, Callable[[Config], bool]]  # in words, and whether they are among a configuration's things


def _attack(*names: str) -> Readers:
    """Read by these of our attacks; perhaps by one from outside, or by an objective from outside."""
    return " and ".join(names), lambda config: config.attack.name in names or ":" in config.attack.name + config.attack.objective


def _accumulative(words: str, reads: Callable[[Config], bool]) -> Readers:
    """Read by the accumulative attack under a condition."""
    _, attacks = _attack("accumulative")
    return f"accumulative with {words}", lambda config: attacks(config) and (":" in config.attack.name or reads(config))


def _strategy(*names: str) -> Readers:
    return ", ".join(names), lambda config: config.strategy.name in names


def _cleaning(*names: str) -> Readers:
    """Read by these of our cleanings; perhaps by one from outside."""
    return ", ".join(names), lambda config: config.cleaning.name in names or ":" in config.cleaning.name


FILTERS = ("filter-kd", "filter-lid", "filter-gda", "filter-gmm")
DGC_KEYS = ("scope", "action", "guard", "divergence", "reference", "rise", "lag", "margin", "drift", "small-bound",
            "probation")  # fmt: skip
WITHOUT_RATE = ("none", "accumulative", "trigger-only", "label-flip", "gaussian", "sign-flip", "ipm", "alie", "mimic", "min-max", "min-sum",
                "moles", "fang-krum", "fang-trim", "optimal-alie", "optimal-ipm", "inf", "mpaf", "poisonedfl", "free-rider",
                "random-weights")  # fmt: skip
ALPHA = ("dirichlet", "dirichlet-per-class", "quantity-skew")
# Certain cases only: a key that is not here may still have no effect.
READERS: dict[str, Readers] = {
    "attack.tau": _attack("gaussian", "ipm", "alie", "mpaf", "poisonedfl", "free-rider", "random-weights"),
    "attack.perturbation": _attack("min-max", "min-sum"),
    **{f"attack.{key}": _attack("accumulative") for key in ("objective", "scaling", "stealth-gamma", "keep-honest", "discrepancy-weight")},
    "attack.rho": _accumulative("attack.scaling = 'relative'", lambda config: config.attack.scaling == "relative"),
    "attack.floor": _accumulative("attack.scaling = 'relative'", lambda config: config.attack.scaling == "relative"),
    "attack.lambda": _accumulative("attack.scaling = 'lambda'", lambda config: config.attack.scaling == "lambda"),
    "attack.fire-from": _accumulative("attack.fire = 'rehearsed'", lambda config: config.attack.fire == "rehearsed"),
    **{f"attack.{key}": _attack(*BACKDOORS) for key in ("poison-share", "boost", "project-norm", "mask-share")},
    **{f"attack.{key}": _attack("edge-case") for key in ("edge-data", "edge-root", "edge-class")},
    **{f"attack.{key}": _attack("accumulative", *BACKDOORS) for key in ("class", "to-class")},
    **{f"attack.{key}": _attack("accumulative") for key in ("retain", "rise-cap", "kl-cap", "provoke")},
    "attack.cap-weight": _accumulative("a cap", lambda config: max(config.attack.rise_cap, config.attack.kl_cap) > 0.0),
    "attack.step": _accumulative("attack.scaling = 'exact'", lambda config: config.attack.scaling == "exact"),
    **{
        f"attack.{key}": _accumulative("attack.objective = 'erosion'", lambda config: config.attack.objective == "erosion")
        for key in ("margin", "surrogate")
    },
    "attack.push-share": ("attack.delivery = 'alternating'", lambda config: config.attack.delivery == "alternating"),
    "attack.ramp-width": _accumulative("attack.surrogate = 'ramp'", lambda config: config.attack.surrogate == "ramp"),
    "attack.discrepancy-lag": _accumulative("attack.discrepancy-weight > 0", lambda config: config.attack.discrepancy_weight > 0.0),
    "data.dirichlet-alpha": (f"data.partition = {', '.join(ALPHA)}", lambda config: config.data.partition in ALPHA),
    "data.shards-per-client": ("data.partition = shards", lambda config: config.data.partition == "shards"),
    "client.learning-rate": (
        "client.local-steps > 1, strategies of Flower, and backdoors",
        lambda config: config.client.local_steps > 1 or _may_be_flowers(config.strategy.name) or config.attack.name not in WITHOUT_RATE,
    ),
    "strategy.norm": _strategy("clip-before", "clip-after", "dgc"),
    "strategy.bound": _strategy("clip-before", "clip-after", "dgc"),
    **{f"strategy.{key}": _strategy("dgc") for key in DGC_KEYS},
    "strategy.assumed-malicious": (
        "rules that are told a number of malicious clients (docs/defences.md)",
        lambda config: config.strategy.name not in ("mean", "clip-before", "clip-after", "dgc", "dgc-2"),
    ),
    **{f"cleaning.{key}": _cleaning("dsc") for key in ("unit", "p0", "growth", "calibration-rounds", "history")},
    "cleaning.shrunk": ("every cleaning but none", lambda config: config.cleaning.name != "none"),
    "cleaning.fpr": _cleaning("dsc", *FILTERS),
    **{f"cleaning.{key}": _cleaning("dsc", "correct-all", "adversarial") for key in ("epsilon", "steps", "step")},
    "strategy.calibration-rounds": _strategy("dgc", "dgc-2"),
    **{f"strategy.{key}": _strategy("dgc-2") for key in ("bound-quantile", "persistence-memory", "most-lost", "most-lost-class")},
}


def _may_be_flowers(name: str) -> bool:
    return not (name in ("mean", "clip-before", "clip-after", "dgc", "dgc-2") or name.startswith("byzfl."))


def idle_key_notes(configs: Sequence[Config]) -> list[str]:
    """A sentence for each key that differs from its default and that nothing reads in any of the configurations."""
    flats, notes = [to_flat(config) for config in configs], list[str]()
    for key, (words, read) in READERS.items():
        values = {flat[key]: None for flat in flats if flat[key] != default_flat()[key]}
        if values and not any(map(read, configs)):
            notes.append(f"{key} = {', '.join(map(repr, values))} has no effect here: it is read by {words}")
    return notes
