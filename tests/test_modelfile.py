"""The model file: what is written comes back to the bit, and what is wrong is refused in one line."""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import mmap
import os
import pickle
import re
import resource
import runpy
import struct
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from verydeep import modelfile
from verydeep.errors import ModelFileError, OutputError
from verydeep.files import strict_json
from verydeep.modelfile import ModelFile, Record, provenance, read, write
from verydeep.nets import NETWORKS, Network, network
from verydeep.preprocess import CAFFE, TORCHVISION

HERE = Path(__file__).parent
GOLDEN = HERE / "golden" / "modelfile.safetensors"
FORMAT = (HERE.parent / "docs" / "format.md").read_text(encoding="utf-8")

TRUNK = network("vgg11", classes=0, width=1 / 512)  # one channel everywhere: the smallest file
QUICK = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def random_tensors(net: Network, seed: int = 0, dtype: str = "<f4") -> dict[str, np.ndarray]:
    """Random bits, so infinities, subnormals and NaNs of all kinds, in the shapes of the table."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for key, shape in net.tensors.items():
        kind = np.dtype("<i8" if key.endswith(".num_batches_tracked") else dtype)
        count = int(np.prod(shape, dtype=int))
        tensors[key] = np.frombuffer(rng.bytes(count * kind.itemsize), kind).reshape(shape)
    return tensors


def quantised(net: Network, seed: int = 0) -> dict[str, np.ndarray]:
    """Like `random_tensors`, with 16-bit weights in the first half of the network, 8-bit after."""
    rng = np.random.default_rng(seed)
    tensors = {k: v for k, v in random_tensors(net, seed).items() if v.ndim < 2}
    weights = {key: shape for key, shape in net.tensors.items() if len(shape) > 1}
    for i, (key, shape) in enumerate(weights.items()):
        kind = np.dtype("<i2" if i < len(weights) // 2 else "i1")
        bound = np.iinfo(kind)
        tensors[f"{key}.q"] = rng.integers(bound.min, bound.max, shape, kind, endpoint=True)
        scale = rng.uniform(1e-4, 1e-2, (shape[0], *[1] * (len(shape) - 1)))
        tensors[f"{key}.scale"] = scale.astype(np.float32)
    return tensors


def assert_same_bits(given: Any, expected: Any) -> None:
    assert given.dtype == expected.dtype
    assert given.shape == expected.shape
    assert given.tobytes() == expected.tobytes()


def refused(path: Path) -> str:
    """The message with which `read` refuses: one printable line that begins with the file's name."""
    with pytest.raises(ModelFileError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert len(message) <= 1000
    return message.removeprefix(f"{path}: ")


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """A file's header as Python values, and its data."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(header: Any, data: bytes) -> bytes:
    """The file of a header (Python values or JSON text) and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A trunk of one channel: 16 tensors."""
    path = tmp_path / "small.safetensors"
    write(path, Record(TRUNK), random_tensors(TRUNK))
    return path


@pytest.fixture
def change(tmp_path: Path) -> Callable[..., str]:
    """Edits a valid file's header in place and gives the message with which it is refused."""

    def changed(
        edit: Callable[[dict[str, Any]], Any], net: Network = TRUNK, q: bool = False
    ) -> str:
        path = tmp_path / "changed.safetensors"
        write(path, Record(net), (quantised if q else random_tensors)(net))
        header, data = split(path.read_bytes())
        result = edit(header)
        path.write_bytes(join(header if result is None else result, data))
        return refused(path)

    return changed


@pytest.fixture
def change_record(change: Callable[..., str]) -> Callable[..., str]:
    """The same for the record inside the header."""

    def changed(edit: Callable[[dict[str, Any]], Any], net: Network = TRUNK) -> str:
        def inside(header: dict[str, Any]) -> None:
            record = json.loads(header["__metadata__"]["verydeep"])
            result = edit(record)
            text = json.dumps(record) if result is None else result
            header["__metadata__"]["verydeep"] = text

        return change(inside, net)

    return changed


# What is written comes back


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_comes_back_to_the_bit(name: str, tmp_path: Path) -> None:
    net = network(name, classes=3, head="small", width=1 / 32)
    tensors = random_tensors(net)
    record = Record(net)
    write(tmp_path / "m.safetensors", record, tensors)
    model = read(tmp_path / "m.safetensors")
    assert model.record == record
    assert list(model.tensors()) == list(net.tensors)
    for key, array in model.tensors().items():
        assert_same_bits(array, tensors[key])
        assert_same_bits(model.stored[key], tensors[key])


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    tensors = random_tensors(TRUNK, dtype="<f2")
    write(tmp_path / "m.safetensors", Record(TRUNK), tensors)
    model = read(tmp_path / "m.safetensors")
    for key, array in model.tensors().items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array.astype(np.float64), tensors[key].astype(np.float64))
        assert_same_bits(model.stored[key], tensors[key])


def test_quantised_weights_are_q_times_scale_in_float32(tmp_path: Path) -> None:
    net = network("vgg11_bn", classes=5, head="gap", layers=("relu5_2",), width=1 / 32)
    tensors = quantised(net)
    write(tmp_path / "m.safetensors", Record(net), tensors)
    model = read(tmp_path / "m.safetensors")
    assert set(model.stored) == set(tensors)
    kinds = {model.stored[name].dtype for name in tensors if name.endswith(".q")}
    assert kinds == {np.dtype("i1"), np.dtype("<i2")}
    for key, array in model.tensors().items():
        if f"{key}.q" not in tensors:
            assert_same_bits(array, tensors[key])
            continue
        for one in np.ndindex(array.shape):  # numpy's scalars, one by one: no broadcasting
            q, scale = tensors[f"{key}.q"][one], tensors[f"{key}.scale"].ravel()[one[0]]
            assert array[one] == np.float32(q) * scale
        assert array.dtype == np.float32
        assert array.shape == net.tensors[key]


def test_some_tensors_can_be_asked_for(small: Path) -> None:
    model = read(small)
    keys = ["features.8.bias", "features.0.weight"]
    assert list(model.tensors(keys)) == keys
    with pytest.raises(ModelFileError, match=r"^vgg11 has no tensor 'features\.0\.wait'; did you"):
        model.tensors(["features.0.wait"])


def test_sha256_is_that_of_the_file_that_was_opened(small: Path) -> None:
    model = read(small)
    before = hashlib.sha256(small.read_bytes()).hexdigest()
    write(small, Record(TRUNK), random_tensors(TRUNK, seed=1))
    assert model.sha256 == before
    assert read(small).sha256 == hashlib.sha256(small.read_bytes()).hexdigest() != before


def test_the_stamp_is_that_of_the_file_that_was_opened(small: Path) -> None:
    model, again = read(small), read(small)
    assert model.stamp == again.stamp
    status = small.stat()
    assert model.stamp[:2] == (status.st_dev, status.st_ino)
    assert model.stamp[3:] == (status.st_size, status.st_mtime_ns)
    write(small, Record(TRUNK), random_tensors(TRUNK, seed=1))
    os.utime(small, ns=(status.st_atime_ns, status.st_mtime_ns))  # the new file claims the old date
    assert model.stamp == again.stamp != read(small).stamp


