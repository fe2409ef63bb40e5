"""Channels taken away: losses and solved weights against brute force, goals, and the command."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

import verydeep as package
from verydeep import benching, modelfile
from verydeep.compression import _multiply_adds, _Work, fitting, pruning
from verydeep.compression.fitting import RIDGE, RIDGES, Inputs, drifted, solved
from verydeep.compression.pruning import energies, links, removal, solved_on_few, without
from verydeep.datasets import unlabelled
from verydeep.errors import DataError, NetworkError
from verydeep.nets import Network, network
from verydeep.quantisation import output_error
from verydeep.quantisation import photos as pixels_of

from . import tiny
from .conftest import Run
from .test_channels import FULL, removed
from .test_compress import moments_of


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Speeds are not measured, which takes processes and seconds, but where they are what is tested."""
    if "speeds_are_measured" not in request.node.name:
        monkeypatch.setattr(benching, "against", quickly)


@contextmanager
def quickly(*_: object, **__: object) -> Iterator[tuple[str, Callable[[Path], float]]]:
    yield "onnxruntime", lambda _: 1.25


def test_solved_weights_are_those_of_lstsq(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways, without the ridge: more samples than columns, and fewer."""
    monkeypatch.setattr(pruning, "FEW_RIDGE", 0.0)
    draw = np.random.default_rng(0)
    columns = np.array([0, 2, 3, 7])
    x, weight = draw.normal(0, 1, (200, 9)), draw.normal(0, 1, (5, 9))
    now = x[:, columns] + draw.normal(0, 0.1, (200, 4))  # what is read now is not quite what was
    answers = x @ weight.T
    expected = np.linalg.lstsq(now, answers, rcond=None)[0].T
    found = solved(weight, now.T @ now / 200, answers.T @ now / 200, columns, part=0.0)
    assert_allclose(found, expected, rtol=1e-8)
    few = solved_on_few(weight, answers[:3], now[:3], columns)
    # of all that answer these three, the nearest to what was
    nearest = (
        weight[:, columns]
        + (np.linalg.pinv(now[:3]) @ (answers[:3] - now[:3] @ weight[:, columns].T)).T
    )
    assert_allclose(few, nearest, rtol=1e-6, atol=1e-9)


def test_moments_of_what_varies_little_beside_its_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """About the mean, by numpy in float64; and weights fitted there are those of lstsq."""
    monkeypatch.setattr(fitting, "RIDGES", (RIDGE,))
    draw = np.random.default_rng(4)
    batches = [(1000 + draw.normal(0, 1, (500, 12))).astype(np.float32) for _ in range(8)]
    known = Inputs(paired=True)
    known.add(batches)
    every = np.concatenate(batches).astype(np.float64)
    assert_allclose(known.moments, np.cov(every.T, bias=True), atol=1e-5)
    assert_allclose(known.mean, every.mean(0), rtol=1e-9)
    moved = [one[:, :9] + one[:, 3:] / 8 for one in batches]
    weight = draw.normal(0, 1, (5, 12))
    now, found, answered = drifted(weight, zip(batches, moved, strict=True), np.arange(9))
    answers = (every - every.mean(0)) @ weight.T
    reads = np.concatenate(moved).astype(np.float64)
    expected = np.linalg.lstsq(reads - reads.mean(0), answers, rcond=None)[0].T
    assert_allclose(found, expected, atol=5e-3)  # which a ridge of 2e-3 moves
    assert_allclose(answered, every.mean(0) @ weight.T, rtol=1e-4)
    assert_allclose(now.mean, reads.mean(0), rtol=1e-9)


def test_how_far_weights_move_is_judged_on_other_photos() -> None:
    """On few photos whose drift is noise they stay; on as few of a drift that has a rule they follow."""
    draw = np.random.default_rng(5)
    mixing = draw.normal(0, 1, (40, 40)) / 6
    weight = draw.normal(0, 1, (8, 40))

    def batches(count: int, rule: float, noise: float) -> list[tuple[np.ndarray, np.ndarray]]:
        pairs = []
        for _ in range(count):
            before = draw.normal(0, 1, (15, 40)).astype(np.float32)
            now = before + rule * before @ mixing + draw.normal(0, noise, (15, 40))
            pairs.append((before, now.astype(np.float32)))
        return pairs

    for rule, noise, used in ((0.0, 0.5, RIDGES[3:]), (0.5, 0.01, RIDGES[:2])):
        read, other = batches(6, rule, noise), batches(200, rule, noise)
        _, found, _ = drifted(weight, read)
        x, y = (np.concatenate(part) for part in zip(*other, strict=True))
        errors = {}
        both = np.cov(*(np.concatenate(part).T for part in zip(*read, strict=True)), bias=True)
        own, cross = both[40:, 40:], weight @ both[:40, 40:]
        for part in RIDGES:
            each = solved(weight, own, cross, slice(None), part)
            errors[part] = float(np.square(y @ each.T - x @ weight.T).mean())
            if np.allclose(each, found, rtol=1e-3, atol=1e-4):
                chosen = part
        assert chosen in used
        assert errors[chosen] < 1.1 * min(errors.values())
        assert noise == 0.01 or errors[chosen] < 0.9 * errors[RIDGE]


def test_photos_that_are_alone_judge_each_other() -> None:
    """Batches of one photo each: a half of every other one, and one row alone is no half."""
    draw = np.random.default_rng(6)
    weight = draw.normal(0, 1, (3, 5))
    read = [tuple(draw.normal(0, 1, (2, 4, 5)).astype(np.float32)) for _ in range(7)]
    seen: list[Sequence[tuple[np.ndarray, np.ndarray]]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "best_ridge", lambda _, halves, __: (seen.append(halves), RIDGE)[1])
        drifted(weight, read, alone=True)
        drifted(weight, [(a[:1], b[:1]) for a, b in read[:1]], alone=True)
    (halves,) = seen
    for half, batches in zip(halves, (read[::2], read[1::2]), strict=True):
        every = np.concatenate([now for _, now in batches]).T
        assert_allclose(half[0], np.cov(every, bias=True), atol=1e-5)


@pytest.mark.parametrize("kernel", [1, 3])
def test_losses_are_those_of_solving_anew(kernel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each part: what is lost by brute force; and the first to go is the one that loses least."""
    monkeypatch.setattr(pruning, "ridge", lambda _: 0.0)
    draw = np.random.default_rng(1)
    group, channels = kernel**2, 8
    moments = moments_of(draw, channels, kernel)
    weight = draw.normal(0, 1, (5, channels * group))
    parts, losses = removal(weight, moments, [2, 1, 1, 3], np.zeros(channels))
    assert [len(part) for part in parts] == [2, 1, 1, 3]
    assert len({c for part in parts for c in part.tolist()}) == 7
    energy = np.einsum("oi,ij,oj->", weight, moments, weight)

    def lost(gone: list[int]) -> float:
        stay = np.setdiff1d(np.arange(channels), gone)
        columns = pruning.columns_of(stay, group)
        small = np.linalg.solve(moments[np.ix_(columns, columns)], moments[columns] @ weight.T).T
        off = weight.copy()
        off[:, columns] -= small
        return float(np.einsum("oi,ij,oj->", off, moments, off) / energy)

    gone: list[int] = []
    for part, loss in zip(parts, losses[1:], strict=True):
        gone += part.tolist()
        assert_allclose(loss, lost(gone), rtol=1e-6)
    single, _ = removal(weight, moments, [1], np.zeros(channels))
    assert single[0][0] == np.argmin([lost([c]) for c in range(channels)])
    # what else a channel is missed for counts, too
    much = np.zeros(channels)
    much[single[0]] = 1.0
    assert removal(weight, moments, [1], much)[0][0][0] != single[0][0]


def test_energies_sum_to_one_where_channels_are_apart() -> None:
    draw = np.random.default_rng(2)
    read = np.kron(np.eye(6), np.ones((4, 1)))[:, :6] * draw.normal(0, 1, (24, 1))
    read -= read.mean(0)
    weight = draw.normal(0, 1, (3, 6))
    shares = energies(weight, read, 2)
    assert shares.shape == (3,)
    by_hand = [
        np.square(read[:, 2 * i : 2 * i + 2] @ weight[:, 2 * i : 2 * i + 2].T).sum()
        for i in range(3)
    ]
    assert_allclose(shares, np.array(by_hand) / np.square(read @ weight.T).sum())


@pytest.mark.parametrize(
    ("name", "head"), [("vgg11", "classic"), ("vgg13_bn", "gap"), ("vgg16c", "small")]
)
def test_taking_away_is_what_the_table_says(name: str, head: str) -> None:
    """As row by row and column by column in test_channels, where every engine runs it."""
    layers = ("relu5_1", "relu4_2") if head == "gap" else ()
    bare = network(name, classes=7, head=head, layers=layers)
    count = sum(bool(layer.key) for layer in bare.layers) - 1
    full = network(name, classes=7, head=head, layers=layers, channels=[FULL] * count)
    given = tiny.weights(full)
    net, small, _, kept = removed(full, given)
    own = {layer.name: kept[layer.name] for layer in full.layers if layer.key}
    found, tensors = without(full, given, own)
    assert found == net
    assert tensors.keys() == small.keys()
    for key, value in small.items():
        np.testing.assert_array_equal(tensors[key], value)


def test_who_reads_whom() -> None:
    net = tiny.tiny("vgg11", "gap")  # which reads relu4_2 and relu5_2
    found = {link.layer.name: link for link in links(net)}
    assert set(found) == {layer.name for layer in net.trunk if layer.kind == "conv"}
    assert found["conv4_2"].places == (0,)
    assert found["conv4_2"].reader == net.layer("conv5_1")
    assert (found["conv5_2"].reader, found["conv5_2"].places) == (None, (32,))
    classic = {link.layer.name: link for link in links(tiny.tiny("vgg11", "classic"))}
    assert classic["conv5_2"].group == 49
    assert classic["fc7"].reader is not None
    assert classic["fc7"].reader.name == "fc8"
    # a trunk's last maps are what it is for, and neighbours of a normalisation mix
    assert "conv5_2" not in {link.layer.name for link in links(network("vgg11", classes=0))}
    assert "conv1_1" not in {link.layer.name for link in links(network("vgg11_lrn"))}


# The command


NETS = [
    tiny.tiny("vgg11"), tiny.tiny("vgg13_bn"), tiny.tiny("vgg11", "classic"),
    tiny.tiny("vgg11_lrn", "small"), network("vgg11_bn", classes=0, width=1 / 16),
]  # fmt: skip


@pytest.mark.parametrize(
    "net", NETS, ids=lambda net: f"{net.name}-{net.head.kind}-{net.head.classes}"
)
def test_half_the_multiply_adds(net: Network, photos: Path, tmp_path: Path) -> None:
    path = tiny.model_file(tmp_path / "tiny.safetensors", net)
    whole, out = _multiply_adds(modelfile.read(path).record), tmp_path / "small.safetensors"
    made = package.compress(path, out, calibrate=[str(photos)], multiply_adds=whole // 2, threads=1)
    record = modelfile.read(out).record
    assert made.met
    assert 0.4 * whole < made.multiply_adds == _multiply_adds(record) <= whole // 2
    assert made.before_multiply_adds == whole
    assert record.network.channels != ()
    assert record.network.head == net.head
    assert made.error is not None
    assert made.error < 0.35
    assert out.stat().st_size < path.stat().st_size
    assert {figure["what"] for figure in record.measured} >= {"multiply_adds", "output_error"}
    assert record.provenance["pruned_from"]["multiply_adds"] == whole  # type: ignore[index,call-overload]


def test_solving_anew_is_worth_it(photos: Path, tmp_path: Path) -> None:
    """Fitted, the answers are several times nearer than of the same channels as they were."""
    net = tiny.tiny("vgg11_bn", width=1 / 8)
    path = tiny.model_file(tmp_path / "tiny.safetensors", net)
    given = modelfile.read(path)
    whole = _multiply_adds(given.record)
    *images, _ = pixels_of(given.record.preprocess, unlabelled.photos(photos), (), 40)
    work = _Work(given, images, None, 1)
    one = pruning.Pruning(work)
    kept = one.kept(whole / 2)
    assert work.theirs is not None
    plain, fitted = (
        output_error(work._outputs(one._draft(*made), work.check), work.theirs)
        for made in (without(one.network, one.tensors, kept), one.fitted(kept))
    )
    assert fitted < plain / 3


def test_the_command(model: Path, photos: Path, tmp_path: Path, verydeep: Run) -> None:
    out = tmp_path / "small.safetensors"
    whole = _multiply_adds(modelfile.read(model).record)
    words = ("compress", model, "--calibrate", photos, "--threads", 1, "--out")
    done = verydeep(*words, out, "--multiply-adds", f"{whole / 2e3:.0f}K")
    assert done.status == 0, done.err
    assert "multiply-adds, 2." in done.err
    assert "fewer)" in done.out
    assert verydeep("classify", "--model", out, photos / "0.png").status == 0
    # and then rounded, which is not twice; or both at once
    less = tmp_path / "less.safetensors"
    done = verydeep(
        "compress", out, "--calibrate", photos, "--size", "12KB", "--out", less, "--threads", 1
    )
    assert done.status == 0, done.err
    both = verydeep(
        *words, tmp_path / "both", "--multiply-adds", "400K", "--size", "12KB", "--json"
    )
    assert both.status == 0, both.err
    told = json.loads(both.out)
    assert told["size_bytes"] <= 12_000
    assert told["multiply_adds"] <= 400_000
    record = modelfile.read(tmp_path / "both").record
    assert {"pruned_from", "compressed_from"} <= record.provenance.keys()
    assert record.provenance["compressed_from"]["sha256"] == modelfile.read(model).sha256  # type: ignore[index,call-overload]
    # labelled photos say what is lost, of the whole model's
    for name in ("ant", "bee"):
        tiny.photo(photos.parent / "data" / name / "0.png", seed=len(name))
    data = ("--data", photos.parent / "data", "--json")
    given = verydeep(*words, tmp_path / "less", "--multiply-adds", "400K", *data)
    assert given.status == 0, given.err
    assert json.loads(given.out)["drop"] in (-50, 0, 50)
    again = verydeep("compress", out, "--calibrate", photos, "--multiply-adds", "9K", "--out", less)
    assert again.status == 2
    assert "it was compressed already, and would lose twice" in again.err


def test_a_speed_is_looked_for(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By measuring, whatever that says: here speed goes with the root of the multiply-adds."""
    whole = _multiply_adds(modelfile.read(model).record)

    @contextmanager
    def against(path: Path, **_: object):  # type: ignore[no-untyped-def]
        assert path == model
        yield "mnn", lambda other: (whole / _multiply_adds(modelfile.read(other).record)) ** 0.5

    monkeypatch.setattr(benching, "against", against)
    out = tmp_path / "small.safetensors"
    made = package.compress(model, out, calibrate=[str(photos)], speedup=1.5, threads=1)
    assert made.met
    assert made.speedup is not None
    assert 1.5 <= made.speedup < 1.7
    assert made.multiply_adds < whole / 2.2
    assert "times as fast here" in str(made)
    figures = {one["what"]: one for one in modelfile.read(out).record.measured}
    assert figures["speedup"]["value"] == made.speedup
    assert "mnn" in str(figures["speedup"]["protocol"])
    never = package.compress(model, out, calibrate=[str(photos)], speedup=90, threads=1)
    assert not never.met
    assert "the goal was not met" in str(never)


def test_speeds_are_measured_by_turns_in_one_engine(tmp_path: Path) -> None:
    """Thirty times as much work is not as quick; and that is all that is asked of a clock here."""
    large = tiny.model_file(tmp_path / "large.safetensors", tiny.tiny(width=1 / 2))
    small = tiny.model_file(tmp_path / "small.safetensors", tiny.tiny(width=1 / 32))
    with benching.against(large, threads=1, rounds=1) as (engine, ratio):
        assert engine
        assert ratio(small) > 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--multiply-adds", "100M"), "multiply_adds is 100,000,000; "),
        (("--multiply-adds", "none"), "'none' is not a number of multiply-adds; write 80M or 5.2G"),
        (("--speedup", "1"), "speedup is 1.0; expected more than 1, and at most 100"),
        (("--speedup", "nan"), "speedup is nan; expected more than 1"),
        (("--speedup", "2", "--multiply-adds", "9K"), "are two goals; give one of them"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    words: tuple[str, ...], told: str, model: Path, photos: Path, tmp_path: Path, verydeep: Run
) -> None:
    out = tmp_path / "small.safetensors"
    done = verydeep("compress", model, "--out", out, "--calibrate", photos, *words)
    assert done.status == 2
    assert told in done.err
    assert done.err.strip().count("\n") == 0
    assert not out.exists()


def test_without_photos_it_is_refused(model: Path, tmp_path: Path, verydeep: Run) -> None:
    done = verydeep("compress", model, "--out", tmp_path / "small.safetensors", "--speedup", "2")
    assert done.status == 2
    assert "which channels can go is measured on photos: name some with --calibrate" in done.err


def test_the_speed_of_a_trunk_is_refused_at_once(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its channels are measured; to take them away by number goes."""
    trunk = tiny.model_file(tmp_path / "trunk", tiny.tiny(head="classic", classes=0))
    with monkeypatch.context() as patch:
        patch.setattr(pruning, "Pruning", pytest.fail)
        with pytest.raises(
            NetworkError, match="a trunk does not have; give --multiply-adds instead"
        ):
            package.compress(trunk, tmp_path / "o", calibrate=photos, speedup=1.5)
    assert package.compress(trunk, tmp_path / "o", calibrate=photos, multiply_adds=500_000).met


def test_too_few_labelled_photos_to_find_channels_by(model: Path, tmp_path: Path) -> None:
    label = package.load(model)(tiny.photo(tmp_path / "one.png")).label
    for seed in range(8):
        tiny.photo(tmp_path / "data" / label / f"{seed}.png", seed=seed)
    with pytest.raises(DataError, match="4 photos to calibrate on; expected 32 or more"):
        package.compress(model, tmp_path / "o", data=tmp_path / "data", multiply_adds=500_000)
    assert not list(tmp_path.glob("o*.work"))


def test_a_goal_that_cannot_be_met_gives_the_nearest(
    model: Path, photos: Path, tmp_path: Path, verydeep: Run
) -> None:
    out = tmp_path / "small.safetensors"
    done = verydeep("compress", model, "--out", out, "--calibrate", photos, "--multiply-adds", "9")
    assert done.status == 1  # what was found is kept, and it is not what was asked for
    assert (
        "the goal was not met: this is the nearest"
        in out.with_name("small.safetensors.report.html").read_text()
    )
    assert "the goal was not met: this is the nearest" in done.out
    assert set(modelfile.read(out).record.network.channels) == {1}


def test_a_saved_head_that_names_layers(model: Path, photos: Path, tmp_path: Path) -> None:
    """The model's own goes on reading them; one that was fitted to the whole network's is refused."""
    out, whole = tmp_path / "small", _multiply_adds(modelfile.read(model).record)
    package.compress(model, out, calibrate=photos, multiply_adds=whole // 2, threads=1)
    head = modelfile.read(out).record.network.head
    assert head.layers == modelfile.read(model).record.network.head.layers != ()
    assert package.load(out)(photos / "0.png").label
    with pytest.raises(
        NetworkError, match="lpips was fitted to the features of vgg16 and needs tha"
    ):
        package.lpips(photos / "0.png", photos / "1.png", model=str(out))
