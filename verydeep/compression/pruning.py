"""Channels taken away for real: a smaller network, and in every engine as fast as it is small.

A channel is missed as much as what reads it cannot make up for: its loss is the squared error of the next
layer's answers once the other weights there are solved anew, from the moments of what it reads on photos
(Optimal Brain Surgeon, Hassibi and Stork 1992, for groups of weights; ThiNet, arXiv:1707.06342, asks the
same of the next layer). What a loss does to the network's answers is measured by one trial a layer.
Channels then go from wherever they save most for it. Last, each layer is fitted to what the smaller network
before it gives, by least squares against what the whole one computes there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files.progress import stage
from ..files.strict_json import JSON
from ..graphs.network import norm_factor
from ..modelfile import ModelFile, dequantised, read, write
from ..nets import Layer, Network
from ..quantisation import Draft, made_from
from . import _as_used, _multiply_adds, _paired
from .carried import Carried
from .fitting import drifted, ridge, solved

if TYPE_CHECKING:
    from . import _Work

CHUNK, FEW = 8, 64  # channels that go together, since engines compute in eights; of few, one by one
FEW_RIDGE = 0.1  # of FC layers, which are solved on no more samples than photos
TRIED = 0.5  # of its channels each layer loses in the trial that measures it
TRIES = 5  # of a speed, at most
ENOUGH, AIMED = 1.08, 0.97  # of a speed: near enough, and how much is aimed beside it

Array = np.ndarray


@dataclass(frozen=True)
class Link:
    """A layer some of whose outputs can go, and who reads them.

    reader: the next layer with weights, `group` of whose inputs are one output; None where only a head that
    averages reads it. places: where such a head has these outputs among its inputs, each time it has.
    """

    layer: Layer
    reader: Layer | None
    group: int
    places: tuple[int, ...]


def links(used: Network) -> Iterator[Link]:
    """Not of a layer that response normalisation mixes, nor of one that is too wide for its moments."""
    owners, fixed, conv = {}, set(), ""
    for layer in used.trunk:
        conv = layer.name if layer.kind == "conv" else conv
        owners[layer.name] = conv
        if layer.kind == "lrn":
            fixed.add(conv)
    averages = bool(used.top) and used.head.kind == "gap"
    places: dict[str, list[int]] = {}
    offset = 0
    for name in used.head_inputs if averages else ():
        places.setdefault(owners[name], []).append(offset)
        offset += used.layer(name).outputs
    for layer, after in pairwise(layer for layer in used.layers if layer.key):
        reader = None if averages and after.kind == "fc" else after
        group = after.kernel**2 * after.inputs // layer.outputs if reader else 0
        if layer.name not in fixed and (after.kind != "conv" or _paired(after)):
            yield Link(layer, reader, group, tuple(places.get(layer.name, ())))


def reads(network: Network, kept: Mapping[str, Array]) -> Iterator[tuple[Layer, Array, Array]]:
    """Each layer with weights, which of its inputs are left, and which of its outputs.

    kept: numbers of outputs by paper name, of convolutions and hidden FC layers; all are left of others. Of
    fc6 these are all places of each channel that is left.
    """
    left: dict[str, Array] = {}
    inputs = np.arange(network.in_channels)
    for layer in network.layers:
        if layer.kind == "average":
            parts, offset = [], 0
            for name in network.head_inputs:
                parts.append(left[name] + offset)
                offset += network.layer(name).outputs
            inputs = columns_of(np.concatenate(parts), layer.kernel**2)
        if layer.key:
            outputs = np.asarray(kept.get(layer.name, np.arange(layer.outputs)))
            yield layer, inputs, outputs
            inputs = outputs
        left[layer.name] = inputs


def columns_of(channels: Array, group: int) -> Array:
    """The columns of a flattened weight that are those channels', `group` each."""
    return np.asarray((channels[:, None] * group + np.arange(group)).ravel())


def without(
    network: Network, tensors: Mapping[str, Array], kept: Mapping[str, Array]
) -> tuple[Network, dict[str, Array]]:
    """The network with only the outputs that are `kept`, as `reads` takes them, and its tensors."""
    small: dict[str, Array] = {}
    counts = []
    for layer, inputs, outputs in reads(network, kept):
        weight, *others = layer.tensors
        small[weight] = np.ascontiguousarray(tensors[weight][outputs][:, inputs])
        small |= {
            key: tensors[key][outputs] if tensors[key].ndim else tensors[key] for key in others
        }
        counts.append(len(outputs))
    channels = tuple(counts[:-1] if network.head.classes else counts)
    return replace(network, channels=channels), small