def test_stored_arrays_are_views_that_outlive_the_model_file(small: Path) -> None:
    model = read(small)
    array = model.stored["features.0.weight"]
    assert not array.flags.owndata
    assert not array.flags.writeable
    assert np.shares_memory(model.tensors()["features.0.weight"], array)
    expected = random_tensors(TRUNK)["features.0.weight"]
    del model
    small.unlink()
    assert_same_bits(array, expected)
    assert "small.safetensors" in repr(read_again(small))


def test_torch_shares_the_pages_and_never_changes_the_file(small: Path) -> None:
    import torch

    model, content = read(small), small.read_bytes()
    array = model.tensors(["features.0.weight"], writable=True)["features.0.weight"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = torch.from_numpy(array)
    assert tensor.data_ptr() == model.stored["features.0.weight"].ctypes.data
    tensor.fill_(7)
    assert small.read_bytes() == content
    assert_same_bits(
        read(small).tensors()["features.0.weight"], random_tensors(TRUNK)["features.0.weight"]
    )


def test_without_memory_to_promise_it_is_mapped_to_be_read_only(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = mmap.mmap

    def refuse(*given: Any, access: int) -> mmap.mmap:
        if access == mmap.ACCESS_COPY:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return real(*given, access=access)

    monkeypatch.setattr(mmap, "mmap", refuse)
    model = read(small)
    array = model.tensors(["features.0.bias"], writable=True)["features.0.bias"]
    array[:] = 7
    assert_same_bits(model.stored["features.0.bias"], random_tensors(TRUNK)["features.0.bias"])


def test_pickled_it_opens_its_file_again_and_no_other(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(small.parent)
    model = read(small.name)
    pickled = pickle.dumps(model)
    assert len(pickled) < 1000
    monkeypatch.chdir("/")
    again = pickle.loads(pickled)
    assert (again.record, again.stamp) == (model.record, model.stamp)
    assert_same_bits(again.stored["features.0.bias"], model.stored["features.0.bias"])
    small.with_name("copy").write_bytes(small.read_bytes())  # as on another machine
    small.with_name("copy").replace(small)
    copied = pickle.loads(pickled)
    assert copied.stamp != model.stamp
    assert_same_bits(copied.stored["features.0.bias"], model.stored["features.0.bias"])
    write(small, Record(TRUNK), random_tensors(TRUNK, seed=1))
    with pytest.raises(ModelFileError, match=r"small\.safetensors: it is not the file any more"):
        pickle.loads(pickled)
    small.unlink()
    with pytest.raises(ModelFileError, match=r"small\.safetensors: there is no such file$"):
        pickle.loads(pickled)


def read_again(path: Path) -> ModelFile:
    write(path, Record(TRUNK), random_tensors(TRUNK))
    return read(path)


def test_opening_does_not_read_the_weights(tmp_path: Path) -> None:
    """130 GB of zeros that take no room on the disk, nor in memory."""
    net = network("vgg16", width=16)
    layout, end = {}, 0
    for key, shape in net.tensors.items():
        begin, end = end, end + 4 * int(np.prod(shape))
        layout[key] = modelfile.Tensor("F32", shape, begin, end)
    metadata = {"verydeep": Record(net).to_json()}
    path = tmp_path / "sparse.safetensors"
    beginning = modelfile.encode(metadata, layout)
    with open(path, "wb") as file:
        file.write(beginning)
        try:
            file.truncate(len(beginning) + end)
        except OSError as error:
            pytest.skip(f"this file system has no files of {end} bytes: {error}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = read(path)
    stored = sum(array.nbytes for array in model.stored.values())
    floats = sum(array.nbytes for array in model.tensors().values())
    assert stored == floats == end > 2**36
    assert model.tensors()["classifier.6.weight"][-1, -1] == 0  # the last page is there to be read
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * (1 if sys.platform == "darwin" else 1024) < 64 * 2**20


def test_neither_reading_nor_writing_imports_what_they_do_not_need(tmp_path: Path) -> None:
    code = """
        import sys
        from verydeep.modelfile import read, write
        model = read(sys.argv[1])
        model.tensors()
        write(sys.argv[2], model.record, model.stored)
        print(*sys.modules)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), GOLDEN, tmp_path / "m.safetensors"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=HERE.parent)
    loaded = set(done.stdout.split())
    assert {"numpy", "verydeep.modelfile"} <= loaded  # so the list is what it seems to be
    assert not loaded & {"torch", "PIL", "onnx", "onnxruntime", "click"}


# The bytes


def test_golden_bytes_are_what_the_specification_alone_makes() -> None:
    made = runpy.run_path(str(HERE / "golden" / "modelfile_make.py"))
    assert GOLDEN.read_bytes() == made["file_bytes"]()


def test_golden_file_is_read() -> None:
    made = runpy.run_path(str(HERE / "golden" / "modelfile_make.py"))
    model = read(GOLDEN)
    record, expected = model.record, made["RECORD"]
    assert record.network.name == "vgg11_bn"
    assert (record.network.in_channels, record.network.pool) == (1, "avg")
    assert record.network.head.layers == ("relu4_2", "relu5_2")
    assert record.preprocess.to_dict() == expected["preprocess"]
    assert record.class_names == ("Vulpes macrotis", "Zaun – „chainlink“")
    assert record.class_ids == tuple(expected["class_ids"])
    assert (record.threshold, record.licence) == (0.25, "CC0-1.0")
    assert record.provenance == expected["provenance"]
    assert list(record.measured) == expected["measured"]
    assert list(model.stored) == list(split(GOLDEN.read_bytes())[0])[1:]
    for name, (_, shape, _, values) in made["tensors"]().items():
        np.testing.assert_array_equal(
            model.stored[name], np.array(values, model.stored[name].dtype).reshape(shape)
        )
    # The first weight's last element is 8191 * 4 at scale 2^-15, the classifier's first -128 at 0.5.
    assert model.tensors()["features.0.weight"][0, 0, 2, 2] == 0.999877929687500
    assert model.tensors()["classifier.weight"].tolist() == [[-64, 63.5], [0.25, 0]]


def test_golden_file_is_written_byte_for_byte(tmp_path: Path) -> None:
    model = read(GOLDEN)
    write(tmp_path / "again.safetensors", model.record, model.stored)
    assert (tmp_path / "again.safetensors").read_bytes() == GOLDEN.read_bytes()


def test_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    tensors = random_tensors(TRUNK)
    write(tmp_path / "a", Record(TRUNK), tensors)
    disguised = {}
    for i, (key, array) in enumerate(reversed(tensors.items())):
        if i % 3 == 0:
            array = np.asfortranarray(array)
        elif i % 3 == 1:
            array = array.astype(">f4")
        else:
            array = np.repeat(array, 2, axis=0)[::2]
        disguised[key] = array
    write(tmp_path / "b", Record(TRUNK, provenance={}), disguised)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_provenance_in_another_order_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, free in (
        ("a", {"x": 1, "y": {"p": 1, "q": 2}}),
        ("b", {"y": {"q": 2, "p": 1}, "x": 1}),
    ):
        write(tmp_path / name, Record(TRUNK, provenance=free), random_tensors(TRUNK))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_whole_width_is_written_as_a_float() -> None:
    assert (
        Record(network("vgg16", width=2)).to_json() == Record(network("vgg16", width=2.0)).to_json()
    )


@pytest.mark.parametrize("pad", range(8))
def test_mapped_tensors_are_aligned(pad: int, tmp_path: Path) -> None:
    net = network("vgg11_bn", classes=3, head="gap", layers=("relu5_2",), width=1 / 512)
    write(tmp_path / "m", Record(net, licence="x" * pad), quantised(net))
    model = read(tmp_path / "m")
    kinds = {array.dtype.itemsize for array in model.stored.values()}
    assert kinds == {1, 2, 4, 8}
    for array in model.stored.values():
        assert array.ctypes.data % array.dtype.itemsize == 0
        assert array.flags.aligned


# Other programs


def test_safetensors_reads_what_we_write(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.numpy import load_file

    net = network("vgg11_bn", classes=3, head="gap", layers=("relu5_2",), width=1 / 64)
    tensors = quantised(net)
    record = Record(net, class_names=("a", 'ä"\\', "日本"))
    write(tmp_path / "m.safetensors", record, tensors)
    found = load_file(tmp_path / "m.safetensors")
    assert set(found) == set(tensors)
    for name, array in found.items():
        assert_same_bits(array, tensors[name])
    with safe_open(tmp_path / "m.safetensors", "np") as file:
        assert file.metadata() == {"verydeep": record.to_json()}


def test_we_read_what_safetensors_writes(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    net = network("vgg13", classes=3, head="small", width=1 / 64)
    tensors = quantised(net)
    metadata = {"format": "pt", "verydeep": Record(net).to_json()}
    save_file(tensors, tmp_path / "m.safetensors", metadata)
    model = read(tmp_path / "m.safetensors")
    assert set(model.stored) == set(tensors)
    for name, array in model.stored.items():
        assert_same_bits(array, tensors[name])


def test_tensors_at_odd_places_are_read(small: Path) -> None:
    """A foreign writer need not align the data."""
    content = small.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    small.write_bytes(join(content[8 : 8 + length] + b" ", content[8 + length :]))
    model = read(small)
    assert not model.stored["features.0.weight"].flags.aligned
    for key, array in random_tensors(TRUNK).items():
        assert_same_bits(model.tensors()[key], array)
        assert model.tensors()[key].flags.aligned


TORCHVISION_NETWORKS = [name for name in NETWORKS if "lrn" not in name and "16c" not in name]


@pytest.mark.parametrize("dtype", ["<f4", "<f2"])
@pytest.mark.parametrize("name", TORCHVISION_NETWORKS)
def test_torchvision_loads_it_strictly(name: str, dtype: str, tmp_path: Path) -> None:
    """Torchvision's own layers with fewer channels, since it has no width, and their values."""
    import torch
    from safetensors.torch import load_file
    from torchvision.models import vgg

    net = network(name, classes=5, width=1 / 16)
    rng = np.random.default_rng(0)
    tensors = {
        key: np.array(7) if shape == () else rng.normal(size=shape).astype(dtype)
        for key, shape in net.tensors.items()
    }
    path = tmp_path / f"{name}.safetensors"
    write(path, Record(net), tensors)
    column = [c if c == "M" else c // 16 for c in vgg.cfgs[net.column]]
    with torch.device("meta"):  # its classifier is replaced, so never made
        module = vgg.VGG(vgg.make_layers(column, net.batch_norm), init_weights=False)
        for i, (inputs, outputs) in {0: (32 * 49, 256), 3: (256, 256), 6: (256, 5)}.items():
            module.classifier[i] = torch.nn.Linear(inputs, outputs)
    module.to_empty(device="cpu")
    module.load_state_dict(load_file(path))
    for key, value in module.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), tensors[key], err_msg=key)


@pytest.mark.parametrize("dtype", ["F32", "F16"])
@pytest.mark.parametrize("name", TORCHVISION_NETWORKS)
def test_torchvision_loads_the_real_sizes_strictly(name: str, dtype: str, tmp_path: Path) -> None:
    """Sparse files of zeros, and modules without memory."""
    import torch
    import torchvision
    from safetensors.torch import load_file

    net = network(name)
    layout, end = {}, 0
    for key, shape in sorted(net.tensors.items(), key=lambda item: item[1] != ()):
        kind = dtype if shape else "I64"
        size = int(np.prod(shape, dtype=int)) * modelfile.DTYPES[kind].itemsize
        begin, end = end, end + size
        layout[key] = modelfile.Tensor(kind, shape, begin, end)
    header = modelfile.encode({"verydeep": Record(net).to_json()}, layout)
    path = tmp_path / f"{name}.safetensors"
    with open(path, "wb") as file:
        file.write(header)
        file.truncate(file.tell() + end)
    assert read(path).record.network == net
    with torch.device("meta"):
        module = getattr(torchvision.models, name)()
    module.load_state_dict(load_file(path), assign=True)
    assert module.classifier[6].weight.dtype == getattr(
        torch, {"F32": "float32", "F16": "half"}[dtype]
    )


def test_torch_refuses_quantised_weights(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    net = network("vgg11", classes=2, head="gap", layers=("relu5_2",), width=1 / 64)
    write(tmp_path / "m.safetensors", Record(net), quantised(net))
    module = torch.nn.Module()
    module.classifier = torch.nn.Linear(8, 2)
    with pytest.raises(RuntimeError, match=r"Missing key.*classifier\.weight"):
        module.load_state_dict(load_file(tmp_path / "m.safetensors"))


# The specification


def test_reader_in_the_specification_reads_the_golden_file() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", FORMAT, re.DOTALL)
    scope: dict[str, Any] = {}
    exec(code, scope)
    record, weights = scope["load"](GOLDEN)
    model = read(GOLDEN)
    assert record == json.loads(model.record.to_json())
    assert set(weights) == set(model.tensors())
    for key, array in model.tensors().items():
        assert_same_bits(weights[key], array)


def test_record_in_the_specification_is_one() -> None:
    (text,) = re.findall(r"```json\n(.*?)```", FORMAT, re.DOTALL)
    record = Record.from_json(text)
    assert record.network == network("vgg16", classes=2, head="gap", layers=("relu5_3",))
    assert record.preprocess == TORCHVISION
    assert json.loads(record.to_json()) == json.loads(text)


def test_specification_names_every_member_and_limit() -> None:
    record = json.loads(Record(TRUNK).to_json())
    for member in (*record, *record["network"], *record["network"]["head"], *record["preprocess"]):
        assert f"`{member}`" in FORMAT, member
    assert f"{modelfile.MAX_HEADER_BYTES:,}" in FORMAT
    assert f"at most {strict_json.MAX_DEPTH} levels" in FORMAT
    assert f"model file, versions 1 to {modelfile.FORMAT_VERSION}\n" in FORMAT


# The record

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=20,
)
JSON_OBJECTS = st.dictionaries(st.text("abcé ", max_size=5), JSON_VALUES, max_size=4)
NAMES = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=20)


@given(
    ids=st.lists(NAMES, min_size=3, max_size=3, unique=True) | st.just([]),
    names=st.lists(NAMES, min_size=3, max_size=3) | st.just([]),
    threshold=st.none() | st.floats(0, 1),
    provenance=JSON_OBJECTS,
    figure=JSON_OBJECTS,
)
@QUICK
def test_record_comes_back(
    ids: list[str], names: list[str], threshold: float | None, provenance: Any, figure: Any
) -> None:
    record = Record(
        network("vgg19_bn", classes=3, head="gap", layers=("conv4_1", "pool5"), width=1 / 3),
        CAFFE,
        tuple(ids),
        tuple(names),
        threshold,
        "BSD-3-Clause",
        provenance,
        ({**figure, "what": "top1", "value": 0.5, "protocol": "held-out photos"},),
    )
    again = Record.from_json(record.to_json())
    assert again == record
    assert hash(again) == hash(record)
    assert again.to_json() == record.to_json()


def test_thresholds_come_back_and_are_in_no_other_record() -> None:
    net = network("vgg11", classes=2, width=1 / 64)
    record = Record(net, thresholds=[0, 0.25])  # type: ignore[arg-type]
    assert record.thresholds == (0.0, 0.25)
    assert Record.from_json(record.to_json()) == record
    assert '"thresholds":[0.0,0.25]' in record.to_json()
    assert "thresholds" not in Record(net).to_json()
    assert Record.from_json(Record(net).to_json()).thresholds == ()
    assert "`thresholds`" in FORMAT


def test_record_is_a_copy_that_later_changes_do_not_reach() -> None:
    free: dict[str, Any] = {"a": [1]}
    record = Record(TRUNK, provenance=free)
    free["a"].append(float("nan"))
    assert record.provenance == {"a": [1]}


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"class_ids": ("a",)}, r"the record has 1 class_ids, but the head has 2 classes"),
        ({"class_names": list("abc")}, r"has 3 class_names, but the head has 2 classes"),
        ({"class_ids": ("a", "a")}, r"the class id 'a' twice"),
        ({"class_names": "ab"}, r"class_names is 'ab'; expected a list of names"),
        ({"class_names": ("a", "")}, r"class_names has ''; expected 1 to 1000 characters"),
        ({"class_names": ("a", "b\n")}, r"class_names has 'b\\n'; expected"),
        ({"class_names": ("a", "\x1b[31m")}, r"class_names has '\\x1b\[31m'; expected"),
        ({"class_names": ("a", "\u2028")}, r"class_names has '\\u2028'; expected"),
        ({"class_names": ("a", "\u2029")}, r"class_names has '\\u2029'; expected"),
        ({"class_names": ("a", "\ud800")}, r"class_names has '\\ud800'; expected"),
        ({"class_names": ("a", "x" * 1001)}, r"class_names has 'x+\.\.\.x+'; expected"),
        ({"class_names": ("a", 1)}, r"class_names has 1; expected"),
        ({"class_names": ("a", None)}, r"class_names has None; expected"),
        ({"threshold": 1.5}, r"threshold is 1\.5; expected 0 to 1, or null"),
        ({"threshold": -0.1}, r"threshold is -0\.1; expected"),
        ({"threshold": float("nan")}, r"threshold is nan; expected"),
        ({"threshold": True}, r"threshold is True; expected"),
        ({"threshold": "0.5"}, r"threshold is '0\.5'; expected"),
        ({"thresholds": 0.5}, r"thresholds is 0\.5; expected a list of numbers, 0 to 1"),
        ({"thresholds": (0.5, 1.5)}, r"thresholds is \(0\.5, 1\.5\); expected a list"),
        ({"thresholds": (True, 0.5)}, r"thresholds is \(True, 0\.5\); expected a list"),
        ({"thresholds": (0.5,)}, r"has 1 thresholds, but the head has 2 classes"),
        (
            {"thresholds": (0.5, 1), "threshold": 0.5},
            r"thresholds, and also threshold or least_mean",
        ),
        ({"thresholds": (0.5, 1), "least_mean": 0}, r"expected one or the other"),
        ({"licence": "a\nb"}, r"licence is 'a\\nb'; expected one line of text"),
        ({"licence": None}, r"licence is None; expected one line of text"),
        ({"provenance": []}, r"provenance is \[\]; expected a JSON object"),
        (
            {"provenance": {"x": float("inf")}},
            r"provenance cannot be stored: it has the number inf",
        ),
        ({"provenance": {"x": {1, 2}}}, r"provenance cannot be stored: it has a set, which JSON"),
        ({"provenance": {1: 2}}, r"provenance cannot be stored: it has the key 1; expected text"),
        ({"provenance": {"x": 2**63}}, r"an integer that does not fit in 64 bits"),
        ({"provenance": {"x": "\udfff"}}, r"a lone surrogate in '\\udfff'"),
        ({"measured": {"what": 1}}, r"measured is \{'what': 1\}; expected a list"),
        ({"measured": ("top1",)}, r"measured\[0\] is 'top1'; expected a JSON object"),
        (
            {"measured": ({"what": "a", "value": 1},)},
            r"\[0\] has None as 'protocol'; expected text",
        ),
        ({"measured": ({"value": 1, "protocol": "p"},)}, r"has None as 'what'; expected text"),
        (
            {"measured": ({"what": "a", "value": "1", "protocol": "p"},)},
            r"has '1' as 'value'; expected a number",
        ),
        (
            {"measured": ({"what": "a", "value": True, "protocol": "p"},)},
            r"has True as 'value'; expected a number",
        ),
    ],
)
def test_record_refuses(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFileError, match=message) as caught:
        Record(network("vgg11", classes=2, width=1 / 64), **choices)
    assert str(caught.value).isprintable()


