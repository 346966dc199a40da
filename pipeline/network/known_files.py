"""The published weight files: name, size, checksum and address of each. Facts for messages, downloads and warnings; no reading.

Source: sizes and checksums of the Keras files: ``keras/src/applications/vgg19.py`` and ``vgg16.py``, and download logs; of the
MatConvNet files: history of ``doc/site/docs/pretrained.md`` in vlfeat/matconvnet, and the readers that assert a size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Where each family of files is served from. A mirror, or a test, gives others.
BASE_URLS: Mapping[str, str] = {
    "keras": "https://storage.googleapis.com/tensorflow/keras-applications",
    "matconvnet": "https://www.vlfeat.org/matconvnet/models",
}


@dataclass(frozen=True, slots=True)
class KnownFile:
    """One published file.

    Attributes:
        network: Name in :data:`pipeline.network.layers.NETWORKS`.
        family: ``keras`` or ``matconvnet``; a key of :data:`BASE_URLS`.
        classifier: Whether fc6, fc7 and fc8 are in it.
        path: Below the family's base address; ends in the file's name.
        size_bytes: Of the file that is served now; None where no source gives it.
        md5: Of the file that is served now, hex.
        earlier_md5: Of the files served under this name before.
    """

    network: str
    family: str
    classifier: bool
    path: str
    size_bytes: int | None
    md5: str
    earlier_md5: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The file's name, as it is looked for in ``weights/``."""
        return self.path.rpartition("/")[2]

    @property
    def words(self) -> str:
        """``"vgg19.mat (534,904,783 bytes, MD5 1061...)"``, for messages."""
        size = "" if self.size_bytes is None else f"{self.size_bytes:,} bytes, "
        return f"{self.name} ({size}MD5 {self.md5})"

    def address(self, base_urls: Mapping[str, str]) -> str:
        """Gives where to download it from."""
        return f"{base_urls[self.family].rstrip('/')}/{self.path}"


# For each network in the order in which copies are looked for.
KNOWN_FILES: tuple[KnownFile, ...] = (
    KnownFile(
        "vgg19",
        "matconvnet",
        True,
        "imagenet-vgg-verydeep-19.mat",
        534_904_783,
        "106118b7cf60435e6d8e04f6a6dc3657",
        (
            "8ee3263992981a1d26e73b3ca028a123",
            "7354f1087a23b7fb4221c6a4b5653cd0",
            "b9b4a9eb1c2fb3b50e1ec1aca6f22342",
            "49e623de543b207d57fab0f6eaf79a7e",
        ),
    ),
    KnownFile(
        "vgg19",
        "keras",
        False,
        "vgg19/vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5",
        80_134_624,
        "253f8cb515780f3b799900260a226db6",
    ),
    KnownFile(
        "vgg19",
        "keras",
        True,
        "vgg19/vgg19_weights_tf_dim_ordering_tf_kernels.h5",
        574_710_816,
        "cbe5617147190e668d6c5d5026f83318",
    ),
    KnownFile(
        "vgg16",
        "matconvnet",
        True,
        "imagenet-vgg-verydeep-16.mat",
        None,
        "f72d927587ca4c97fbd165ec9cb9997f",
        (
            "7d2a4cbdf77ee1dbbd34f6da68eb71c0",
            "5a68244cf55c66fea59e23ee63cf56ef",
            "7f0f9f01dfd99c7b7088d1c5a26eb483",
        ),
    ),
    KnownFile(
        "vgg16",
        "keras",
        False,
        "vgg16/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
        58_889_256,
        "6d6bbae143d832006294945121d1f1fc",
    ),
    KnownFile(
        "vgg16",
        "keras",
        True,
        "vgg16/vgg16_weights_tf_dim_ordering_tf_kernels.h5",
        553_467_096,
        "64373286793e3c8b2b4e3219cbf3544b",
    ),
)


def files_for(network: str, classifier: bool) -> tuple[KnownFile, ...]:
    """Gives the published files that hold all that is wanted, in the order in which copies are looked for."""
    return tuple(known for known in KNOWN_FILES if known.network == network and (known.classifier or not classifier))


def file_to_download(network: str, family: str, classifier: bool) -> KnownFile:
    """Gives the smallest published file of a family that holds all that is wanted."""
    files = [known for known in files_for(network, classifier) if known.family == family]
    return min(files, key=lambda known: known.classifier)
