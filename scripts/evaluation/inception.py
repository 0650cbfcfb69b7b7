"""clean-fid's Inception features, so that scores compare with published ones: its networks, its
resizing, its three modes.
"""

import os
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cleanfid.downloads_helper import inception_url
from cleanfid.features import build_feature_extractor
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import build_resizer

from scripts.config.paths import user_path
from scripts.errors import UserError


def weights_file(inception_path: str = "") -> Path:
    """Return the TorchScript network of the modes "clean" and "legacy_tensorflow", downloaded if it
    is not there.

    inception_path: the file or its folder; if empty the environment variable IHDM_INCEPTION_PATH,
    or PyTorch's folder of downloads. Raises UserError if there is no such file and it cannot be
    downloaded.
    """
    name = inception_url.rsplit("/", 1)[-1]
    place = Path(torch.hub.get_dir()) / "checkpoints"
    if named := inception_path or os.environ.get("IHDM_INCEPTION_PATH"):
        place = user_path(named, "--inception_path")
    # clean-fid takes a folder and expects this name in it.
    file = place if place.name == name else place / name
    if not file.is_file():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(inception_url, str(file))
        except OSError as error:
            raise UserError(
                f"{file} is not there and {inception_url} cannot be downloaded ({error}): put it "
                "there by hand, or say where it is with --inception_path or the environment "
                "variable IHDM_INCEPTION_PATH"
            ) from None
    return file


class InceptionFeatures:
    """Features (B, 2048) of uint8 images, as clean-fid computes them in one of its modes."""

    num_features = 2048

    def __init__(self, mode: str, inception_path: str, device: torch.device) -> None:
        """mode: "clean", "legacy_tensorflow" or "legacy_pytorch", whose weights are always in
        PyTorch's folder of downloads.

        inception_path: as for `weights_file`. Raises UserError if the network is not there or
        cannot be loaded.
        """
        self.device = device
        self.settings: dict[str, Any] = {"extractor": "inception", "mode": mode}
        file: Path | str = "weights of " + mode
        try:
            # clean-fid loads in a deprecated way and changes the filters of warnings.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._resize = build_resizer(mode)
                if mode == "legacy_pytorch":
                    # clean-fid would unpickle whatever is in the file.
                    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
                    self._network = build_feature_extractor(mode, device, use_dataparallel=False)
                else:
                    file = weights_file(inception_path)
                    self.settings["weights_crc32"] = zlib.crc32(file.read_bytes())
                    inside = mode == "legacy_tensorflow"
                    network = InceptionV3W(str(file.parent), download=False, resize_inside=inside)
                    self._network = network.to(device).eval()
        except (RuntimeError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{file}: cannot be loaded for --cleanfid_mode={mode} ({reason}); fetch it again"
            ) from None

    @torch.no_grad()
    def __call__(self, pixels: torch.Tensor) -> np.ndarray:
        """Map images uint8 (B, C, H, W), C 1 or 3, to features float32 (B, 2048).

        Grey images are repeated to three channels.
        """
        images = pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy()
        resized = torch.from_numpy(np.stack([self._resize(image) for image in images]))
        inputs = resized.permute(0, 3, 1, 2).to(self.device, torch.float32)
        return self._network(inputs).float().cpu().numpy()