def test_record_refuses_a_network_that_was_cut() -> None:
    with pytest.raises(ModelFileError, match=r"the network is vgg16 cut short; expected all of it"):
        Record(network("vgg16").cut(("relu3_1",)))


def test_record_refuses_deep_nesting() -> None:
    deep: Any = 1
    for _ in range(40):
        deep = [deep]
    with pytest.raises(ModelFileError, match=r"nested deeper than 32 levels"):
        Record(TRUNK, provenance={"deep": deep})
    with pytest.raises(ModelFileError, match=r"nested deeper than 32 levels"):
        Record.from_json("[" * 100_000 + "]" * 100_000)


def test_deepest_nesting_comes_back() -> None:
    deep: Any = 1
    for _ in range(strict_json.MAX_DEPTH - 2):  # the record and its provenance lie around it
        deep = [deep]
    record = Record(TRUNK, provenance={"deep": deep})
    assert Record.from_json(record.to_json()) == record
    with pytest.raises(ModelFileError):
        Record(TRUNK, provenance={"deep": [deep]})


# Headers that lie


def set_entry(name: str, **values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda header: header[name].update(values)


@pytest.mark.parametrize(
    "edit",
    [
        # features.0.weight is (1, 3, 3, 3), 108 bytes, features.0.bias (1,), 4 bytes
        *(
            set_entry("features.0.bias", data_offsets=offsets)
            for offsets in (
                [0, 8], [4, 8], [2**62, 2**62 + 4], [-4, 0], [8, 4], [0], [0.0, 4.0], [False, 4],
                [0, 4, 8], "04", None,
            )
        ),
        set_entry("features.3.bias", data_offsets=[0, 4]),  # overlaps the first
        *(
            set_entry("features.0.bias", shape=shape)
            for shape in ([2], [-1], [True], [1.0], ["1"], 1, [2**62] * 8)
        ),
        *(
            set_entry("features.0.bias", dtype=dtype)
            for dtype in ("F31", None, ["F32"], "F64", "F4")
        ),
        lambda h: h["features.0.bias"].pop("shape"),
        lambda h: h.update({"features.0.bias": []}),
        lambda h: h.update({"a\nb": 1}),
        lambda h: h.update(__metadata__=[]),
        lambda h: h["__metadata__"].update(x=1),
        lambda _: b"{}",
    ],
)  # fmt: skip
def test_header_that_does_not_fit_is_refused(
    edit: Callable[[dict[str, Any]], Any], change: Callable[..., str]
) -> None:
    """The safetensors library gives the reason."""

    def only_bytes_replace(header: dict[str, Any]) -> bytes | None:
        result = edit(header)
        return result if isinstance(result, bytes) else None

    message = change(only_bytes_replace)
    assert message.startswith("its header does not fit the file: ")
    assert message.endswith("; it was cut short, added to or damaged: fetch or write it again")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            set_entry("features.0.bias", data_offsets=[0, 2**64]),
            r"an integer that does not fit in 64 bits",
        ),
        (set_entry("features.0.bias", shape=[1] * 10**5), r"shape \[1, .*\], but vgg11 .* \[1\]$"),
        (set_entry("features.0.bias", extra=1), r"expected dtype, shape and data_offsets"),
        (
            lambda h: h.update({"features.0.bias": ["F32", [1], [0, 4]]}),  # the library takes it
            r"is described by \['F32', \[1\], \[0, 4\]\]; expected dtype, ",
        ),
        (lambda h: json.dumps(h).encode()[:-1] + b',"__metadata__":{}}', r"'__metadata__' twice"),
        (
            lambda h: json.dumps(h).encode()[:-1] + b',"features.0.bias":0}',
            r"'features.0.bias' twice",
        ),
        (
            lambda _: b'{"x": NaN}',
            r"cannot be read as JSON: it has the number nan; expected",
        ),
        (lambda _: b'{"x": -Infinity}', r"it has the number -inf; expected a finite one"),
        (lambda _: b'{"x": 1e999}', r"it has the number inf; expected a finite one"),
        (lambda _: b'{"x": ' + b"9" * 10**6 + b"}", r"an integer that does not fit in 64 bits"),
        (lambda _: b'{"x": ' + b"[" * 10**5 + b"]" * 10**5 + b"}", r"nested deeper than 32 levels"),
        (
            lambda _: b'{"x": "\xff"}',
            r"cannot be read as JSON: 'utf-8' codec can't decode byte 0xff",
        ),
        (lambda _: b'{"x": "\\ud800"}', r"it has a lone surrogate in '\\ud800'"),
        (lambda _: b'{"x"', r"cannot be read as JSON: Expecting ':' delimiter"),
        (lambda _: b"{} {}", r"cannot be read as JSON: Extra data"),
        (lambda _: b' {"x": 0}', r"first eight bytes are not followed by '\{' but by b' '"),
        (lambda _: b"[0000000]", r"first eight bytes are not followed by '\{' but by b'\['"),
    ],
)
def test_lying_header_is_refused(
    edit: Callable[[dict[str, Any]], Any], message: str, change: Callable[..., str]
) -> None:
    def only_bytes_replace(header: dict[str, Any]) -> bytes | None:
        result = edit(header)
        return result if isinstance(result, bytes) else None

    assert re.search(message, change(only_bytes_replace))


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (0, r"its header cannot be read as JSON: Expecting value"),
        (1, r"its header cannot be read as JSON: Expecting property name"),
        (2**23, r"the file ends after \d+ bytes, but its header alone takes 8388616; .* cut short"),
        (2**23 + 1, r"say that the header is 8388609 bytes long; expected at most 8388608"),
        (2**64 - 1, r"say that the header is 18446744073709551615 bytes long; expected at most"),
    ],
)
def test_header_length_that_lies_is_refused(length: int, message: str, small: Path) -> None:
    small.write_bytes(struct.pack("<Q", length) + small.read_bytes()[8:])
    assert re.search(message, refused(small))


