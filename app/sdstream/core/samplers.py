"""The runtime's samplers and schedules by name, and the combinations it cannot draw.

Names are those of ``str_to_sample_method`` and ``str_to_scheduler`` of stable-diffusion.cpp as
vendored by stable-diffusion-cpp-python 0.4.7. "default" is not a schedule of the runtime: it
stands for the one that the runtime itself pairs with the model and the sampler.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

SAMPLERS: Final = {
    "euler": "Euler",
    "euler_a": "Euler ancestral",
    "heun": "Heun, two model calls a step",
    "dpm2": "DPM2, two model calls a step",
    "dpm++2s_a": "DPM++ 2S ancestral, two model calls a step",
    "dpm++2m": "DPM++ 2M",
    "dpm++2mv2": "DPM++ 2M, modified",
    "ipndm": "iPNDM",
    "ipndm_v": "iPNDM with variable step sizes",
    "lcm": "LCM, for latent consistency models",
    "ddim_trailing": "DDIM with trailing timesteps",
    "tcd": "TCD, for trajectory consistency models",
    "res_multistep": "RES multistep",
    "res_2s": "RES, two model calls a step",
    "er_sde": "ER-SDE",
}

DEFAULT_SCHEDULE: Final = "default"

SCHEDULES: Final = {
    DEFAULT_SCHEDULE: "the runtime's choice for the model and sampler",
    "discrete": "evenly spaced timesteps",
    "karras": "Karras et al. 2022",
    "exponential": "evenly spaced log sigmas",
    "ays": "Align Your Steps tables for SD1, SDXL and SVD",
    "gits": "GITS tables",
    "sgm_uniform": "SGM uniform",
    "simple": "simple",
    "smoothstep": "smoothstep",
    "kl_optimal": "KL optimal",
    "lcm": "the timesteps of latent consistency models",
    "bong_tangent": "bong tangent",
}

#: AUTOMATIC1111's name of each, which Xinference shares.
SAMPLER_LABELS: Final = {
    "euler_a": "Euler a",
    "euler": "Euler",
    "heun": "Heun",
    "dpm2": "DPM2",
    "dpm++2s_a": "DPM++ 2S a",
    "dpm++2m": "DPM++ 2M",
    "dpm++2mv2": "DPM++ 2M v2",
    "lcm": "LCM",
    "ddim_trailing": "DDIM",
    "ipndm": "iPNDM",
    "ipndm_v": "iPNDM_v",
    "tcd": "TCD",
    "res_multistep": "RES multistep",
    "res_2s": "RES 2s",
    "er_sde": "ER-SDE",
}
SCHEDULE_LABELS: Final = {
    "discrete": "Uniform",
    "karras": "Karras",
    "exponential": "Exponential",
    "sgm_uniform": "SGM Uniform",
    "kl_optimal": "KL Optimal",
    "ays": "Align Your Steps",
    "simple": "Simple",
    "gits": "GITS",
    "smoothstep": "Smoothstep",
    "lcm": "LCM",
    "bong_tangent": "Bong Tangent",
}

#: Further spellings that clients send: k-diffusion's, which Fireworks has too, and diffusers'.
SAMPLER_ALIASES: Final = {
    "k_euler": "euler",
    "k_euler_a": "euler_a",
    "k_euler_ancestral": "euler_a",
    "euler_ancestral": "euler_a",
    "k_heun": "heun",
    "k_dpm_2": "dpm2",
    "k_dpmpp_2s_a": "dpm++2s_a",
    "k_dpmpp_2m": "dpm++2m",
    "k_lcm": "lcm",
}
SCHEDULE_ALIASES: Final = {"normal": "discrete"}

#: What clients send who choose none.
NO_SAMPLER: Final = ("", "default", "automatic")
NO_SCHEDULE: Final = ("", "automatic")

#: Samplers that add noise between the steps; eta says how much of it, for the others it is nothing.
NOISY_SAMPLERS: Final = (
    "euler_a", "dpm++2s_a", "ddim_trailing", "tcd", "res_multistep", "res_2s",
)  # fmt: skip

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


def _plain(name: str) -> str:
    """A name without what its spellings differ in: "DPM++ 2M", "dpmpp_2m" and "dpm++2m" are one."""
    return name.lower().translate(_SEPARATORS).replace("pp", "++")


_SEPARATORS: Final = str.maketrans("", "", " \t_-")
_SAMPLERS_BY_NAME: Final = {
    **{_plain(name): name for name in SAMPLERS},
    **{_plain(label): name for name, label in SAMPLER_LABELS.items()},
    **{_plain(alias): name for alias, name in SAMPLER_ALIASES.items()},
}
_SCHEDULES_BY_NAME: Final = {
    **{_plain(name): name for name in SCHEDULES},
    **{_plain(label): name for name, label in SCHEDULE_LABELS.items()},
    **{_plain(alias): name for alias, name in SCHEDULE_ALIASES.items()},
}


def sampler_named(name: str) -> tuple[str, str | None] | None:
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


def schedule_named(name: str) -> str | None:
    """The runtime's name for a client's spelling of a schedule, or None."""
    return _SCHEDULES_BY_NAME.get(_plain(name))


def refusal(*, schedule: str, steps: int, flow: bool) -> str | None:
    """Why the runtime cannot draw with this schedule, or None when it can.

    Each rule is a crash or a black picture that was measured with 0.4.7.

    Args:
        schedule: A name of SCHEDULES.
        steps: Sampling steps.
        flow: True for a model trained by flow matching (Flux, SD3, Ovis, Qwen).
    """
    if schedule == "gits" and steps < 2:
        return "The schedule 'gits' needs at least 2 steps."
    if schedule in ("karras", "exponential") and steps < 2:
        return f"The schedule '{schedule}' needs at least 2 steps: with one it draws black."
    if schedule in ("ays", "gits") and flow:
        # Their tables are of noise levels up to 14 and more; a flow model knows them up to 1.
        return (
            f"The schedule '{schedule}' has tables for older models (SD1, SDXL, SVD) only: "
            "with this model it draws a blank picture."
        )
    return None
