"""Tables of the speed benchmark."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table

LABELS = {"cpu_s": "CPU s", "wall_s": "wall s"}


def tables(results: dict[str, Any]) -> Iterator[Table]:
    """All tables, in reading order."""
    yield update_table(results)
    yield phase_table(results)
    if "compare" in results:
        yield compare_table(results)
    yield rate_table(results)


def ranged(values: dict[str, float], digits: int = 2) -> str:
    """Median with its range in brackets."""
    low, middle, high = (f"{values[key]:.{digits}f}" for key in ("min", "median", "max"))
    return f"{middle} [{low}-{high}]"


def minimum(results: dict[str, Any], phase: str) -> float:
    """Seconds that the arithmetic of a phase takes at the machine's own matmul rate."""
    gflop: float = results["counts"][phase]["gflop"]
    rate: float = results["matmul_gflop_per_s"]["median"]
    return gflop / rate


def update_table(results: dict[str, Any]) -> Table:
    """One update as a whole."""
    o, total = results["options"], results["counts"]["total"]
    kind = f"{o['actions']} {'continuous' if o['continuous'] else 'discrete'} actions"
    title = (
        f"one update of {o['agent']}-{o['size']}, {o['batch']}x{o['length']}, "
        f"{o['image_size']} pixels, {kind}, compile {o['compile']}, {o['precision']}"
    )
    table = Table("quantity", "value", title=title)
    table.add_row("CPU s [range]", ranged(results["update"]["cpu_s"], 3))
    table.add_row("wall s [range]", ranged(results["update"]["wall_s"], 3))
    table.add_row("GFLOP", f"{total['gflop']:.1f}")
    if "needed_gflop" in results:
        needed = results["needed_gflop"]
        table.add_row("GFLOP that its layers need", f"{sum(needed.values()):.1f}")
    table.add_row("ATen ops / kernels (no views)", f"{total['ops']:,.0f} / {total['kernels']:,.0f}")
    unit = LABELS[results["clock"]]
    rate = ranged(results["matmul_gflop_per_s"], 0)
    table.add_row(f"matmul 1024^3, GFLOP per {unit}", rate)
    table.add_row("share of that rate", f"{100 * results['matmul_fraction']:.0f} %")
    table.add_row("peak RSS, MiB", f"{results['peak_rss_mib']:,.0f}")
    return table


def phase_table(results: dict[str, Any]) -> Table:
    """Each phase beside the least its arithmetic needs."""
    clock = results["clock"]
    columns = ("phase", "GFLOP", "kernels", LABELS[clock], "minimum s", "ratio")
    table = Table(*columns, title="phases; minimum = GFLOP / matmul rate")
    timed = results.get("phases", {})
    for name, counts in results["counts"].items():
        least = minimum(results, name)
        seconds = timed[name][clock]["median"] if name in timed else None
        table.add_row(
            name,
            f"{counts['gflop']:.2f}",
            f"{counts['kernels']:,.0f}",
            "-" if seconds is None else f"{seconds:.3f}",
            f"{least:.3f}",
            f"{seconds / least:.2f}" if seconds is not None and least > 0 else "-",
            end_section=name == "total",
        )
    if "needed_gflop" in results:
        parts = (f"{name} {gflop:.2f}" for name, gflop in results["needed_gflop"].items())
        table.caption = f"GFLOP that the layers need: {', '.join(parts)}"
    if "scan_product" in results:
        scan = results["scan_product"]
        shape = f"{scan['rows']}x{scan['inner']} by {scan['inner']}x{scan['columns']}"
        rate = f"{scan['gflop_per_s']:.0f} GFLOP per {LABELS[clock]}"
        table.caption = f"a product of the scan, {shape}: {rate}"
    return table


def compare_table(results: dict[str, Any]) -> Table:
    """Eager and compiled updates that took turns in one process."""
    found, clock = results["compare"], results["clock"]
    table = Table("quantity", "value", title=f"eager and compiled in turn, {LABELS[clock]}")
    for name in [name for name in ("eager", "inductor", "graph") if name in found]:
        table.add_row(f"{name} update", ranged(found[name][clock], 3))
        if name != "eager":
            table.add_row(f"{name} / eager", ranged(found[f"{name}_over_eager"]))
    table.add_row(
        "first update, nothing compiled, wall s", f"{found['cold_first_update']['wall_s']:.1f}"
    )
    table.add_row("first update, warm cache, wall s", f"{found['warm_first_update']['wall_s']:.1f}")
    return table


def rate_table(results: dict[str, Any]) -> Table:
    """Replay, environments and worlds."""
    table = Table("part", "by the wall clock", "by CPU seconds", title="around the update")
    replay = results["replay"]
    labels = {
        "sample": "one batch",
        "sample_alone": "one batch, copies left out",
        "copy_of_as_many_bytes": "a plain copy",
        "add": "one new row",
        "set_priority": "its new priorities",
    }
    for key in (key for key in labels if key in replay):
        wall, cpu = (
            ranged({k: 1e3 * v for k, v in replay[key][clock].items()})
            for clock in ("wall_s", "cpu_s")
        )
        table.add_row(f"replay: ms for {labels[key]}", wall, cpu)
    table.add_row("replay: windows/s", f"{replay['windows_per_s']:,.0f}", "")
    for env in results["environments"]:
        name = f"{env['task']} x{env['num_envs']}: steps/s"
        table.add_row(name, *_rates(env))
    for world in results["worlds"]:
        table.add_row(f"torch worlds x{world['worlds']}: steps/s", *_rates(world))
    return table


def _rates(row: dict[str, Any]) -> tuple[str, str]:
    cpu = row["steps_per_cpu_s"]
    return f"{row['steps_per_s']:,.0f}", "-" if cpu is None else f"{cpu:,.0f}"
