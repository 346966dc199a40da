from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import Options, check_options, defaults, flat, nested, options_of
from pipeline.errors import OptionError
from pipeline.sharding import Share

CHOICES = {key: of["choices"] for key, of in options_of(Options).items() if "choices" in of}


def values(**changes: Any) -> dict[str, Any]:
    """Plain defaults with some options set: ``values(data__dir="x")``."""
    return nested({"data.dir": "imgs", **{key.replace("__", "."): value for key, value in changes.items()}})


def test_the_configuration_file_has_the_defaults() -> None:
    written = yaml.safe_load((Path(__file__).parent.parent / "conf" / "config.yaml").read_text(encoding="utf-8"))
    del written["defaults"]
    assert {**defaults(), **flat(written)} == defaults()


def test_right_values_are_taken() -> None:
    addresses = (None, "auto", "head:6379", "192.0.2.1:6379", "ray://head.example:10001", "[2001:db8::1]:6379")
    for key, given, expected in (
        ("data.size", [100, 200], (100, 200)),
        ("data.size", None, None),
        ("layers", "relu4_1,relu5_1", ("relu4_1", "relu5_1")),
        ("part", "3/8", Share(3, 8)),
        ("engine.gpus_per_worker", 0.5, 0.5),
        *(("engine.address", address, address) for address in addresses),
    ):
        group, _, name = key.rpartition(".")
        options = check_options(nested({"data.dir": "imgs", "engine.name": "ray" if group == "engine" else "local", key: given}))
        assert getattr(getattr(options, group) if group else options, name) == expected
        assert options.given[key] == given


@pytest.mark.parametrize(
    ("key", "rule", "wrong"),
    [
        ("data.size", "a side from 1 to 8192 px, ", (0, -1, "224px", [1, 2, 3], [1.5, 2], True, 9000, {})),
        ("layers", "a list of names, patterns, ", ([""], [1], 3, None)),
        *(
            (key, "auto or a whole number from 1 to ", (0, -3, 1.5, "many", True, None))
            for key in ("batch_size", "output.images_per_shard", "runtime.workers", "engine.workers", "engine.cpus_per_worker")
        ),
        ("network.seed", "a whole number from 0 to ", (-1, "auto")),
        ("data.max_failed_fraction", "a number from 0 to 1", (1.1, "half", True)),
        ("network.weights", "one of: imagenet, matconvnet, torchvision, random, or a file that exists", (None, "", "imagnet")),
        ("name", "the name of one folder", ("a/b", "..", "")),
        ("part", "k/n with k from 1 to n", ("0/8", "9/8", "x", "3", 3, 0.375, True, ["1/2"], "1/2,2/2")),
        ("engine.gpus_per_worker", "auto or a number from 0 to 1", (2, True)),
        ("engine.address", "null, auto, host:port or ray", ("head", "http://head:80", "", 6379)),
        ("data.tar", "a tar file, a folder of them", ([], 3, ["a.tar", ""], "s3://b/x.tar")),
        ("data.tfds", "a set's name: name, name/config or name:1.0.0", ("../x", 3)),
        ("data.split", "a whole split", ("train[:10%]",)),
        *((key, f"one of: {', '.join(values)}. ", ("sqash", None, 3)) for key, values in CHOICES.items()),
    ],
)
def test_a_wrong_value_names_the_rule(key: str, rule: str, wrong: tuple[Any, ...]) -> None:
    for value in wrong:
        with pytest.raises(OptionError) as caught:
            check_options(nested({"data.dir": "imgs", key: value}))
        assert str(caught.value).startswith(f"{key}: not a valid value, got {value!r}. Expected {rule}")
        assert (caught.value.exit_code, len(str(caught.value).splitlines())) == (2, 1)


