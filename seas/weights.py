"""The files of pretrained weights that a user has to provide, and how they are found and checked."""

from dataclasses import dataclass
from pathlib import Path

from seas.artifacts import sha256
from seas.errors import InputError


@dataclass(frozen=True)
class WeightsFile:
    """A file by the name that its publisher gave it; the name bears the start of the file's SHA-256."""

    file: str
    sha256_prefix: str
    purpose: str


WEIGHTS = {
    "inception_v3": WeightsFile(
        "weights-inception-2015-12-05-6726825d.pth", "6726825d", "torch-fidelity's Inception: IS and KID"
    ),
    "vgg16": WeightsFile("vgg16-397923af.pth", "397923af", "torchvision's trunk of LPIPS, backbone vgg"),
    "alexnet": WeightsFile("alexnet-owt-7be5be79.pth", "7be5be79", "torchvision's trunk of LPIPS, backbone alex"),
    "squeezenet1_1": WeightsFile(
        "squeezenet1_1-b8a52dc0.pth", "b8a52dc0", "torchvision's trunk of LPIPS, backbone squeeze"
    ),
}
"""Every file under the name that the stations use. They lie directly in the folder that the settings give."""


@dataclass(frozen=True)
class HubModel:
    """A pipeline on the model hub, pinned: the revision is the hash of a commit, which covers the hashes of its files.

    parameters: how many each network has.
    """

    repository: str
    revision: str
    parameters: dict[str, int]

    def download(self, folder: Path | str) -> str:
        """The command that puts the needed files into ``folder``."""
        patterns = ("*.json", "*.txt", "text_encoder/model.safetensors", "*/diffusion_pytorch_model.safetensors")
        files = " ".join(f"--include '{pattern}'" for pattern in patterns)
        return f"hf download {self.repository} --revision {self.revision} {files} --local-dir {folder}"


STABLE_DIFFUSION = HubModel(
    "CompVis/stable-diffusion-v1-4",
    "133a221b8aa7292a167afc5127cb63fb5005638b",
    {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
)
"""The paper's base (Sec. 4.1)."""

LPIPS_TRUNKS = {"vgg": "vgg16", "alex": "alexnet", "squeeze": "squeezenet1_1"}
"""The names of LPIPS's backbones → those of their weights."""


def has_paper_weights(lpips_backbone: str, folder: Path | str | None) -> bool:
    """Whether the folder holds what the paper's metrics need: Inception, and the trunk of this LPIPS."""
    return all(find_weights(name, folder) for name in ("inception_v3", LPIPS_TRUNKS[lpips_backbone]))


def find_weights(name: str, folder: Path | str | None) -> Path | None:
    """The path of the weights ``name`` in ``folder``; None where the file, or the folder, is absent."""
    if folder is None:
        return None
    path = Path(folder) / WEIGHTS[name].file
    return path if path.is_file() else None


def verified(name: str, folder: Path | str | None) -> Path:
    """The path of the weights ``name`` in ``folder``, once their hash is known to be right.

    Raises InputError when the file is absent or its SHA-256 does not begin as its name says.
    """
    wanted = WEIGHTS[name]
    path = find_weights(name, folder)
    if path is None:
        raise InputError(f"the weights {wanted.file} ({wanted.purpose}) are not in the folder {folder}")
    if not (found := sha256(path)).startswith(wanted.sha256_prefix):
        raise InputError(f"{path} is damaged: its SHA-256 begins with {found[:8]}, not with {wanted.sha256_prefix}")
    return path
