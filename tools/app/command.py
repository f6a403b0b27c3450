"""A web page to draw with a model, or to watch training runs, for those who want no command line.

python -m tools.app --checkpoint runs/quickstart
python -m tools.app --checkpoint weights/sigma-1024 --loras weights/styles --port 8080
python -m tools.app --workdir runs/a runs/b

It listens on this machine alone unless --host says otherwise. docs/app.md says what it can do and how programs call it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image

from pixart_jax.commands import (
    BEGINS_AGAIN,
    command,
    path_argument,
    quieten_libraries,
    tool,
    with_commands,
)
from pixart_jax.data.styles import OWN_STYLES, read_styles
from pixart_jax.encoding.edges import KINDS, open_edges
from pixart_jax.errors import InputError
from pixart_jax.studio.dropped import MAX_BYTES, MAX_PIXELS
from pixart_jax.studio.models import Models, loras_of
from pixart_jax.studio.runs import check_workdir
from pixart_jax.studio.settings import Limits
from pixart_jax.studio.studio import Studio

from ..drawing_options import add_checkpoint_options, open_checkpoint

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@tool(BEGINS_AGAIN)
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    quieten_libraries()
    with tempfile.TemporaryDirectory(prefix="pixart-app-") as folder, settings_of_gradio(folder):
        served = open_app(args, pathlib.Path(folder))
        try:
            print(f"the app is at {served.address}; Ctrl-C ends it", flush=True)
            threading.Event().wait()
        finally:
            served.close()
    return 0


@contextlib.contextmanager
def settings_of_gradio(folder: str) -> Iterator[None]:
    """What Gradio reads of the environment when it is imported and while it serves; afterwards it is as it was.

    What is uploaded and drawn lies in the folder and nowhere else, and no server of its makers is asked for anything.
    """
    settings = {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    before = {name: os.environ[name] for name in settings.keys() & os.environ.keys()}
    os.environ |= settings
    try:
        yield
    finally:
        for name in settings:
            del os.environ[name]
        os.environ |= before


class Served:
    """A page under its address, until it is closed."""

    def __init__(self, blocks: Any, studio: Studio | None, args: argparse.Namespace):
        import gradio as gr
        from starlette.responses import JSONResponse
        from starlette.routing import Route

        from . import charts, views
        from .page import HEAD

        def health(_: Any) -> JSONResponse:
            alive = studio is None or studio.is_alive
            body = {"alive": alive, "waiting": studio.waiting if studio else 0}
            return JSONResponse(body, 200 if alive else 503)

        self._blocks, self.studio = blocks, studio
        fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
        self._blocks.queue(default_concurrency_limit=None, max_size=256)
        try:
            _, self.address, _ = self._blocks.launch(
                server_name=args.host,
                server_port=args.port,
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                show_error=True,
                max_file_size=MAX_BYTES,
                ssr_mode=False,
                footer_links=["api"],
                theme=gr.themes.Soft(**fonts),
                css=views.CSS + charts.CSS,
                head=HEAD,
                app_kwargs={"routes": [Route("/health", health)]},
            )
        except OSError as error:
            raise InputError(f"--port {args.port}: {error}; name another") from error

    def close(self) -> None:
        """Stops what is drawn, and no longer answers."""
        if self.studio is not None:
            self.studio.close()
        self._blocks.close(verbose=False)


def open_app(args: argparse.Namespace, folder: pathlib.Path) -> Served:
    """Opens the checkpoint and serves its page; pictures and uploads lie in the folder.

    Raises:
      InputError: no Gradio, no such checkpoint, or the port is taken.
    """
    try:
        from .page import Page, runs_page
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "gradio":
            raise
        raise InputError("the app needs Gradio: pip install 'gradio>=6.31,<7'") from error
    if args.host not in _LOOPBACK:
        print(f"--host {args.host}: whoever reaches this machine can draw and sees no password", file=sys.stderr)
    for workdir in args.workdir:
        check_workdir(workdir)
    if args.workdir and args.checkpoint is None:
        return Served(runs_page(args.workdir), None, args)
    if args.checkpoint is None:
        raise InputError("name a model to draw with (--checkpoint), runs to watch (--workdir), or both")
    if args.controlnet is None and (args.control_kind or args.hed):
        raise InputError("--control-kind and --hed are for a ControlNet; name one (--controlnet)")
    styles = read_styles(args.style_file or OWN_STYLES)
    # Gradio opens what is uploaded with Pillow, which refuses pictures of more than twice as many pixels.
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
    limits = Limits(args.max_images, args.max_steps)
    pipeline = open_checkpoint(args)
    loras = {} if args.loras is None else loras_of(args.loras, pipeline, lambda line: print(line, file=sys.stderr))
    make = None
    if args.controlnet is not None:
        make = open_edges(args.control_kind or ("hed" if args.hed else "canny"), args.hed, option="--hed")
    models = Models.of(pipeline, loras, args.controlnet, make)
    studio = Studio(models, folder / "drawn", styles=styles, limits=limits, batch_size=args.batch_size)
    try:
        title = args.title or args.checkpoint.absolute().name
        return Served(Page(studio, title, args.workdir).blocks, studio, args)
    except BaseException:
        studio.close()
        raise


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=command("app"), description=with_commands(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint",
        type=path_argument,
        metavar="DIR",
        help="what tools.convert wrote, or the workdir of a training run",
    )
    parser.add_argument(
        "--workdir",
        type=path_argument,
        nargs="+",
        default=[],
        metavar="RUN",
        help="training runs to watch",
    )
    parser.add_argument("--title", help="above the page (default: the folder's name)")
    server = parser.add_argument_group("server")
    server.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    server.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max-images", type=int, default=4, help="pictures of one request (default: %(default)s)")
    limits.add_argument("--max-steps", type=int, default=250, help="steps of one request (default: %(default)s)")
    limits.add_argument("--batch-size", type=int, default=4, help="pictures drawn at a time (default: %(default)s)")
    models = parser.add_argument_group("models")
    models.add_argument(
        "--loras",
        type=path_argument,
        metavar="FOLDER",
        help="LoRAs: .safetensors files, and folders of PEFT",
    )
    models.add_argument("--controlnet", type=path_argument, metavar="PATH", help="draws after the edges of pictures")
    models.add_argument("--control-kind", choices=KINDS, help="what is followed (default: canny, with --hed hed)")
    models.add_argument("--hed", type=path_argument, metavar="FILE", help="HED's weights, ControlNetHED.pth")
    models.add_argument("--style-file", type=path_argument, metavar="FILE.json", help="your own styles")
    add_checkpoint_options(models, keep_loaded=True)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
