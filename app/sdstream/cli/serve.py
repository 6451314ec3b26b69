"""The command ``sdstream serve``."""

from __future__ import annotations

import sys
from typing import Any, Final

import click

from sdstream.cli.console import EXIT_FAULT, plain_errors
from sdstream.cli.flags import ForeignFlags, read_settings, setting_flags
from sdstream.cli.models import pull_default
from sdstream.system import return_large_blocks
from sdstream.web.application import configure_logging
from sdstream.web.server import Server

#: Flags of OpenVINO Model Server, Xinference and mistral.rs -> what to use instead.
_OF_OTHER_SERVERS: Final = {
    "m": "use --model MODEL",
    "rest_port": "use --port",
    "source_model": "use --model MODEL with --pull; OpenVINO IR is the format of another runtime",
    "model_repository_path": "use --model-dir",
    "model_path": "use --model FILE",
    "gguf_model_path": "use --model FILE",
    "model_name": "use --model MODEL, or --alias NAME for another name of the default model",
    "model_type": "leave it out",
    "task": "leave it out",
    "config_file_path": "use --models FILE, a models.yaml",
    "target_device": "set 'device: cpu' or 'device: cuda:0' in an entry of models.yaml whose "
    "'files' name the model's file",
    "weight_format": "use -O wtype=q8_0, or 'sdstream convert'",
    "overwrite_models": "use 'sdstream convert --force'",
    "cpu_offload": "use -O offload=true",
    "gguf_quantization": "use --model MODEL:QUANT",
    "quantize": "use -O wtype=q8_0",
    "transformer_nf4": "use -O wtype=q4_0",
    "quantize_text_encoder": "name quantised files of the text encoders in models.yaml",
    "text_encoder_3": "use --model FILE with a file that contains no T5, such as "
    "sd3_medium_incl_clips.safetensors, or an entry of models.yaml without t5xxl",
    "quant": "use --model MODEL:QUANT, or -O wtype=q8_0",
    "isq": "use --model MODEL:QUANT, or -O wtype=q8_0",
}


@click.command(cls=ForeignFlags, foreign=_OF_OTHER_SERVERS)
@setting_flags()
def serve(**flags: Any) -> None:
    """Serve the image APIs over HTTP.

    Every flag has an environment variable, named in brackets; the flag wins. /readyz answers 200
    once the default model is loaded.
    """
    settings = read_settings(**flags)
    configure_logging(settings.log_level, settings.log_format)
    return_large_blocks()
    with plain_errors():
        pull_default(settings)
        server = Server(settings)
        server.run()
    sys.exit(EXIT_FAULT if server.died else 0)
