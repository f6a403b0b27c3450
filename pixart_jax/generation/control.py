"""Drawing under control: a ControlNet laid over the model, and the pictures that it follows.

pipeline = TextToImage.from_checkpoint("weights/alpha-1024", adapters=[ControlNetFile("weights/hed.pth")])
request = Request("a house in a forest", aspect_ratio=nearest([picture], pipeline.resolution))
control = control_condition(pipeline, request, [picture], open_edges("hed", path, option="hed"))
images = pipeline.draw(dataclasses.replace(request, conditions=control))
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from pixart_jax.adapters.controlnet import Controlled
from pixart_jax.conversion.controlnet_files import open_controlnet
from pixart_jax.data.buckets import RESOLUTIONS, nearest_bucket, sampling_buckets
from pixart_jax.data.decoding import fit
from pixart_jax.encoding.edges import MakeControl
from pixart_jax.errors import InputError
from pixart_jax.generation.adaptation import CONTROL_IS_WHOLE, CONTROL_NEEDS, Adaptation
from pixart_jax.generation.pipeline import TextToImage
from pixart_jax.generation.request import Request
from pixart_jax.models.controlnet import ControlNet
from pixart_jax.models.params import with_shardings
from pixart_jax.models.pixart import PixArt


@dataclasses.dataclass(frozen=True)
class ControlNetFile:
    """A ControlNet, to be laid over the model that it is for.

    Of several adapters it comes first, so that what changes the model's weights changes them for it too.

    Attributes:
      path, ema: as `conversion.controlnet_files.open_controlnet` takes them.
    """

    path: str | pathlib.Path
    ema: bool = True

    def over(self, model: PixArt, mesh: Mesh) -> Adaptation:
        """It, laid over a model. Its parameters are read now, and wait in the host's memory.

        Raises:
          InputError: there is no ControlNet, or it is another model's.
        """
        found = open_controlnet(pathlib.Path(self.path), model, ema=self.ema)
        flat = {}
        for name in found.paths:
            array = found.read(name)
            # As those of the model are: matrix products convert them anyway.
            flat[name] = array.astype(jnp.dtype(model.dtype)) if name.endswith("/kernel") else np.array(array)
        params = flax.traverse_util.unflatten_dict(flat, sep="/")
        shardings = jax.tree.map(lambda leaf: leaf.sharding, with_shardings(params, mesh))
        return Adaptation(
            adapt=lambda called: Controlled(ControlNet(model, found.num_copies), called, model.dtype),
            load=lambda: jax.device_put(params, shardings),
            needs=CONTROL_NEEDS,
            whole=CONTROL_IS_WHOLE,
        )


def nearest(pictures: Sequence[np.ndarray], size: int) -> tuple[int, int]:
    """The (width, height) that says at which aspect ratio pictures are drawn so that these, uint8[H, W, 3], lose least.

    Args:
      size: pixels along the side of the square.

    Raises:
      InputError: their nearest buckets are different ones.
    """
    if size not in RESOLUTIONS:
        return 1, 1  # There is the square alone.
    found = {nearest_bucket(sampling_buckets(size), len(picture) / picture.shape[1]) for picture in pictures}
    if len(found) > 1:
        names = ", ".join(sorted(f"{bucket.height}x{bucket.width}" for bucket in found))
        raise InputError(
            f"the control pictures' nearest sizes are different ones: {names}; say which is meant (--aspect-ratio), or "
            "draw those of one shape at a time"
        )
    return pictures[0].shape[1], pictures[0].shape[0]


def control_condition(
    pipeline: TextToImage, request: Request, pictures: Sequence[np.ndarray], make: MakeControl, scale: float = 1.0
) -> dict[str, np.ndarray]:
    """The condition that a request under control needs.

    Each picture is resized to cover the request's bucket and cropped to it; what is made of it is multiplied by the
    scale and becomes latents, whose mean is taken.

    Args:
      pictures: uint8[H, W, 3] of any size: one for all prompts, or one for each.
      make: see `encoding.edges`.
      scale: of the control picture's brightness, as the reference's `strength`: 0 is a black picture.

    Returns:
      {"control": tokens f32[n, N, p·p·C]}, for `Request.conditions`.

    Raises:
      InputError: another number of pictures than of prompts.
    """
    if len(pictures) not in (1, len(request.prompts)):
        raise InputError(
            f"{len(pictures)} control pictures for {len(request.prompts)} prompts; give one for all, or one for each"
        )
    bucket = request.canvas(pipeline.resolution).bucket
    fitted = np.stack([fit(Image.fromarray(picture), bucket) for picture in pictures])
    mean, _ = pipeline.parts.encode_pictures(make(fitted) * np.float32(scale))
    each = mean if len(pictures) > 1 else np.repeat(mean, len(request.prompts), axis=0)
    return {"control": pipeline.tokens_of(np.repeat(each, request.num_images, axis=0), request)}
