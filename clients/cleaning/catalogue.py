"""The table of cleanings. A new one is a function `(batch, context, **options) -> batch` and a line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from clients.cleaning.correction import adversarial, correct_all, dsc
from clients.cleaning.fitting import Fitting, detectors, discrepancy_threshold, earlier_model, train_denoiser, train_energy
from clients.cleaning.images import Context, Images
from clients.cleaning.outliers import filter_gda, filter_gmm, filter_kd, filter_lid
from clients.cleaning.purifiers import ddpm, ebm, jpeg, noise
from fl_sim.registry import Registry


def none(batch: Images, context: Context) -> Images:
    """Images stay as they are."""
    return batch


def nothing(task: Fitting) -> dict[str, Tensor]:
    """Nothing is fitted."""
    return {}


class Cleaning(NamedTuple):
    """What a name stands for: the cleaning; what it is fitted to before round 1; whether that takes public images (`data.public-size`); and
    whether a share is cleaned once and stored, instead of each batch in each round."""

    clean: Callable[..., Any]
    fit: Callable[[Fitting], dict[str, Tensor]] = nothing
    public: bool = False
    stored: bool = False


CLEANINGS: dict[str, Cleaning] = {
    "none": Cleaning(none),
    "dsc": Cleaning(dsc, discrepancy_threshold),
    "correct-all": Cleaning(correct_all),
    "adversarial": Cleaning(adversarial),
    "filter-kd": Cleaning(filter_kd, detectors["filter-kd"], public=True),
    "filter-lid": Cleaning(filter_lid, detectors["filter-lid"], public=True),
    "filter-gda": Cleaning(filter_gda, detectors["filter-gda"], public=True),
    "filter-gmm": Cleaning(filter_gmm, detectors["filter-gmm"], public=True),
    "jpeg": Cleaning(jpeg),
    "noise": Cleaning(noise),
    "ebm": Cleaning(ebm, train_energy, public=True, stored=True),
    "ddpm": Cleaning(ddpm, train_denoiser, public=True, stored=True),
}


def _options_taker(thing: Any) -> Any:
    return thing.clean if isinstance(thing, Cleaning) else thing


cleanings: Registry[Any] = Registry("cleaning", "cleaning.name", CLEANINGS, "fl_sim.cleanings", arguments=2, options_taker=_options_taker)


def cleaning_of(name: str) -> Cleaning:
    """The cleaning of a name. One from outside gets the earlier model. Raises KeyError, or OutsideError."""
    thing = cleanings.find(name)
    return thing if isinstance(thing, Cleaning) else Cleaning(thing, earlier_model)
