"""Settings of a call of the pipeline: how to reconstruct, whatever the measurement.

Each setting is declared once, with its default, the rule that its values obey and a help text. The call checks its
arguments by these rules, the commands make their options of them, and records are written from them. This module loads
nothing heavy, so that a parser can use it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any

from ..guidance.targets import TARGETS
from ..mri.methods import CONSISTENCY, FINAL_CONSISTENCY, NOISE_AWARE_ITERATIONS

__all__ = ["CallSettings", "Rule", "check_settings", "one_of", "real_number", "setting", "whole_number"]


@dataclass(frozen=True)
class Rule:
    """Rule for the values of a setting.

    Attributes:
        expected: text that completes "must be".
        accepts: function that says whether a value obeys the rule.
        parse: function that makes a value of text, and raises `ValueError` where it cannot.
        choices: the only values there are; `None` where there is no such list.
    """

    expected: str
    accepts: Callable[[Any], bool]
    parse: Callable[[str], Any] = str
    choices: tuple[Any, ...] | None = None

    def check(self, name: str, value: Any, way_out: str = "") -> None:
        """Refuse a value that breaks the rule.

        Raises:
            ValueError: naming the argument, what was expected, what came, and the way out.
        """
        if not self.accepts(value):
            raise ValueError(f"`{name}` must be {self.expected}, got {value!r}{way_out}.")


def one_of(choices: tuple[Any, ...]) -> Rule:
    """Return the rule for a value out of a list."""
    return Rule(f"one of {choices}", lambda value: value in choices, choices=choices)


def whole_number(least: int, most: int | None = None) -> Rule:
    """Return the rule for a whole number in a range that includes its ends."""

    def accepts(value: Any) -> bool:
        is_whole = isinstance(value, Integral) and not isinstance(value, bool)
        return is_whole and value >= least and (most is None or value <= most)

    limits = f"of at least {least}" if most is None else f"from {least} to {most}"
    return Rule(f"a whole number {limits}", accepts, int)


def real_number(expected: str, is_in_range: Callable[[float], bool]) -> Rule:
    """Return the rule for a finite number in a range that the text `expected` describes."""

    def accepts(value: Any) -> bool:
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        return is_number and abs(value) < float("inf") and is_in_range(value)

    return Rule(expected, accepts, float)


def setting(
    default: Any,
    rule: Rule | None,
    text: str,
    group: str = "method",
    option: str = "",
    unset: str = "",
    way_out: str = "",
    several: bool = False,
) -> Any:
    """Declare a field of a dataclass of settings.

    Args:
        default: default value. `None` is allowed as a value only where it is the default.
        rule: rule for the values; `None` for a flag.
        text: help text of the option, without the default.
        group: group of options that a command shows it in, "method", "maps", "machine" or "data"; "" for no option.
        option: short name of the option; "" for the name of the field.
        unset: text that says what happens for the default `None`.
        way_out: text that ends the error message.
        several: whether the value is a tuple, each entry of which obeys the rule.
    """
    words = {"text": text, "group": group, "option": option, "unset": unset, "way_out": way_out}
    return field(default=default, metadata={"rule": rule, "several": several, **words})


def check_settings(settings: Any) -> None:
    """Check all fields of a dataclass of settings by their rules.

    Raises:
        ValueError: as `Rule.check`.
    """
    for entry in fields(settings):
        value, rule = getattr(settings, entry.name), entry.metadata["rule"]
        if rule is None or (value is None and entry.default is None):
            continue
        for part in value if entry.metadata["several"] else (value,):
            rule.check(entry.name, part, entry.metadata["way_out"])


_NOT_NEGATIVE = real_number("0 or larger", lambda value: value >= 0)
_POSITIVE = real_number("positive and finite", lambda value: value > 0)
# Arrays are checked later, by `check_measurement`, where the number of coils is known.
_NOISE = replace(_POSITIVE, accepts=lambda value: not isinstance(value, Real) or _POSITIVE.accepts(value))


@dataclass(frozen=True)
class CallSettings:
    """Settings that `SGRMRIPipeline.__call__` explains, checked when they are made.

    Raises:
        ValueError: a setting is out of range, or two do not go together; the message names the setting, what was
            expected, what came, and the way out.
    """

    target: str = setting(
        "both", one_of(tuple(TARGETS)), "bounds to reconstruct, or 'none' for a plain reconstruction"
    )
    num_inference_steps: int = setting(100, whole_number(1, 10_000), "number of reverse steps", option="steps")
    eta: float = setting(
        1.0,
        real_number("from 0 (deterministic) to 1 (as much noise as DDPM)", lambda value: 0 <= value <= 1),
        "share of fresh noise in each step, 0 (deterministic) to 1; for DDIM only",
    )
    guidance_strength: float | None = setting(
        None,
        _NOT_NEGATIVE,
        "strength b of paper Eq. 14 in each step",
        option="strength",
        unset="bounds as wide as by the checkpoint's strength in 100 steps",
        way_out="; the direction is set by `target`, and None gives the checkpoint's strength",
    )
    guidance_scale: float = setting(
        1.0, _NOT_NEGATIVE, "factor on the strength", group="", way_out="; 1 leaves the strength as it is"
    )
    consistency: str | None = setting(
        None,
        one_of(CONSISTENCY),
        "method by which each step meets the data: a number of iterations, or weighing the data by their noise",
        unset="the checkpoint's",
    )
    cg_iterations: int | None = setting(
        None, whole_number(0, 1000), "largest number of iterations in each step", unset="the checkpoint's"
    )
    noise_std: Any = setting(  # noqa: RUF009 - a number; in a call also an array
        None,
        _NOISE,
        "standard deviation of the real part of the noise, in the unit of the k-space",
        unset="1 where a noise scan made it so, else estimated from the outermost k-space",
        way_out=". Leave it out to have it estimated from the outermost k-space",
    )
    calibration_width: int | None = setting(
        None, whole_number(1), "largest side of the region that coil maps are estimated from", "maps", unset="24"
    )
    kernel_width: int | None = setting(
        None,
        whole_number(1),
        "side of the kernel that coil maps are estimated with",
        "maps",
        unset="2 to 6, by the region",
    )
    crop: float | None = setting(
        None,
        real_number("from 0 (maps everywhere) to below 1", lambda value: 0 <= value < 1),
        "eigenvalue below which estimated coil maps are zero",
        "maps",
        unset="0.8, or 0 where pixels with signal would be lost",
    )
    final_consistency: str = setting("replace", one_of(FINAL_CONSISTENCY), "method of the last step")
    num_samples: int = setting(
        1,
        whole_number(1, 10_000),
        "number of samples of each slice, for target 'none': of two or more, their mean and standard deviation",
        option="samples",
    )
    combine: str | None = setting(None, one_of(("mean",)), "what samples are combined to", group="")
    batch_size: int | None = setting(
        None,
        whole_number(1),
        "largest number of images in a network call; fewer need less memory",
        "machine",
        unset="no bound",
    )

    def __post_init__(self) -> None:
        """Check all settings."""
        check_settings(self)
        if self.combine is not None and self.num_samples < 2:
            raise ValueError(f"`combine` needs `num_samples` of 2 or more, got {self.num_samples}.")
        if self.num_samples > 1 and self.target != "none":
            raise ValueError(
                f"`num_samples` must be 1 for target={self.target!r}, got {self.num_samples}: branches of a slice "
                "share their noise. Use target='none' for independent samples, or repeat the call with another "
                "generator."
            )

    def with_defaults(self, config: Any) -> "CallSettings":
        """Fill in what a checkpoint decides: `consistency` and `cg_iterations`.

        Args:
            config: configuration `pipe.config` of the checkpoint.
        """
        consistency = config.consistency if self.consistency is None else self.consistency
        default = NOISE_AWARE_ITERATIONS if consistency == "noise_aware" else config.cg_iterations
        iterations = default if self.cg_iterations is None else self.cg_iterations
        return replace(self, consistency=consistency, cg_iterations=iterations)

    @property
    def sets_maps(self) -> bool:
        """Whether a setting of the estimation of coil maps is given."""
        return not (self.calibration_width is self.kernel_width is self.crop is None)

    def call_arguments(self) -> dict[str, Any]:
        """Return the arguments of `SGRMRIPipeline.__call__` that these settings stand for."""
        return {entry.name: getattr(self, entry.name) for entry in fields(CallSettings)}
