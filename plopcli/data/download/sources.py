"""Where everything comes from: all addresses and checksums, in one place.

Checksums are those that torchvision and the community publish. Sizes only serve to see in advance whether there is
room; those of `unpacked` are rounded up.
"""

from __future__ import annotations

from dataclasses import dataclass

from plopcli.data.remote import Checksum, RemoteFile


@dataclass(frozen=True)
class Archive(RemoteFile):
    """An archive of a data set.

    Args:
        holds: How the names of its members begin, by which a user's copy is recognised whatever it is called.
        unpacked: Its bytes unpacked, roughly.
    """

    holds: str = ""
    unpacked: int = 0


VOC_TRAINVAL = Archive(
    "VOCtrainval_11-May-2012.tar",
    (
        "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
        "https://data.pjreddie.com/files/VOCtrainval_11-May-2012.tar",
    ),
    Checksum("md5", "6cd6e144f989b92b3379bac3b3de84fd"),
    size=1_999_639_040,
    holds="VOCdevkit/VOC2012/",
    unpacked=2_100_000_000,
)
VOC_AUGMENTED = Archive(
    "SegmentationClassAug.zip",
    (
        "https://www.dropbox.com/s/oeu149j8qtbs1x0/SegmentationClassAug.zip?dl=1",
        "http://cs.jhu.edu/~cxliu/data/SegmentationClassAug.zip",
    ),
    size=40_000_000,
    holds="SegmentationClassAug/",
    unpacked=100_000_000,
)
SBD = Archive(
    "benchmark.tgz",
    (
        "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
        "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
    ),
    Checksum("md5", "82b4d87ceb2ed10f6038a1cba92111cb"),
    size=1_419_539_633,
    holds="benchmark_RELEASE/",
    unpacked=300_000_000,
)
ADE = Archive(
    "ADEChallengeData2016.zip",
    (
        "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
        "https://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
    ),
    Checksum("md5", "7328b3957e407ddae1d3cbf487f149ef"),
    size=967_400_000,
    holds="ADEChallengeData2016/",
    unpacked=1_100_000_000,
)
CITYSCAPES_LABELS = Archive("gtFine_trainvaltest.zip", (), size=252_700_000, holds="gtFine/", unpacked=600_000_000)
CITYSCAPES_IMAGES = Archive(
    "leftImg8bit_trainvaltest.zip", (), size=11_600_000_000, holds="leftImg8bit/", unpacked=11_700_000_000
)

_PLOP = "https://github.com/arthurdouillard/CVPR2021_PLOP/releases/download/v1.0"
_LGKD = "https://github.com/Ze-Yang/LGKD/releases/download/v1.0"
_PYTORCH = "https://download.pytorch.org/models"


def _torchvision(name: str, megabytes: int) -> RemoteFile:
    """A file of torchvision, whose name ends in the first digits of its SHA-256."""
    digits = name.rsplit("-", 1)[1].removesuffix(".pth")
    return RemoteFile(name, (f"{_PYTORCH}/{name}",), Checksum("sha256", digits), megabytes * 1_000_000)


#: ImageNet weights by source and backbone; torchvision's are those that it calls DEFAULT.
WEIGHTS: dict[str, dict[str, RemoteFile]] = {
    "iabn": {
        "resnet50": RemoteFile("resnet50_iabn_sync.pth.tar", (), size=103_000_000),
        "resnet101": RemoteFile(
            "resnet101_iabn_sync.pth.tar",
            (f"{_PLOP}/resnet101_iabn_sync.pth.tar", f"{_LGKD}/resnet101_iabn_sync.pth.tar"),
            size=179_000_000,
        ),
    },
    "torchvision": {
        "resnet18": _torchvision("resnet18-f37072fd.pth", 47),
        "resnet34": _torchvision("resnet34-b627a593.pth", 88),
        "resnet50": _torchvision("resnet50-11ad3fa6.pth", 103),
        "resnet101": _torchvision("resnet101-cd907fc2.pth", 179),
        "resnet152": _torchvision("resnet152-f82ba261.pth", 242),
        "mobilenet_v2": _torchvision("mobilenet_v2-7ebf99e0.pth", 15),
    },
}
