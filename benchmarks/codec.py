"""What an update costs: our codec beside its peers, on real updates along federated runs.

    make bench-codec                     tables
    make bench-codec ARGS=--json         one JSON object: {machine, date, rows, targets}
    make bench-codec ARGS="--plot FILE"  a picture of the runs beside that

FLEET_MODELS names the folder that holds mlperf_tiny/, FLEET_DATA that of cifar10_3k, speech_commands_300 and
mnist_test_writers. Which fleets stands in codec_tasks.py, what else codes an update in codec_peers.py. One thread,
about ten minutes; progress goes to stderr.

Rows are of two kinds. A `run` is about every update that the devices of one federated run of 40 rounds sent, with error
feedback, at 1 bit a value (sign, and one magnitude for each tensor) and coding 'context'; `run` rows of `iid t(3)` are
three synthetic vectors. A `coder` row is about the samples of that run: rounds 1, 5, 15, 25 and 39, one device each, as
they were before values were rounded, coded by everybody in turn; processor ms of one thread, means over the samples of
medians over the repetitions.

    bits_per_nonzero        8 * bytes of the payload / values that it holds
    over_bound              bits of all payloads / sum of log2 C(n, k) + k, the bound for masks without structure
    dense_over_bytes        4 * trained parameters / bytes; ours: of the whole sealed message, all that the MQTT PUBLISH
                            carries but the topic, of which a peer's figure has nothing

Targets. `real` means all updates of all rounds of all five models together, sums divided by sums, so that nobody chose
a model; the worst model is told beside them.

    iid_1pct_over_bound, iid_01pct_over_bound     synthetic, over_bound
    real_noniid_1pct_over_bound, real_iid_...     over_bound of the runs at 1 % with uneven, with even data
    real_1pct_dense_over_bytes, real_01pct_...    dense_over_bytes of the runs with even and uneven data
    encode_time_vs_zstd19                         our encode_ms (context, 1 bit) over that of zstd -19 on the raw
                                                  indices and float32 values, sums over all real samples at 1 %
    worst_case_over_rice                          the largest of: payload with coding 'context' over the same with
                                                  'rice', of any single update; synthetic over plain Golomb-Rice
    envelope_overhead_bytes                       the most that a sealed update has around its payload, at 100,000 bytes
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks import codec_measure, codec_runs, codec_tasks
from benchmarks.codec_measure import BY_CONTEXT, ZSTD
from benchmarks.demo import machine
from benchmarks.postage import sealed_update_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.codec_runs import Run, Size

ROOT: Final = Path(__file__).parents[1]
SHIPPED: Final = ROOT / "firmware_sim/models"
SPREADS: Final = {"uneven": False, "even": True}
LARGEST_PAYLOAD: Final = 100_000


def main() -> None:
    """Run, measure, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    models, data = _folder("FLEET_MODELS", "mlperf_tiny"), _folder("FLEET_DATA", "cifar10_3k")
    runs = codec_runs.synthetic()
    for make in codec_tasks.tasks(models, data, SHIPPED).values():
        for spread, even in SPREADS.items():
            task = make(even)
            for rate in codec_runs.RATES:
                runs.append(codec_runs.real(task, spread, rate))
                _tell(_line(run_row(runs[-1])))
    with tempfile.TemporaryDirectory() as folder:
        coders = codec_measure.measure(runs, Path(folder) / "updates.npz", _tell)
    rows = [*map(run_row, runs), *coders]
    found = {
        "machine": machine(),
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "rows": rows,
        "targets": targets(runs, coders),
    }
    if arguments.plot:
        from benchmarks.codec_plot import plot

        plot(found, arguments.plot)
    print(json.dumps(found) if arguments.json else "\n".join(tables(found)))


def run_row(run: Run) -> dict[str, Any]:
    """All updates of one run, together and round by round."""
    rounds: dict[int, list[Size]] = {}
    for size in run.sizes:
        rounds.setdefault(size.round_id, []).append(size)
    return {
        "kind": "run", "data": run.group.data, "spread": run.group.spread, "rate": run.group.rate,
        "params": run.num_params, "updates": len(run.sizes), "values": _sum(run.sizes, "count") / len(run.sizes),
        "bytes": _sum(run.sizes, "payload") / len(run.sizes),
        "sealed_bytes": _sum(run.sizes, "sealed") / len(run.sizes),
        "bits_per_nonzero": _bits(run.sizes, "payload"), "rice_bits_per_nonzero": _bits(run.sizes, "rice"),
        "stc_bits_per_nonzero": _bits(run.sizes, "stc"), "over_bound": over_bound(run.sizes),
        "dense_over_bytes": dense_over_bytes(run.sizes), "scores": run.scores,
        "curve": {
            "round": list(rounds), "ours": [_bits(sizes, "payload") for sizes in rounds.values()],
            "rice": [_bits(sizes, "rice") for sizes in rounds.values()],
            "bound": [_sum(sizes, "bound_bits") / _sum(sizes, "count") for sizes in rounds.values()],
        },
    }  # fmt: skip


