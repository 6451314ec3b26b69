"""C declarations that stable-diffusion-cpp-python lacks, and conversion of images to structs."""

from __future__ import annotations

import ctypes
import logging
from typing import Any, Final

from PIL import Image, ImageStat
from stable_diffusion_cpp import stable_diffusion_cpp as sd  # noqa: TID251

from sdstream.core.errors import EngineError, Reason
from sdstream.core.pixels import Pixels
from sdstream.core.size import Size

lib = sd._lib
lib.sd_ctx_params_init.argtypes = [ctypes.POINTER(sd.sd_ctx_params_t)]
lib.sd_ctx_params_init.restype = None
lib.sd_img_gen_params_init.argtypes = [ctypes.POINTER(sd.sd_img_gen_params_t)]
lib.sd_img_gen_params_init.restype = None
for _name in ("str_to_sample_method", "str_to_scheduler", "str_to_sd_type"):
    getattr(lib, _name).argtypes = [ctypes.c_char_p]
    getattr(lib, _name).restype = ctypes.c_int

free = ctypes.CDLL(None).free
free.argtypes = [ctypes.c_void_p]
free.restype = None
malloc = ctypes.CDLL(None).malloc
malloc.argtypes = [ctypes.c_size_t]
malloc.restype = ctypes.c_void_p

LOG_LEVELS: Final = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)

#: Limit of the standard deviation in plain images, of 255: the built-in model's have up to 1.4, and
#: its images of a tiny thing more than 20.
_NOISE: Final = 2.0

#: Arguments of Canny edge detection in the runtime's own program: two thresholds, weak and strong.
_CANNY: Final = (0.08, 0.08, 0.8, 1.0)


def has_fast_kernels() -> bool:
    try:
        return bool(lib.ggml_cpu_has_llamafile())
    except AttributeError:
        return False


def native_image(picture: Pixels) -> Any:
    """Return a sd_image_t that points to the bytes of ``picture``, which must outlive the call."""
    pointer = ctypes.cast(ctypes.c_char_p(picture.data), ctypes.POINTER(ctypes.c_uint8))
    return sd.sd_image_t(picture.width, picture.height, picture.channels, pointer)


def control_image(picture: Pixels, *, edges: bool) -> Any:
    """Return a sd_image_t of the image, or of its edges if ``edges`` is True."""
    if not edges:
        return native_image(picture)
    # The library overwrites the pixels with the edges, so it gets a copy.
    own = ctypes.create_string_buffer(picture.data, len(picture.data))
    pointer = ctypes.cast(own, ctypes.POINTER(ctypes.c_uint8))
    image = sd.sd_image_t(picture.width, picture.height, picture.channels, pointer)
    if not sd.preprocess_canny(image, *_CANNY, False):
        raise EngineError(
            Reason.GENERATION_FAILED, "The edges of the control image could not be computed."
        )
    return image


def taken(image: Any) -> Pixels:
    """Copy a result image as RGB, and free the library's pixels."""
    try:
        return Pixels(image.width, image.height, rgb(image))
    finally:
        free(image.data)


def resized(picture: Pixels, wanted: Size) -> Pixels:
    """Return an image resized to the wanted size."""
    if picture.size == wanted:
        return picture
    image = Image.frombytes("RGB", picture.size, picture.data)
    other = image.resize(wanted, Image.Resampling.LANCZOS)
    return Pixels(wanted.width, wanted.height, other.tobytes())


def is_uniform(picture: Pixels) -> bool:
    """Return whether all pixels of an image have the same colour."""
    pixel = picture.data[: picture.channels]
    return picture.data == pixel * (picture.width * picture.height)


def is_empty(picture: Pixels) -> bool:
    """Return whether an image shows nothing: its pixels differ only by a decoder's noise."""
    image = Image.frombytes("RGB", picture.size, picture.data)
    return max(ImageStat.Stat(image).stddev) < _NOISE


def rgb(image: Any) -> bytes:
    """Return the pixels of a sd_image_t as RGB; inpainting models return RGBA."""
    size = (image.width, image.height)
    pixels = ctypes.string_at(image.data, image.width * image.height * image.channel)
    if image.channel == 3:
        return pixels
    mode = {1: "L", 4: "RGBA"}[image.channel]
    return Image.frombytes(mode, size, pixels).convert("RGB").tobytes()