def solved_on_few(weight: Array, answers: Array, now: Array, columns: Array) -> Array:
    """As `solved`, on fewer samples than columns: answers (samples, outputs), now (samples, columns)."""
    was = weight[:, columns]
    inner = now @ now.T
    drawn = FEW_RIDGE * np.diagonal(inner).mean() + 1e-12
    return np.asarray(
        was + np.linalg.solve(inner + drawn * np.eye(len(now)), answers - now @ was.T).T @ now
    )


def removal(
    weight: Array, moments: Array, sizes: Sequence[int], extra: Array
) -> tuple[list[Array], Array]:
    """Which channels go first, in parts of `sizes`, and what is lost after each part.

    weight: of the reader, (outputs, channels * group). moments: of its inputs. extra: (channels,), for what
    else each is missed. Losses are shares of the energy of the reader's answers.
    """
    group = len(moments) // len(extra)
    energy = float(np.einsum("oi,ij,oj->", weight, moments, weight, optimize=True)) or 1.0
    inverse = np.linalg.inv(moments + ridge(moments) * np.eye(len(moments)))
    left, parts, lost = np.arange(len(extra)), [], [0.0]
    for size in sizes:
        at = np.arange(len(left))
        blocks = inverse.reshape(len(left), group, len(left), group)[at, :, at]
        own = weight.reshape(len(weight), len(left), group).transpose(1, 2, 0)
        each = np.trace(np.linalg.solve(blocks, own @ own.transpose(0, 2, 1)), axis1=1, axis2=2)
        gone = np.sort(np.argsort(each / energy + extra[left], kind="stable")[:size])
        stay = columns_of(np.delete(at, gone), group)
        columns = columns_of(gone, group)
        # what stays makes up for what goes, and is missed anew
        block, across = inverse[np.ix_(columns, columns)], inverse[np.ix_(columns, stay)]
        moved = np.linalg.solve(block, weight[:, columns].T)
        lost.append(
            lost[-1]
            + float((moved * weight[:, columns].T).sum()) / energy
            + extra[left[gone]].sum()
        )
        weight = weight[:, stay] - moved.T @ across
        inverse = inverse[np.ix_(stay, stay)] - across.T @ np.linalg.solve(block, across)
        parts.append(left[gone])
        left = np.delete(left, gone)
    return parts, np.array(lost)


def energies(weight: Array, read: Array, group: int) -> Array:
    """What each channel adds to a layer's answers, (channels,), as shares of their energy.

    weight: (outputs, channels * group). read: (samples, channels * group).
    """
    read = read - read.mean(0, dtype=np.float64)
    total = float(np.square(read @ weight.T).sum()) or 1.0
    parts = (slice(at, at + group) for at in range(0, read.shape[1], group))
    return np.array([np.square(read[:, at] @ weight[:, at].T).sum() for at in parts]) / total