def test_every_truncation_is_refused(small: Path) -> None:
    content = small.read_bytes()
    for length in reversed(range(len(content))):
        os.truncate(small, length)
        message = refused(small)
        if length > 8:
            assert "cut short" in message
    small.write_bytes(content + b"\0")
    assert "added to" in refused(small)
    small.write_bytes(content)
    read(small)


# Tensors that contradict the table


def swap_name(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    return lambda header: header.update({new: header.pop(old)})


def test_shape_that_contradicts_the_table(change: Callable[..., str]) -> None:
    assert change(set_entry("features.0.weight", shape=[3, 1, 3, 3])) == (
        "the tensor features.0.weight has the shape [3, 1, 3, 3], but vgg11 with the record's "
        "choices has [1, 3, 3, 3]"
    )


def test_dtype_that_a_model_file_does_not_have(change: Callable[..., str]) -> None:
    assert change(set_entry("features.0.weight", dtype="I32")) == (
        "the tensor features.0.weight has the dtype I32; expected F32 or F16"
    )


def test_counter_that_is_not_int64(change: Callable[..., str]) -> None:
    net = network("vgg11_bn", classes=0, width=1 / 512)
    message = change(set_entry("features.1.num_batches_tracked", dtype="F64"), net)
    assert message == "the tensor features.1.num_batches_tracked has the dtype F64; expected I64"


def test_missing_tensor_beside_a_misspelt_one(change: Callable[..., str]) -> None:
    assert change(swap_name("features.0.weight", "features.0.weigth")) == (
        "the tensor features.0.weight, which vgg11 needs, is missing; it has 'features.0.weigth', "
        "which is unknown"
    )


def test_missing_tensors(tmp_path: Path) -> None:
    tensors = random_tensors(network("vgg11", width=1 / 512, classes=0))
    wider = Record(network("vgg13", width=1 / 512, classes=0))
    with pytest.raises(ModelFileError) as caught:
        write(tmp_path / "m", wider, tensors)
    assert str(caught.value) == (
        f"{tmp_path / 'm'}: the tensor features.2.weight, which vgg13 needs, is missing "
        "(and 17 more); it has 'features.11.bias', which is unknown (and 13 more)"
    )


def test_extra_tensor(change: Callable[..., str]) -> None:
    # Without elements it shares its place with the first tensor, and overlaps nothing.
    def add(header: dict[str, Any]) -> None:
        header["features.0.bais"] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}

    assert change(add).startswith(
        "it has a tensor 'features.0.bais', which vgg11 does not; did you mean features.0.bias"
    )


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            swap_name("features.0.weight.scale", "features.0.weight"),
            "it has features.0.weight both as floats and quantised; expected one",
        ),
        (
            swap_name("features.0.weight.scale", "features.0.weight.sacle"),
            "the tensor features.0.weight.scale, which vgg11 needs, is missing; "
            "it has 'features.0.weight.sacle', which is unknown",
        ),
        (
            swap_name("features.0.weight.q", "features.0.weight.quant"),
            "the tensor features.0.weight.q, which vgg11 needs, is missing; "
            "it has 'features.0.weight.quant', which is unknown",
        ),
        (
            swap_name("features.0.bias", "features.0.bias.q"),
            "the tensor features.0.bias, which vgg11 needs, is missing; "
            "it has 'features.0.bias.q', which is unknown",
        ),
        (
            set_entry("features.0.weight.scale", shape=[1]),
            "the tensor features.0.weight.scale has the shape [1], but vgg11 with the record's "
            "choices has [1, 1, 1, 1]",
        ),
        (
            set_entry("features.0.weight.scale", dtype="I32"),
            "the tensor features.0.weight.scale has the dtype I32; expected F32",
        ),
        (
            set_entry("features.0.weight.q", dtype="U16"),
            "the tensor features.0.weight.q has the dtype U16; expected I8 or I16",
        ),
    ],
)
def test_quantised_tensors_come_in_pairs(
    edit: Callable[[dict[str, Any]], None], message: str, change: Callable[..., str]
) -> None:
    assert change(edit, q=True) == message