# Options, and the beginning of what is said of them.
KERAS = "network.name=keras network.model=ResNet50"
CONFLICTS = {
    "data.dir=null": "data.dir: no images are named, got None. Expected data.dir=FOLDER, ",
    "data.size=null data.decode=fast": "data.decode: nothing is reduced at native size, got 'fast'. Expected exact",
    "data.list=a data.tar=b.tar": "data.tar: the images are named twice, got [",
    "data.tar=b.tar": "data.dir: of no use beside data.tar, got '",
    "data.dir=memory://b data.tfds=c": "data.dir: read from this machine only, got 'memory://b'. Expected a path",
    "data.split=test": "data.split: only a set has splits, got 'test'. Expected data.tfds=NAME too",
    "runtime.device=cpu runtime.precision=tf32": "runtime.precision: a CPU computes in float32, got 'tf32'",
    "runtime.backend=winograd runtime.device=gpu": "runtime.backend: this one computes on a CPU, got 'winograd'",
    "part=3/8 engine.name=ray": "part: engine=ray divides the run itself, got '3/8'",
    "part=3/8 output.existing=fail": "output.existing: others than part=3/8 may write here, got 'fail'.",
    "output.dir=memory://a engine.name=ray": "output.dir: workers of engine=ray write files, got 'memory://a'",
    "engine.workers=2": "engine.name: workers are those of a cluster, got 'local'. Expected engine=ray too.",
    "network.name=keras": "network.model: no model is named, got None. Expected a name or a .keras file",
    f"{KERAS} network.pooling=avg": "network.pooling: of networks of VGG alone, got 'avg'.",
    "network.name=vgg11 network.weights=matconvnet": "network.weights: none such are known, got 'matconvnet'. Expected imagenet,",
    f"{KERAS} network.weights=matconvnet": "network.weights: none such are known, got 'matconvnet'. Expected imagenet, ",
    f"{KERAS} runtime.backend=winograd": "runtime.backend: of VGG networks alone, got 'winograd'. Expected auto or ",
    f"{KERAS} runtime.precision=bfloat16": "runtime.precision: of VGG networks alone, got 'bfloat16'.",
    "network.model=ResNet50": "network.model: of networks of keras alone, got 'ResNet50'.",
    "runtime.convolution=a": "runtime.convolution: there is no such option, got 'runtime.convolution'. Expected one of: runtime.",
    "data.sise=3": "data.sise: there is no such option, got 'data.sise'. Expected one of: data.size",
    "reduction.gem.q=3": "reduction.gem.q: there is no such option, got 'reduction.gem.q'. Expected one of: reduction.gem.p",
}


@pytest.mark.parametrize("words", CONFLICTS)
def test_options_that_exclude_each_other_have_a_message(words: str) -> None:
    given = {key: yaml.safe_load(value) for key, value in (word.split("=") for word in words.split())}
    with pytest.raises(OptionError) as caught:
        check_options(nested({"data.dir": "imgs", **given}))
    assert str(caught.value).startswith(CONFLICTS[words])
    assert len(str(caught.value).splitlines()) == 1


def test_a_backend_that_needs_a_cpu_chooses_it() -> None:
    for backend, device, expected in [("auto", "auto", "auto"), ("tensorflow", "gpu", "gpu"), ("winograd", "auto", "cpu")]:
        assert check_options(values(runtime__backend=backend, runtime__device=device)).runtime.device == expected


def test_the_name_of_a_run_comes_from_its_images() -> None:
    for name, images in {
        "birds-vgg19": {"data.list": "a/birds.csv"},
        "work-vgg19": {"data.dir": "work/."},
        "2024-vgg19": {"data.dir": 2024},
        "train-vgg19": {"data.tar": "x/train.tar"},
        "train.v2-vgg19": {"data.tar": "x/train.v2.TAR"},
        "shards-vgg19": {"data.tar": "shards/*.tar"},
        "sets-vgg19": {"data.tar": "sets"},
        "a-vgg19": {"data.tar": ["a/b/x.tar", "a/c/y.tar"]},
        "mnist-test-vgg19": {"data.tfds": "mnist/x:1.0.0", "data.split": "test"},
        "mnist-vgg19": {"data.tfds": "mnist", "data.dir": "sets"},
        "mine": {"data.dir": "x", "name": "mine"},
    }.items():
        assert check_options(nested(images)).folder == Path("outputs", name)