class Pruning:
    """A model of which channels are taken away. work: what is known of it, and the photos.

    parts: of each layer that has a `Link`, its outputs as they go one part after another. losses: the
    squared error of the network's answers before the first and after each.
    """

    def __init__(self, work: _Work) -> None:
        self.work, self.record = work, work.model.record
        self.network, self.used = self.record.network, work.reference.network
        stored = work.reference.stored
        self.tensors = {key: dequantised(stored, key) for key in self.network.tensors}
        self.links = {link.layer.name: link for link in links(self.used)}
        sides = self.record.preprocess.sides or (224, 224)
        self.rows = [row for row in self.used.rows(*sides) if row.layer.key]
        self.few = self._few(
            work.reference, [row.layer.name for row in self.rows if row.layer.kind == "fc"]
        )
        self.parts: dict[str, list[Array]] = {}
        self.losses: dict[str, Array] = {}
        for link in stage(list(self.links.values()), "measuring channels", "layer"):
            self._measure(link)

    def _draft(self, network: Network, tensors: dict[str, Array]) -> Draft:
        return replace(self.work.reference, network=_as_used(network), stored=tensors)

    def _few(self, draft: Draft, names: Sequence[str]) -> dict[str, Array]:
        """What those FC layers read, (photos, inputs) float64."""
        if not names:
            return {}
        taps = tuple(self.work.sources[name] for name in names)
        batches = list(draft.run(draft.graph(taps, int8=False), self.work.images))
        values = (np.concatenate([batch[tap] for batch in batches]) for tap in taps)
        flat = [value.reshape(len(value), -1).astype(np.float64) for value in values]
        return dict(zip(names, flat, strict=True))

    def _measure(self, link: Link) -> None:
        count, reader, head = link.layer.outputs, link.reader, self.rows[-1].layer
        chunk = CHUNK if count >= FEW else 1
        sizes = [count % chunk] * (count % chunk > 0) + [chunk] * (count // chunk - 1)
        extra = np.zeros(count)
        if link.places:
            shares = energies(self.work.flat(head), self.few[head.name], 1)
            for place in link.places:
                extra += shares[place : place + count]
        if reader is not None and reader.kind == "conv":
            weight = self.work.flat(reader)
            if reader.norm_key:  # as much as batch norm makes of it
                weight = weight * norm_factor(reader, self.tensors)[:, None]
            parts, losses = removal(weight, self.work.known[reader.name].moments, sizes, extra)
        else:
            if reader is not None:
                extra += energies(self.work.flat(reader), self.few[reader.name], link.group)
            parts = np.split(np.argsort(extra, kind="stable"), np.cumsum(sizes))[:-1]
            losses = np.cumsum([0.0, *(extra[part].sum() for part in parts)])
        self.parts[link.layer.name] = parts
        tried = max(1, round(TRIED * len(parts)))
        if parts:  # what these losses do to the answers of the network
            kept = {link.layer.name: np.setdiff1d(np.arange(count), np.concatenate(parts[:tried]))}
            losses = losses * (self._tried(kept) ** 2 / max(float(losses[tried]), 1e-12))
        self.losses[link.layer.name] = losses

    def _tried(self, kept: Mapping[str, Array]) -> float:
        """The error of the answers without these outputs of one layer, what reads them fitted."""
        network, small = without(self.network, self.tensors, kept)
        for layer, inputs, outputs in reads(self.used, kept):
            if len(inputs) < layer.inputs:
                self._fit(layer, inputs, outputs, small, None)
        return self.work.error_of(self._draft(network, small))

    def kept(self, budget: float) -> dict[str, Array]:
        """Which outputs stay for at most so many multiply-adds; the fewest where even these cost more."""
        gone = dict.fromkeys(self.links, 0)
        counts = {row.layer.name: row.layer.outputs for row in self.rows}
        cost = self._cost(counts)
        while cost > budget:
            choices = []
            for name, parts in self.parts.items():
                at = gone[name]
                if at < len(parts):
                    fewer = {**counts, name: counts[name] - len(parts[at])}
                    loss = self.losses[name][at + 1] - self.losses[name][at]
                    choices.append((loss / (cost - self._cost(fewer)), name, fewer))
            if not choices:
                break
            _, name, counts = min(choices, key=lambda one: one[0])
            gone[name] += 1
            cost = self._cost(counts)
        lost = {
            name: [*parts[: gone[name]], np.array([], int)] for name, parts in self.parts.items()
        }
        return {
            name: np.setdiff1d(np.arange(self.links[name].layer.outputs), np.concatenate(some))
            for name, some in lost.items()
        }

    def _cost(self, counts: Mapping[str, int]) -> float:
        total, before = 0.0, 1.0
        for row in self.rows:
            if row.layer.key == "classifier":  # a head that averages
                left = (counts[name] * len(link.places) for name, link in self.links.items())
                before = sum(left) / row.layer.inputs
            part = counts[row.layer.name] / row.layer.outputs
            total += row.multiply_adds * part * before
            before = part
        return total

    def fitted(self, kept: Mapping[str, Array]) -> tuple[Network, dict[str, Array]]:
        """The smaller network, each layer fitted to what those before it now give."""
        network, small = without(self.network, self.tensors, kept)
        drifted = False
        for layer, inputs, outputs in stage(
            list(reads(self.used, kept)), "fitting layers", "layer"
        ):
            drifted = drifted or len(inputs) < layer.inputs
            if drifted:
                self._fit(layer, inputs, outputs, small, self._draft(network, small))
        return network, small

    def _fit(
        self, layer: Layer, inputs: Array, outputs: Array, small: dict[str, Array],
        draft: Draft | None,
    ) -> None:  # fmt: skip
        """Put into `small` what is left of the layer's weights, fitted, and the bias for the mean as it is.

        draft: the smaller network as it stands; None where all layers before it are whole.
        """
        flat, columns = self.work.flat(layer)[outputs], columns_of(inputs, layer.kernel**2)
        if layer.kind == "fc":
            theirs = self.few[layer.name]
            ours = self._few(draft, [layer.name])[layer.name] if draft else theirs[:, columns]
            answers, mean = theirs @ flat.T, ours.mean(0)
            answered = answers.mean(0)
            moved = solved_on_few(flat, answers - answered, ours - mean, columns)
        elif draft is None:
            known = self.work.known[layer.name]
            answered, mean = flat @ known.mean, known.mean[columns]
            own = known.moments[:, columns]
            moved = solved(flat, own[columns], flat @ own, columns)
        else:
            drafts = (Carried(one, self.work.images) for one in (self.work.reference, draft))
            read = self.work.read_by(layer, *drafts)
            now, moved, answered = drifted(flat, read, columns, alone=self.work.alone)
            mean = now.mean
        weight, bias = f"{layer.key}.weight", f"{layer.key}.bias"
        small[weight] = moved.reshape(small[weight].shape).astype(np.float32)
        small[bias] = (small[bias] + answered - moved @ mean).astype(np.float32)


def prune(
    work: _Work,
    folder: Path,
    multiply_adds: int | None = None,
    speedup: float | None = None,
    on_event: Callable[[Mapping[str, Any]], None] | None = None,
) -> tuple[ModelFile, float | None, bool]:
    """Write into `folder` the smaller network that meets the goal and loses least; else the nearest.

    multiply_adds: that an image may cost. speedup: how many times as fast as the whole model it is to be,
    by turns with it. Gives the file, the speed where it was measured, and whether the goal was met.
    """
    record = work.model.record
    whole = _multiply_adds(record)
    pruning = Pruning(work)

    def written(
        network: Network,
        tensors: dict[str, Array],
        name: str,
        speed: tuple[float, str] | None = None,
    ) -> Path:
        cost = _multiply_adds(replace(record, network=network))
        if on_event:
            measured = {"speedup": speed[0]} if speed else {}
            on_event({"event": "pruned", "multiply_adds": cost, "before": whole, **measured})
        source: dict[str, JSON] = {
            **made_from(work.model), "photos": len(work.images), "multiply_adds": whole,
        }  # fmt: skip
        figures: list[dict[str, JSON]] = [
            {"what": "multiply_adds", "value": cost, "protocol": "of one image"}
        ]
        if speed:
            how = f"{speed[1]}, fast, one image at once, by turns with the whole model"
            figures.append({"what": "speedup", "value": speed[0], "protocol": how})
        small = replace(
            record, network=network, measured=tuple(figures),
            provenance={**record.provenance, "pruned_from": source},
        )  # fmt: skip
        write(folder / name, small, tensors)
        return folder / name

    if speedup is None:
        made = pruning.fitted(pruning.kept(multiply_adds or 0))
        path = written(*made, "pruned.safetensors")
        cost = _multiply_adds(replace(record, network=made[0]))
        return read(path), None, multiply_adds is None or cost <= multiply_adds
    from ..benching import against

    low, high, budget = 0.0, float(whole), whole / speedup
    tries = []
    with against(work.model.path, threads=work.reference.threads) as (engine, times):
        for number in range(TRIES):
            kept = pruning.kept(budget)
            # speed does not ask what weights are, so here they are not fitted
            trial = without(pruning.network, pruning.tensors, kept)
            measured = times(written(*trial, f"{number}.safetensors"))
            tries.append((measured < speedup, abs(measured - speedup), measured, kept))
            if speedup <= measured <= ENOUGH * speedup:
                break
            low, high = (low, budget) if measured < speedup else (budget, high)
            budget *= AIMED * measured / speedup
            budget = budget if low < budget < high else (low + high) / 2
    missed, _, measured, kept = min(tries, key=lambda one: one[:3])
    path = written(*pruning.fitted(kept), "pruned.safetensors", (measured, engine))
    return read(path), measured, not missed