@pytest.mark.parametrize("missing", ["q", "scale"])
def test_half_a_pair_is_refused(missing: str, tmp_path: Path) -> None:
    tensors = quantised(TRUNK)
    del tensors[f"features.3.weight.{missing}"]
    message = rf"the tensor features\.3\.weight\.{missing}, which vgg11 needs, is missing$"
    with pytest.raises(ModelFileError, match=message):
        write(tmp_path / "m", Record(TRUNK), tensors)


@pytest.mark.parametrize("value", [0.0, -0.0, -1.0, float("nan"), float("inf"), -float("inf")])
def test_scales_are_finite_and_above_zero(value: float, tmp_path: Path) -> None:
    tensors = quantised(TRUNK)
    path = tmp_path / "m.safetensors"
    write(path, Record(TRUNK), tensors)
    good = read(path).stored["features.8.weight.scale"].tobytes()
    bad = struct.pack("<f", value)
    content = path.read_bytes()
    assert content.count(good) == 1
    path.write_bytes(content.replace(good, bad))
    expected = f"the tensor features.8.weight.scale has the value {value}; expected finite numbers"
    assert refused(path).startswith(expected)
    tensors["features.8.weight.scale"] = np.full((1, 1, 1, 1), value, np.float32)
    with pytest.raises(ModelFileError, match=re.escape(expected)):
        write(path, Record(TRUNK), tensors)
    assert path.read_bytes() == content.replace(good, bad)


