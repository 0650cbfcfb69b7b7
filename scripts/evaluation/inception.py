"""clean-fid's Inception features, so that scores compare with published ones: its networks, its files, its three modes.

Only the resizing is ours: clean-fid resizes one channel of one image at a time on the processor, this a batch on the device.
"""

import functools
import os
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from cleanfid import inception_pytorch
from cleanfid.downloads_helper import inception_url
from cleanfid.inception_torchscript import InceptionV3W
from PIL import Image

from scripts.downloads import fetch
from scripts.errors import UserError
from scripts.io import user_path

SIZE = 299
"""Height and width in pixels that Inception sees."""
PATH_VARIABLE = "IHDM_INCEPTION_PATH"


def weights_file(mode: str, inception_path: str) -> Path:
    """The file with the weights for a mode ("clean", "legacy_tensorflow" or "legacy_pytorch"), downloaded as by clean-fid.

    inception_path: the file or the folder that it is in; empty for the environment variable IHDM_INCEPTION_PATH, or else
    PyTorch's folder of downloads. Raises UserError if the file is not there and cannot be fetched.
    """
    url = inception_pytorch.FID_WEIGHTS_URL if mode == "legacy_pytorch" else inception_url
    name = url.rsplit("/", 1)[-1]
    given = inception_path or os.environ.get(PATH_VARIABLE, "")
    place = user_path(given, "--inception_path") if given else Path(torch.hub.get_dir()) / "checkpoints"
    file = place if place.suffix in (".pt", ".pth") else place / name
    if file.name != name:
        raise UserError(f"--inception_path={inception_path or given}: --cleanfid_mode={mode} needs the file {name} of {url}")
    if not file.is_file():
        fetch(url, file, f"put it there by hand, or say where it is with --inception_path or the environment's {PATH_VARIABLE}")
    return file


class InceptionFeatures:
    """Features (B, 2048) of uint8 images, as clean-fid computes them in one of its modes."""

    num_features = 2048

    def __init__(self, mode: str, file: Path, device: torch.device) -> None:
        """file: as `weights_file` gives it. Raises UserError if it cannot be loaded."""
        self.mode, self.device = mode, device
        self.settings: dict[str, Any] = {"extractor": "inception", "mode": mode, "weights_crc32": zlib.crc32(file.read_bytes())}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about ways of loading that are clean-fid's choice
                self.network = _load(mode, file).to(device).eval()
        except Exception as error:  # PyTorch's loaders have no common class of error for a file that is damaged
            reason = str(error).strip().splitlines()[:1]
            raise UserError(f"{file}: not the weights that --cleanfid_mode={mode} needs ({reason}); fetch it again") from None

    @torch.no_grad()
    def __call__(self, pixels: torch.Tensor) -> np.ndarray:
        """Images uint8 (B, C, H, W), C 1 or 3, to features float32 (B, 2048). Grey images are repeated to three channels."""
        x = resized(pixels.to(self.device).float(), self.mode).expand(-1, 3, -1, -1)
        features = self.network(x / 255)[0].flatten(1) if self.mode == "legacy_pytorch" else self.network(x)
        return features.float().cpu().numpy()


def _load(mode: str, file: Path) -> torch.nn.Module:
    if mode != "legacy_pytorch":
        # download=False: it opens the file of this name in the folder that it is given.
        return InceptionV3W(str(file.parent), download=False, resize_inside=mode == "legacy_tensorflow")
    # clean-fid offers no way to name a file, so its download is replaced. InceptionV3 draws random weights first.
    loader = inception_pytorch.load_state_dict_from_url
    inception_pytorch.load_state_dict_from_url = lambda *_, **__: torch.load(file, map_location="cpu", weights_only=True)
    try:
        with torch.random.fork_rng(devices=[]):
            return inception_pytorch.InceptionV3(output_blocks=[3], resize_input=False)
    finally:
        inception_pytorch.load_state_dict_from_url = loader


def resized(x: torch.Tensor, mode: str) -> torch.Tensor:
    """What clean-fid's `build_resizer(mode)` does to each image, for a batch x (B, C, H, W) of values 0..255 on any device.

    "clean" is Pillow's bicubic filter with anti-aliasing, "legacy_pytorch" bilinear interpolation without; both to 299x299 and
    clamped to 0..255. "legacy_tensorflow" flatten images as they are: that network resizes itself.
    """
    if mode == "legacy_tensorflow":
        return x
    if mode == "legacy_pytorch":
        return F.interpolate(x, size=(SIZE, SIZE), mode="bilinear", align_corners=False).clamp_(0, 255)
    height, width = (torch.from_numpy(bicubic_matrix(n)).to(x) for n in x.shape[2:])
    return (height @ (x @ width.T)).clamp_(0, 255)


@functools.lru_cache(maxsize=64)
def bicubic_matrix(n: int) -> np.ndarray:
    """The matrix float32 (299, n) by which Pillow's bicubic filter resizes n pixels to 299.

    Pillow resizes floating-point images along one axis and then the other, and linearly: an identity image that is resized
    along one axis only is the matrix itself.
    """
    identity = Image.fromarray(np.eye(n, dtype=np.float32))
    return np.asarray(identity.resize((n, SIZE), Image.Resampling.BICUBIC)).copy()
