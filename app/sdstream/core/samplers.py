"""The runtime's samplers and schedules by name, and the combinations that it cannot use.

Names are those of ``str_to_sample_method`` and ``str_to_scheduler`` of stable-diffusion.cpp as
vendored by stable-diffusion-cpp-python 0.4.7. "default" is not a schedule of the runtime: it
stands for the one that the runtime itself pairs with the model and the sampler.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from sdstream.core.similar import most_similar


class Sampler(NamedTuple):
    """A sampling method of the runtime.

    Attributes:
        title: For people.
        label: AUTOMATIC1111's name, which Xinference shares.
        aliases: Other spellings: k-diffusion's, which Fireworks shares, and diffusers'.
        noisy: It adds noise between the steps, and ``eta`` is how much; for others eta is nothing.
    """

    title: str
    label: str
    aliases: tuple[str, ...] = ()
    noisy: bool = False


class Schedule(NamedTuple):
    """A noise schedule of the runtime.

    Attributes:
        title: For people.
        label: AUTOMATIC1111's name, None where it has none.
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

#: What clients send to choose none.
NO_SAMPLER: Final = ("", "default", "automatic")
NO_SCHEDULE: Final = ("", "automatic")

#: Ways to leave out work between similar steps -> whether they are for U-Nets, for transformers.
CACHE_MODES: Final = {
    "easycache": (False, True),
    "ucache": (True, False),
    "dbcache": (False, True),
    "taylorseer": (False, True),
    "cache-dit": (False, True),
    "spectrum": (True, True),
}


class Knob(NamedTuple):
    """A number of a cache mode.

    Attributes:
        field: Its name in the runtime.
        low, high: Bounds, both allowed.
        whole: It has no fraction.
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
_BLOCKS: Final = {
    "threshold": Knob("residual_diff_threshold", 0, 10, whole=False),
    "Fn": Knob("Fn_compute_blocks", 1, 100),
    "Bn": Knob("Bn_compute_blocks", 0, 100),
}
#: Cache mode -> the numbers that it looks at, by the names of the runtime's own program. The modes
#: that compare blocks have more of them (warm-up, most cached steps, derivatives, interval, mask),
#: which change nothing in this release: each was tried at its bounds.
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

#: How the first pass of a hires fix is enlarged.
HIRES_UPSCALERS: Final = (
    "latent", "latent-nearest", "latent-nearest-exact", "latent-antialiased", "latent-bicubic",
    "latent-bicubic-antialiased", "lanczos", "nearest",
)  # fmt: skip
#: Upscalers that enlarge latents.
LATENT_UPSCALERS: Final = tuple(name for name in HIRES_UPSCALERS if name.startswith("latent"))


def _plain(name: str) -> str:
    """A name without what its spellings differ in: "DPM++ 2M", "dpmpp_2m" and "dpm++2m" are one."""
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
    """What a client's name of a sampler means to the runtime.

    Returns:
        The sampler, and the schedule of names that hold both ("DPM++ 2M Karras"); None for a name
        that means nothing.
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
    """Return the sampler whose name is most like an unknown one; None when none is alike."""
    plain = _plain(name)
    for ending in _SCHEDULES_BY_NAME:
        plain = plain.removesuffix(ending)
    spelling = most_similar(plain, _SAMPLERS_BY_NAME)
    return None if spelling is None else _SAMPLERS_BY_NAME[spelling]


def find_schedule(name: str) -> str | None:
    """The runtime's name for a client's spelling of a schedule, or None."""
    return _SCHEDULES_BY_NAME.get(_plain(name))


def refusal(*, schedule: str, steps: int, flow: bool) -> str | None:
    """Return why the runtime cannot use this schedule, None if it can.

    Each rule is a crash or a black image that was measured with 0.4.7.

    Args:
        schedule: A name of SCHEDULES.
        steps: Sampling steps.
        flow: True for a model trained by flow matching (Flux, SD3, Ovis, Qwen).
    """
    if schedule == "gits" and steps < 2:
        return "The schedule 'gits' needs at least 2 steps."
    if schedule in ("karras", "exponential") and steps < 2:
        return f"The schedule '{schedule}' needs at least 2 steps: with one the image is black."
    if schedule in ("ays", "gits") and flow:
        # Their tables are of noise levels up to 14 and more; a flow model knows them up to 1.
        return (
            f"The schedule '{schedule}' has tables for older models (SD1, SDXL, SVD) only: "
            "with this model it generates a blank image."
        )
    return None