def test_huge_scales_overflow_in_silence(tmp_path: Path) -> None:
    tensors = quantised(TRUNK)
    tensors["features.0.weight.scale"] = np.full((1, 1, 1, 1), 3e38, np.float32)
    tensors["features.3.weight.scale"] = np.full((1, 1, 1, 1), 1e-45, np.float32)
    write(tmp_path / "m", Record(TRUNK), tensors)
    assert np.isinf(read(tmp_path / "m").tensors()["features.0.weight"]).any()


# Records that lie


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda r: r.update(format_version=4),
            r"^written by a newer verydeep: its format version is 4, and this verydeep reads those up to "
            r"3; upgrade with: pip install --upgrade verydeep$",
        ),
        (
            lambda r: r.update(format_version=4, surprise=1),
            r"^written by a newer verydeep",
        ),
        (lambda r: r.update(format_version=0), r"format_version is 0; expected 1 to 3"),
        (lambda r: r.update(format_version=True), r"format_version is True; expected 1"),
        (lambda r: r.update(format_version="1"), r"format_version is '1'; expected 1"),
        (lambda r: r.pop("format_version"), r"the record has no 'format_version'"),
        (
            lambda r: r.update(treshold=1),
            r"^the record has an unknown key 'treshold'; did you mean threshold or thresholds\?$",
        ),
        (lambda r: r.update({"a\nb" * 1000: 1}), r"the record has an unknown key 'a\\nb"),
        (lambda r: r.pop("measured"), r"^the record has no 'measured'$"),
        (lambda r: r["network"].pop("pool") and None, r"^the record's network has no 'pool'$"),
        (
            lambda r: r["network"].update(batchnorm=1),
            r"^the record's network has an unknown key 'batchnorm'; did you mean batch_norm\?$",
        ),
        (
            lambda r: r["network"]["head"].update(layer=1),
            r"^the record's network's head has an unknown key 'layer'; did you mean layers\?$",
        ),
        (
            lambda r: r["network"].update(channels=[1] * 8),
            r"^the record's network has an unknown key 'channels'; did you mean in_channels\?$",
        ),
        (
            lambda r: r["network"].update(channels=[1, 2]) or r.update(format_version=3),
            r"channels are \[1, 2\]; expected 8 whole numbers",
        ),
        (lambda r: r["network"].update(column="F"), r"^its record does not .*: column 'F' is unk"),
        (lambda r: r["network"].update(column=["A"]), r"column \['A'\] is unknown"),
        (lambda r: r["network"].update(batch_norm=0), r"batch_norm is 0; expected true or false"),
        (lambda r: r["network"].update(width=0), r"width is 0; expected a number above 0"),
        (lambda r: r["network"].update(width="1"), r"width is '1'; expected a number above 0"),
        (lambda r: r["network"].update(width=[1]), r"width is \[1\]; expected a number above 0"),
        (lambda r: r["network"].update(width=True), r"width is True; expected a number above 0"),
        (lambda r: r["network"].update(in_channels=3.0), r"in_channels is 3\.0; expected a whole"),
        (lambda r: r["network"].update(pool="min"), r"pool 'min' is unknown; expected one of: max"),
        (lambda r: r["network"].update(pool={}), r"pool \{\} is unknown"),
        (lambda r: r["network"].update(head=None), r"network's head is None; expected a JSON obj"),
        (lambda r: r["network"]["head"].update(kind="gape"), r"head 'gape' is unknown"),
        (lambda r: r["network"]["head"].update(kind=1), r"head 1 is unknown"),
        (lambda r: r["network"]["head"].update(classes=-1), r"classes is -1; expected a whole"),
        (lambda r: r["network"]["head"].update(classes=2.0), r"classes is 2\.0; expected a whole"),
        (
            lambda r: r["network"]["head"].update(classes=2**62),
            r"classifier\.0\.weight.*is missing",
        ),
        (lambda r: r["network"]["head"].update(layers="a"), r"layers are 'a'; expected a list"),
        (
            lambda r: r["network"]["head"].update(layers=[["a"]]),
            r"layers are \[\['a'\]\]; expected names",
        ),
        (
            lambda r: r["network"]["head"].update(kind="gap", classes=2, layers=["relu9_1"]),
            r"vgg11 has no layer 'relu9_1'",
        ),
        (
            lambda r: r["network"]["head"].update(kind="gap", layers=["relu5_2"] * 1000),
            r"^its record does not make sense: head names a layer twice: relu5_2, .*…$",
        ),
        (lambda r: r.update(network=[]), r"the record's network is \[\]; expected a JSON object"),
        (lambda r: r.update(preprocess=3), r"pre-processing record is 3; expected a JSON object"),
        (lambda r: r["preprocess"].update(crop=3), r"^its record does not make sense: .*'crop'"),
        (lambda r: r["preprocess"].pop("mean"), r"^its record does not make sense: .*mean"),
        (lambda r: r["preprocess"].update(mean=[1]), r"^its record does not make sense: .*mean"),
        (lambda r: r.update(class_ids=["a"]), r"the record has 1 class_ids, but the head has 0"),
        (lambda r: r.update(class_ids=None), r"class_ids is None; expected a list of names"),
        (lambda r: r.update(threshold=2), r"threshold is 2; expected 0 to 1"),
        (lambda r: r.update(thresholds=None), r"thresholds is None; expected a list of numbers"),
        (lambda r: r.update(thresholds=[0.5]), r"has 1 thresholds, but the head has 0 classes"),
        (lambda _: "", r"its record cannot be read as JSON: Expecting value"),
        (lambda _: "[]", r"the record is \[\]; expected a JSON object"),
        (lambda _: "null", r"the record is None; expected a JSON object"),
        (lambda r: json.dumps(r)[:-1] + ',"licence":""}', r"it has the key 'licence' twice"),
        (lambda r: json.dumps({**r, "threshold": np.nan}), r"it has the number nan; expected a"),
        (lambda _: "[" * 10**5 + "]" * 10**5, r"it is nested deeper than 32 levels"),
        (lambda _: "9" * 10**5, r"it has an integer that does not fit in 64 bits"),
    ],
)
def test_lying_record_is_refused(
    edit: Callable[[dict[str, Any]], Any], message: str, change_record: Callable[..., str]
) -> None:
    def only_text_replaces(record: dict[str, Any]) -> str | None:
        result = edit(record)
        return result if isinstance(result, str) else None

    assert re.search(message, change_record(only_text_replaces))


