"""The runtime's samplers and schedules by name, and the combinations that it cannot use.

The names are those of ``str_to_sample_method`` and ``str_to_scheduler`` in the version of
stable-diffusion.cpp that stable-diffusion-cpp-python 0.4.7 contains. "default" is not a schedule of
the runtime. It stands for the schedule that the runtime chooses for the model and the sampler.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from sdstream.core.similar import most_similar


class Sampler(NamedTuple):
    """A sampling method of the runtime.

    Attributes:
        title: Name for people.
        label: AUTOMATIC1111's name, which Xinference uses too.
        aliases: Other spellings: those of k-diffusion, which Fireworks uses too, and of diffusers.
        noisy: The sampler adds noise between the steps, and ``eta`` sets the amount. Other samplers
            ignore ``eta``.
    """

    title: str
    label: str
    aliases: tuple[str, ...] = ()
    noisy: bool = False


class Schedule(NamedTuple):
    """A noise schedule of the runtime.

    Attributes:
        title: Name for people.
        label: AUTOMATIC1111's name, or None.
        aliases: Other spellings.
    """

    title: str
    label: str | None
    aliases: tuple[str, ...] = ()


SAMPLERS: Final[Mapping[str, Sampler]] = {
    "euler": Sampler("Euler", "Euler", ("k_euler",)),
    "euler_a": Sampler(
        "Euler ancestral",
        "Euler a",
        ("k_euler_a", "k_euler_ancestral", "euler_ancestral"),
        noisy=True,
    ),
    "heun": Sampler("Heun, two model calls a step", "Heun", ("k_heun",)),
    "dpm2": Sampler("DPM2, two model calls a step", "DPM2", ("k_dpm_2",)),
    "dpm++2s_a": Sampler(
        "DPM++ 2S ancestral, two model calls a step", "DPM++ 2S a", ("k_dpmpp_2s_a",), noisy=True
    ),
    "dpm++2m": Sampler("DPM++ 2M", "DPM++ 2M", ("k_dpmpp_2m",)),
    "dpm++2mv2": Sampler("DPM++ 2M, modified", "DPM++ 2M v2"),
    "ipndm": Sampler("iPNDM", "iPNDM"),
    "ipndm_v": Sampler("iPNDM with variable step sizes", "iPNDM_v"),
    "lcm": Sampler("LCM, for latent consistency models", "LCM", ("k_lcm",)),
    "ddim_trailing": Sampler("DDIM with trailing timesteps", "DDIM", noisy=True),
    "tcd": Sampler("TCD, for trajectory consistency models", "TCD", noisy=True),
    "res_multistep": Sampler("RES multistep", "RES multistep", noisy=True),
    "res_2s": Sampler("RES, two model calls a step", "RES 2s", noisy=True),
    "er_sde": Sampler("ER-SDE", "ER-SDE"),
}

DEFAULT_SCHEDULE: Final = "default"

SCHEDULES: Final[Mapping[str, Schedule]] = {
    DEFAULT_SCHEDULE: Schedule("the runtime's choice for the model and sampler", None),
    "discrete": Schedule("evenly spaced timesteps", "Uniform", ("normal",)),
    "karras": Schedule("Karras et al. 2022", "Karras"),
    "exponential": Schedule("evenly spaced log sigmas", "Exponential"),
    "ays": Schedule("Align Your Steps tables for SD1, SDXL and SVD", "Align Your Steps"),
    "gits": Schedule("GITS tables", "GITS"),
    "sgm_uniform": Schedule("SGM uniform", "SGM Uniform"),
    "simple": Schedule("simple", "Simple"),
    "smoothstep": Schedule("smoothstep", "Smoothstep"),
    "kl_optimal": Schedule("KL optimal", "KL Optimal"),
    "lcm": Schedule("the timesteps of latent consistency models", "LCM"),
    "bong_tangent": Schedule("bong tangent", "Bong Tangent"),
}

#: Values that clients send to leave the choice to the server.
NO_SAMPLER: Final = ("", "default", "automatic")
NO_SCHEDULE: Final = ("", "automatic")

#: Mode of the step cache, which skips work between similar steps -> whether it works with U-Nets,
#: and whether it works with transformers.
CACHE_MODES: Final = {
    "easycache": (False, True),
    "ucache": (True, False),
    "dbcache": (False, True),
    "taylorseer": (False, True),
    "cache-dit": (False, True),
    "spectrum": (True, True),
}


class Knob(NamedTuple):
    """A numeric parameter of a cache mode.

    Attributes:
        field: Name of the field in the runtime.
        low, high: Inclusive bounds.
        whole: The value must be a whole number.
    """

    field: str
    low: float
    high: float
    whole: bool = True


_SHARES: Final = {
    "threshold": Knob("reuse_threshold", 0, 10, whole=False),
    "start": Knob("start_percent", 0, 0.999, whole=False),
    "end": Knob("end_percent", 0.001, 1, whole=False),
}
#: The runtime's defaults of ``start`` and ``end``.
CACHE_SPAN: Final[Mapping[str, float]] = {"start": 0.15, "end": 0.95}
_BLOCKS: Final = {
    "threshold": Knob("residual_diff_threshold", 0, 10, whole=False),
    "Fn": Knob("Fn_compute_blocks", 1, 100),
    "Bn": Knob("Bn_compute_blocks", 0, 100),
}
#: Cache mode -> its parameters, by their names in the runtime's own program. The modes that compare
#: blocks have more parameters (warm-up, maximum of cached steps, derivatives, interval, mask). In
#: this release of the runtime they have no effect: each was tested at its bounds.
CACHE_KNOBS: Final[Mapping[str, Mapping[str, Knob]]] = {
    "easycache": _SHARES,
    "ucache": {
        **_SHARES,
        "decay": Knob("error_decay_rate", 0, 1, whole=False),
        "relative": Knob("use_relative_threshold", 0, 1),
        "reset": Knob("reset_error_on_compute", 0, 1),
    },
    "dbcache": _BLOCKS,
    "taylorseer": _BLOCKS,
    "cache-dit": _BLOCKS,
    "spectrum": {
        "w": Knob("spectrum_w", 0, 1, whole=False),
        "m": Knob("spectrum_m", 1, 8),
        "lam": Knob("spectrum_lam", 0.001, 100, whole=False),
        "window": Knob("spectrum_window_size", 1, 20),
        "flex": Knob("spectrum_flex_window", 0, 10, whole=False),
        "warmup": Knob("spectrum_warmup_steps", 1, 150),
        "stop": Knob("spectrum_stop_percent", 0.001, 1, whole=False),
    },
}

#: Methods that enlarge the first pass of a hires fix.
HIRES_UPSCALERS: Final = (
    "latent", "latent-nearest", "latent-nearest-exact", "latent-antialiased", "latent-bicubic",
    "latent-bicubic-antialiased", "lanczos", "nearest",
)  # fmt: skip
#: Upscalers that enlarge latents.
LATENT_UPSCALERS: Final = tuple(name for name in HIRES_UPSCALERS if name.startswith("latent"))


def _plain(name: str) -> str:
    """Return a name in normalised form: "DPM++ 2M" and "dpmpp_2m" become "dpm++2m"."""
    return name.lower().translate(_SEPARATORS).replace("pp", "++")


_SEPARATORS: Final = str.maketrans("", "", " \t_-")


def _by_name(known: Mapping[str, Sampler] | Mapping[str, Schedule]) -> dict[str, str]:
    return {
        _plain(spelling): name
        for name, (_, label, aliases, *_) in known.items()
        for spelling in (name, label, *aliases)
        if spelling is not None
    }


_SAMPLERS_BY_NAME: Final = _by_name(SAMPLERS)
_SCHEDULES_BY_NAME: Final = _by_name(SCHEDULES)


def find_sampler(name: str) -> tuple[str, str | None] | None:
    """Return the sampler that a client's name stands for.

    Returns:
        The sampler and the schedule, which is set only if the name contains one ("DPM++ 2M
        Karras"). None for an unknown name.
    """
    plain = _plain(name)
    if plain in _SAMPLERS_BY_NAME:
        return _SAMPLERS_BY_NAME[plain], None
    for ending, schedule in _SCHEDULES_BY_NAME.items():
        sampler = _SAMPLERS_BY_NAME.get(plain.removesuffix(ending))
        if sampler:
            return sampler, schedule
    return None


def nearest_sampler(name: str) -> str | None:
    """Return the sampler whose name is most similar to an unknown name, or None."""
    plain = _plain(name)
    for ending in _SCHEDULES_BY_NAME:
        plain = plain.removesuffix(ending)
    spelling = most_similar(plain, _SAMPLERS_BY_NAME)
    return None if spelling is None else _SAMPLERS_BY_NAME[spelling]


def find_schedule(name: str) -> str | None:
    """Return the runtime's name for a client's spelling of a schedule; None if it is unknown."""
    return _SCHEDULES_BY_NAME.get(_plain(name))


def refusal(*, schedule: str, steps: int, flow: bool) -> str | None:
    """Return why the runtime cannot use this schedule; None if it can.

    Each rule prevents a crash or a blank image that stable-diffusion-cpp-python 0.4.7 produced in
    tests.

    Args:
        schedule: A name of SCHEDULES.
        steps: Number of sampling steps.
        flow: True for a model trained by flow matching (Flux, SD3, Ovis, Qwen).
    """
    if schedule == "gits" and steps < 2:
        return "The schedule 'gits' needs at least 2 steps."
    if schedule in ("karras", "exponential") and steps < 2:
        return f"The schedule '{schedule}' needs at least 2 steps: with one the image is black."
    if schedule in ("ays", "gits") and flow:
        # Their tables contain noise levels up to 14 and more, but those of a flow model end at 1.
        return (
            f"The schedule '{schedule}' has tables for older models (SD1, SDXL, SVD) only: "
            "with this model it generates a blank image."
        )
    return None