def targets(runs: Sequence[Run], coders: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """The figures of targets; None where something that they need is missing."""

    def sizes(rate: str, *spreads: str) -> list[Size]:
        return [size for run in runs if run.group.rate == rate and run.group.spread in spreads for size in run.sizes]

    synthetic = [run.sizes for run in runs if run.group.spread == "synthetic"]
    asking = [size.payload / size.ours_rice for run in runs for size in run.sizes]
    plain = [_sum(sizes, "payload") / _sum(sizes, "rice") for sizes in synthetic]
    return {
        "iid_1pct_over_bound": over_bound(sizes("1 %", "synthetic")),
        "iid_01pct_over_bound": over_bound(sizes("0.1 %", "synthetic")),
        "real_noniid_1pct_over_bound": over_bound(sizes("1 %", "uneven")),
        "real_iid_1pct_over_bound": over_bound(sizes("1 %", "even")),
        "real_1pct_dense_over_bytes": dense_over_bytes(sizes("1 %", *SPREADS)),
        "real_01pct_dense_over_bytes": dense_over_bytes(sizes("0.1 %", *SPREADS)),
        "encode_time_vs_zstd19": time_over_zstd([row for row in coders if row["rate"] == "1 %"]),
        "worst_case_over_rice": max(asking + plain, default=None),
        "envelope_overhead_bytes": sealed_update_bytes("device-01", bytes(LARGEST_PAYLOAD)) - LARGEST_PAYLOAD,
    }


def over_bound(sizes: Sequence[Size]) -> float | None:
    """Bits of all payloads over log2 C(n, k) + k of all; None of no updates."""
    return 8.0 * _sum(sizes, "payload") / _sum(sizes, "bound_bits") if sizes else None


def dense_over_bytes(sizes: Sequence[Size]) -> float | None:
    """Dense float32 over sealed messages; None of no updates."""
    return 4.0 * _sum(sizes, "size") / _sum(sizes, "sealed") if sizes else None


def time_over_zstd(coders: Sequence[dict[str, Any]]) -> float | None:
    """Our encoding over zstd's, of all real samples in these rows; None where one of them was not measured."""
    ours, theirs = (
        [row["encode_ms"] * row["updates"] for row in coders
         if row["coder"] == coder and row["spread"] != "synthetic" and "encode_ms" in row]
        for coder in (BY_CONTEXT, ZSTD)
    )  # fmt: skip
    return sum(ours) / sum(theirs) if ours and len(ours) == len(theirs) else None


def worst(rows: Sequence[dict[str, Any]], rate: str, field: str, largest: Any) -> tuple[str, float] | None:
    """The model and spread whose run has the worst figure."""
    found = [
        (f"{row['data']}, {row['spread']}", float(row[field]))
        for row in rows
        if row["kind"] == "run" and row["spread"] != "synthetic" and row["rate"] == rate
    ]
    return largest(found, key=lambda pair: pair[1]) if found else None


def tables(found: dict[str, Any]) -> list[str]:
    """The rows as Markdown tables, the targets, and the worst models beside them."""
    lines = [
        f"{found['machine']}, {found['date']}",
        "",
        "| updates of a run | rate | params | updates | bytes | bits/nz | Rice | / bound | dense / sealed | score |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    runs = [row for row in found["rows"] if row["kind"] == "run"]
    lines += [_line(row) for row in runs]
    lines += [
        "",
        "| samples of | rate | coder | bytes | bits/nz | / bound | dense / bytes | encode ms | decode ms |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        if row["kind"] == "coder":
            head = [f"{row['data']}, {row['spread']}", row["rate"], row["coder"]]
            lines.append(_cells(*head, *([row["reason"]] if "reason" in row else _figures(row))))
    lines += ["", *(f"{name} {'not measured' if value is None else format(value, '.4g')}"
                    for name, value in found["targets"].items())]  # fmt: skip
    for rate in codec_runs.RATES:
        for field, largest in (("over_bound", max), ("dense_over_bytes", min)):
            if (place := worst(runs, rate, field, largest)) is not None:
                lines.append(f"worst {field} at {rate}: {place[1]:.4g} ({place[0]})")
        if (slowest := _slowest(found["rows"], rate)) is not None:
            lines.append(f"worst encode_time_vs_zstd19 at {rate}: {slowest[0]:.4g} ({slowest[1]})")
    return lines


def _slowest(rows: Sequence[dict[str, Any]], rate: str) -> tuple[float, str] | None:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["kind"] == "coder" and row["rate"] == rate:
            groups.setdefault(f"{row['data']}, {row['spread']}", []).append(row)
    times = [(time_over_zstd(group), name) for name, group in groups.items()]
    return max(((time, name) for time, name in times if time is not None), default=None)


def _figures(row: dict[str, Any]) -> list[str]:
    times = [f"{row[name]:.3f}" if name in row else "" for name in ("encode_ms", "decode_ms")]
    return [
        f"{row['bytes']:.0f}", f"{row['bits_per_nonzero']:.2f}", f"{row['over_bound']:.3f}",
        f"{row['dense_over_bytes']:.0f}", *times,
    ]  # fmt: skip


def _line(row: dict[str, Any]) -> str:
    score = ""
    if row["scores"]:
        (_, accuracy, loss), (_, last_accuracy, last_loss) = row["scores"][0], row["scores"][-1]
        score = f"{accuracy:.3f} → {last_accuracy:.3f}" if last_accuracy else f"loss {loss:.1f} → {last_loss:.1f}"
    return _cells(
        f"{row['data']}, {row['spread']}", row["rate"], f"{row['params']:,}", str(row["updates"]),
        f"{row['bytes']:.0f}", f"{row['bits_per_nonzero']:.2f}", f"{row['rice_bits_per_nonzero']:.2f}",
        f"**{row['over_bound']:.3f}**", f"**{row['dense_over_bytes']:.0f}**", score,
    )  # fmt: skip


def _cells(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _sum(sizes: Sequence[Size], name: str) -> float:
    return sum(float(getattr(size, name)) for size in sizes)


def _bits(sizes: Sequence[Size], name: str) -> float:
    return 8.0 * _sum(sizes, name) / _sum(sizes, "count")


def _folder(variable: str, content: str) -> Path:
    path = Path(os.environ.get(variable, ""))
    if not (path / content).is_dir():
        sys.exit(
            f"{variable} names no folder that holds {content}/; set it, for instance {variable}=/data make bench-codec"
        )
    return path


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