# What is not a model file


def test_plain_safetensors_is_told_how_to_become_one(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    for metadata in (None, {"format": "pt"}):
        save_file({"x": np.zeros((2, 3))}, tmp_path / "plain.safetensors", metadata)
        assert refused(tmp_path / "plain.safetensors") == (
            "it is a safetensors file, but not a verydeep model file, since its metadata has no "
            "verydeep record; `verydeep weights convert` makes a model file of published or trained weights"
        )


def torch_file(**choices: Any) -> bytes:
    import io

    import torch

    buffer = io.BytesIO()
    torch.save({"features.0.bias": torch.zeros(3)}, buffer, **choices)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"^the file is empty; expected a model file$"),
        (b"\x00", r"^the file ends after 1 bytes, but a header takes more; it was"),
        (b"\x00" * 8, r"^its header cannot be read as JSON"),
        (b"\x00" * 100, r"^it is not a safetensors file: its first eight bytes are not followed"),
        (b"hello\n", r"^it is not a model file, but text; expected a \.safetensors file$"),
        (b'{"a": {}, "b": {}}', r"^it is not a model file, but text"),
        (b'{"a":[1,{"b":0}]}', r"^it is not a model file, but text"),
        (b"<!DOCTYPE html>", r"^it is not a model file, but a web page, probably of a failed down"),
        (b"\n <HTML><head>", r"^it is not a model file, but a web page"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid",
            r"but a Git LFS pointer.*git lfs pull",
        ),
        (b"\x89PNG\r\n\x1a\n0000", r"but a PNG image; expected a \.safetensors file$"),
        (b"\xff\xd8\xff\xe0\0\0JFIF", r"but a JPEG image"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\x03", r"but a compressed file; unpack it first$"),
        (b"\x89HDF\r\n\x1a\n\0\0", r"but an HDF5 file, as Keras writes them"),
        (b"\x93NUMPY\x01\0v\0{'descr'", r"but a NumPy array"),
        (b"\x08\x0a\x12\x07pytorch:\x80", r"but an ONNX graph"),
        (lambda: pickle.dumps({"a": [1.0] * 9}, 2), r"but a Python pickle, probably a \.pth from"),
        (lambda: pickle.dumps({"a": [1.0] * 9}, 3), r"but a Python pickle"),
        (lambda: pickle.dumps({"a": [1.0] * 9}, 4), r"but a Python pickle"),
        (lambda: pickle.dumps({"a": [1.0] * 9}, 5), r"but a Python pickle"),
        (torch_file, r"but a zip archive, probably a \.pth .* `verydeep weights convert` makes"),
        (
            lambda: torch_file(_use_new_zipfile_serialization=False),
            r"but a Python pickle, probably a \.pth .* `verydeep weights convert` makes a model file",
        ),
    ],
)
def test_foreign_file_is_recognised(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "given"
    path.write_bytes(content if isinstance(content, bytes) else content())
    assert re.search(message, refused(path))


def test_foreign_paths_are_refused(tmp_path: Path) -> None:
    assert refused(tmp_path) == "it is a folder; expected a .safetensors file"
    assert refused(tmp_path / "none") == "there is no such file"
    (tmp_path / "file").touch()
    assert refused(tmp_path / "file" / "x") == "it cannot be read: Not a directory"
    os.mkfifo(tmp_path / "pipe")
    assert refused(tmp_path / "pipe") == "it is not a regular file; expected a .safetensors file"
    with pytest.raises(ModelFileError, match=r"^a\\x00b: it cannot be read: embedded null"):
        read("a\0b")


def test_strange_names_stay_on_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a\nb\x1b[31m"
    path.write_bytes(b"hello")
    with pytest.raises(ModelFileError, match=r"a\\nb\\x1b\[31m: it is not a model file, but text"):
        read(path)


def test_file_without_permission(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(modelfile, "open", refuse, raising=False)
    assert refused(small) == "it cannot be read: Permission denied"


# Writing


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()]
)
def test_file_appears_whole_or_not_at_all(
    small: Path, monkeypatch: pytest.MonkeyPatch, function: str, error: BaseException
) -> None:
    """The rest of what `files.atomic.replacing` promises has tests of its own."""

    def fail(*_: Any) -> None:
        raise error

    before = small.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail)
        expected = OutputError if isinstance(error, OSError) else KeyboardInterrupt
        with pytest.raises(expected) as caught:
            write(small, Record(TRUNK), random_tensors(TRUNK, seed=1))
    if isinstance(error, OSError):
        assert str(caught.value) == (
            f"{small}: cannot be written: No space left on device; free some space and try again"
        )
    assert small.read_bytes() == before
    assert list(small.parent.iterdir()) == [small]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"none/m: cannot be written: No such file or directory"):
        write(tmp_path / "none" / "m", Record(TRUNK), random_tensors(TRUNK))
    with pytest.raises(OutputError, match=r"cannot be written: Is a directory"):
        write(tmp_path, Record(TRUNK), random_tensors(TRUNK))
    with pytest.raises(ModelFileError, match=r"^a\\x00b: it cannot be written: embedded null"):
        write("a\0b", Record(TRUNK), random_tensors(TRUNK))
    assert not list(tmp_path.iterdir())


def test_permissions_are_those_of_any_new_file(small: Path, tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    assert small.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_file_can_be_written_over_itself(small: Path) -> None:
    model = read(small)
    before = small.read_bytes()
    write(small, model.record, model.tensors())
    assert small.read_bytes() == before


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"features.0.bias": [1.0]},
            r"tensor 'features\.0\.bias' was given as list; expected a num",
        ),
        ({"features.0.bias": np.zeros(1)}, r"has the dtype float64; expected F32 or F16$"),
        ({"features.0.bias": np.zeros(1, bool)}, r"has the dtype bool; expected F32 or F16$"),
        ({"features.0.bias": np.zeros(1, object)}, r"has the dtype object; expected F32 or F16$"),
        ({"features.0.bias": np.zeros(2, "f4")}, r"has the shape \[2\], but vgg11 .* has \[1\]$"),
        ({"features.0.bias": np.zeros((), "f4")}, r"has the shape \[\], but vgg11 .* has \[1\]$"),
        ({7: np.zeros(1, "f4")}, r"given a tensor named 7; expected text$"),
        ({"classifier.weight": np.zeros(1, "f4")}, r"'classifier\.weight', which vgg11 does not$"),
    ],
)
def test_wrong_tensors_are_not_written(tensors: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=message):
        write(tmp_path / "m", Record(TRUNK), {**random_tensors(TRUNK), **tensors})
    assert not list(tmp_path.iterdir())


def test_torch_tensors_are_not_written(tmp_path: Path) -> None:
    import torch

    given = {key: torch.zeros(shape) for key, shape in TRUNK.tensors.items()}
    with pytest.raises(ModelFileError, match=r"was given as Tensor; expected a numpy array$"):
        write(tmp_path / "m", Record(TRUNK), given)  # type: ignore[arg-type]


def test_record_too_long_for_a_header_is_not_written(tmp_path: Path) -> None:
    record = Record(TRUNK, provenance={"log": "x" * modelfile.MAX_HEADER_BYTES})
    with pytest.raises(
        ModelFileError, match=r"the header would be \d+ bytes long; at most 8388608"
    ):
        write(tmp_path / "m", record, random_tensors(TRUNK))
    assert not list(tmp_path.iterdir())


# Fuzzing: whatever the bytes, `read` refuses in one line, or all of the file can be used


def survives(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        model = read(path)
    except ModelFileError as error:
        message = str(error)
        assert message.startswith(f"{path}: ")
        assert message.isprintable()
        assert len(message) <= 1000
        return
    assert set(model.tensors()) == set(model.record.network.tensors)
    assert Record.from_json(model.record.to_json()) == model.record
    assert repr(model)
    write(path, model.record, model.stored)
    assert read(path).record == model.record


GOLDEN_BYTES = GOLDEN.read_bytes()


@given(
    flips=st.lists(
        st.tuples(st.integers(0, len(GOLDEN_BYTES) - 1), st.integers(1, 255)),
        min_size=1,
        max_size=5,
    )
)
@settings(QUICK, max_examples=300)
def test_flipped_bytes(flips: list[tuple[int, int]], tmp_path: Path) -> None:
    content = bytearray(GOLDEN_BYTES)
    for place, bits in flips:
        content[place] ^= bits
    survives(tmp_path / "m", bytes(content))


@given(data=st.data())
@settings(QUICK, max_examples=100)
def test_replaced_slices(data: st.DataObject, tmp_path: Path) -> None:
    begin = data.draw(st.integers(0, len(GOLDEN_BYTES)))
    end = data.draw(st.integers(begin, min(len(GOLDEN_BYTES), begin + 100)))
    middle = data.draw(st.binary(max_size=100))
    survives(tmp_path / "m", GOLDEN_BYTES[:begin] + middle + GOLDEN_BYTES[end:])


ANY_VALUE = (
    st.none()
    | st.booleans()
    | st.integers(-2, 9)
    | st.sampled_from([2**31, 2**53, 2**63 - 1, 2**64, 10**30, -(10**30)])
    | st.floats()
    | st.sampled_from(["F32", "F16", "I8", "I16", "I64", "D", "gap", "classic", "relu5_2", "L", ""])
    | st.text(max_size=9)
    | st.lists(st.integers(-1, 9), max_size=5)
    | st.dictionaries(st.text(max_size=3), st.integers(), max_size=2)
)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(inside):
        yield value, key
        if isinstance(item, dict | list):
            yield from places(item)


def mutate(value: Any, data: st.DataObject) -> None:
    """Replace, remove, rename, copy or add something somewhere."""
    for _ in range(data.draw(st.integers(1, 3))):
        found = list(places(value))
        if not found:
            return
        # Tensors outnumber all else by far: choose by how deep or rare a place is, too.
        container, key = data.draw(st.sampled_from(found))
        what = data.draw(st.sampled_from(["replace", "remove", "rename", "copy", "add"]))
        if what == "replace":
            container[key] = data.draw(ANY_VALUE)
        elif what == "remove":
            del container[key]
        elif what == "copy":
            other, place = data.draw(st.sampled_from(found))
            if place in other if isinstance(other, dict) else place < len(other):
                container[key] = copy.deepcopy(other[place])
        elif isinstance(container, list):
            container.insert(key, data.draw(ANY_VALUE))
        elif what == "rename":
            container[data.draw(st.text(max_size=9))] = container.pop(key)
        else:
            container[data.draw(st.text(max_size=9))] = data.draw(ANY_VALUE)


@given(data=st.data())
@settings(QUICK, max_examples=200)
def test_mutated_headers(data: st.DataObject, tmp_path: Path) -> None:
    header, rest = split(GOLDEN_BYTES)
    mutate(header, data)
    survives(tmp_path / "m", join(header, rest))


@given(data=st.data())
@settings(QUICK, max_examples=300)
def test_mutated_records(data: st.DataObject, tmp_path: Path) -> None:
    header, rest = split(GOLDEN_BYTES)
    record = json.loads(header["__metadata__"]["verydeep"])
    mutate(record, data)
    header["__metadata__"]["verydeep"] = json.dumps(record)
    survives(tmp_path / "m", join(header, rest))


@given(value=JSON_VALUES | ANY_VALUE)
@settings(QUICK, max_examples=100)
def test_any_json_as_header_and_record(value: Any, tmp_path: Path) -> None:
    survives(tmp_path / "m", join(json.dumps(value).encode(), b""))
    header, rest = split(GOLDEN_BYTES)
    header["__metadata__"]["verydeep"] = json.dumps(value)
    survives(tmp_path / "m", join(header, rest))


@given(content=st.binary(max_size=200))
@QUICK
def test_any_bytes(content: bytes, tmp_path: Path) -> None:
    survives(tmp_path / "m", content)


def test_of_other_programs_the_name_alone_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What they are given may be nobody's business, and model files are passed on."""
    asked = ["train", "my photos/", "--out", "run"]
    for program in ("/usr/bin/verydeep", "C:/x/verydeep.exe", "/site/verydeep/__main__.py"):
        monkeypatch.setattr(sys, "argv", [program, *asked])
        assert provenance.command() == "verydeep train 'my photos/' --out run"
    for program, name in (
        ("/home/verydeep/fit.py", "fit.py"), ("/x/app/__main__.py", "__main__.py"), ("", "python"),
    ):  # fmt: skip
        monkeypatch.setattr(sys, "argv", [program, "--token", "secret"])
        assert provenance.command() == name
