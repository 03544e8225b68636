"""From a run's record to RESULTS.md and its plot:  python -m benchmarks.report FOLDER

The folder holds results.json and, from `python -m benchmarks.embeddings`, `.quality` and `.server`, a file of each; it gets
RESULTS.md and results.svg.  Nothing in them is written by hand.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import goals
from benchmarks.embeddings import COUNT, EMBEDDINGS, LONGEST, SHORTEST
from benchmarks.embeddings import rows as embedding_rows
from benchmarks.gpu import GPU
from benchmarks.gpu import lines as gpu_lines
from benchmarks.measures import TITLES, median
from benchmarks.plot import draw
from benchmarks.quality import EXACT, QUALITY
from benchmarks.server import SERVER
from benchmarks.server import rows as server_rows
from benchmarks.summary import Series, Summary

RECORD, PAGE, PLOT = "results.json", "RESULTS.md", "results.svg"
BESIDE = (EMBEDDINGS, QUALITY, SERVER, GPU)
GIGA = 1e9
OURS = {"bf16": "ours-bf16", "int8": "ours-int8", "int4": "ours-int4"}
REFERENCE = "transformers"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help=f"where {RECORD} is")
    print(write(parser.parse_args().folder))


def write(folder: Path) -> str:
    """Write page and plot beside the record, and return the page."""
    summary = Summary(json.loads((folder / RECORD).read_text()))
    page = render(summary, {name: _beside(folder / name) for name in BESIDE})
    (folder / PAGE).write_text(page)
    (folder / PLOT).write_text(draw(summary))
    return page


def _beside(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else {}


def render(summary: Summary, beside: Mapping[str, Any]) -> str:
    """The page as text.  `beside` has the contents of the other files in the folder, by name."""
    parts = [
        *_opening(summary),
        *_goals(summary),
        *_workloads(summary),
        *_start_and_memory(summary),
        *_embeddings(beside.get(EMBEDDINGS)),
        *_quality(beside.get(QUALITY) or {}),
        *_server(beside.get(SERVER) or {}),
        *_gpu(beside.get(GPU)),
        *_same_tokens(summary),
        *_absent(summary),
        *_facts(summary),
    ]
    return "\n".join(parts) + "\n"


def _gpu(records: Sequence[dict[str, Any]] | None) -> Iterator[str]:
    if records:
        yield "## On a GPU\n"
        for record in records:
            yield from gpu_lines(record)


def _opening(summary: Summary) -> Iterator[str]:
    record = summary.record
    yield "# Results\n"
    yield f"Rendered by `python -m benchmarks.report` from `{RECORD}`, a run of {record['made']}.\n"
    if record["quick"]:
        yield "**A quick run, with a few tokens per workload: it shows that everything works, and no speeds.**\n"
    shape = record["shape"]
    yield (
        f"Random weights in a checkpoint of {shape['layers']} layers, hidden size {shape['hidden']}, vocabulary "
        f"{shape['vocab']}; greedy, no end token heeded, every engine on all {record['machine']['cores']} cores. "
        f"Engines took turns at each workload in {record['rounds']} rounds; figures are medians over rounds, ratios the "
        "medians of each round's ratio. The floor is what the machine would need at its own peak rates, measured before "
        "and after each turn (`floor.py`).\n"
    )
    yield f"![Share of the floor that each engine reaches]({PLOT})\n"


def _goals(summary: Summary) -> Iterator[str]:
    rows = [*_ratio_rows(summary), *_share_rows(summary), *_limit_rows(summary)]
    if not rows:
        return
    yield "## Goals\n"
    yield from _table(("goal", "at least", "is", ""), rows)


def _ratio_rows(summary: Summary) -> Iterator[Sequence[str]]:
    for goal in goals.RATIOS:
        found = summary.ratio(goal.workload, goal.measure, goal.ours, goal.peer)
        if found is not None:
            name = TITLES[goal.measure].split(",")[0]
            title = f"{goal.workload} {name}: {goal.ours} against {goal.peer}"
            yield title, f"{goal.least:.2f}×", f"{found:.2f}×", _verdict(found >= goal.least, goal.why)


def _share_rows(summary: Summary) -> Iterator[Sequence[str]]:
    for goal in goals.SHARES:
        found = summary.share(goal.workload, goal.measure, goal.ours)
        if found is not None:
            title = f"{goal.workload} {TITLES[goal.measure].split(',')[0]}: {goal.ours}, share of the floor"
            yield title, f"{goal.least:.2f}", f"{found:.2f}", _verdict(found >= goal.least, goal.why)


def _limit_rows(summary: Summary) -> Iterator[Sequence[str]]:
    for goal in goals.LIMITS:
        if goal.quantity == "start_up":
            found, unit, title = summary.start_up(goal.ours), "s", "start to first token"
        else:
            memory = summary.memory(goal.ours)
            found, unit, title = memory["rss"] / GIGA if memory else None, "GB", "peak memory"
        if found is not None:
            verdict = _verdict(found <= goal.most)
            yield f"{title}: {goal.ours}", f"at most {goal.most:.1f} {unit}", f"{found:.2f} {unit}", verdict


def _verdict(reached: bool, why: str = "") -> str:
    return "reached" if reached else f"**missed**: {why}" if why else "**missed**"


def _workloads(summary: Summary) -> Iterator[str]:
    ours = [name for name in OURS.values() if name in summary.engines]
    workload_before = None
    for workload, name in summary.measures():
        if workload != workload_before:
            yield f"## {workload}: {summary.record['workloads'][workload]['title']}\n"
            workload_before = workload
        head = ("engine", "", TITLES[name], "lowest-highest", "of the floor", *(f"{each} is" for each in ours))
        rows = []
        for engine in summary.engines:
            found = summary.series(workload, name, engine)
            if found is not None:
                values = [_number(name, found.median), _spread(name, found), _share(summary, workload, name, engine)]
                ratios = [_times(summary, workload, name, each, engine) for each in ours]
                rows.append((*_who(summary, engine), *values, *ratios))
        yield from _table(head, rows)


def _times(summary: Summary, workload: str, name: str, ours: str, peer: str) -> str:
    """How many times as fast ours is; in bold where both compute in one precision."""
    found = None if ours == peer else summary.ratio(workload, name, ours, peer)
    if found is None:
        return ""
    engines = summary.record["engines"]
    fair = engines[ours]["precision"] == engines[peer]["precision"]
    return f"**{found:.2f}×**" if fair else f"{found:.2f}×"


def _start_and_memory(summary: Summary) -> Iterator[str]:
    rows = []
    for engine in summary.engines:
        seconds, memory = summary.start_up(engine), summary.memory(engine)
        if seconds is not None or memory is not None:
            sizes = [f"{memory[each] / GIGA:.2f}" if memory else "" for each in ("rss", "pss", "anonymous")]
            rows.append((*_who(summary, engine), "" if seconds is None else f"{seconds:.2f}", *sizes))
    if not rows:
        return
    yield "## Start and memory\n"
    yield (
        "From the start of the process to the first token of a prompt of 16 tokens, the checkpoint being in the page "
        "cache; and the most memory that all processes of an engine took in loading, that prompt, and W1, with a cache "
        "of 200 MB (16 bits a value). In `resident`, memory that processes share counts in each of them; in "
        "`proportional` once. Both contain mapped pages of the checkpoint's file, `anonymous` does not.\n"
    )
    yield from _table(("engine", "", TITLES["start_up"], "resident, GB", "proportional, GB", "anonymous, GB"), rows)


def _quality(quality: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    if not quality:
        return
    yield "## Quality\n"
    yield (
        "Perplexity of the default model on documents that it was not trained on, in pieces of 512 tokens; and what the "
        f"logits of the random checkpoint are off those of {EXACT}, relative to these, after 16 prompts of 64 tokens. "
        "Random weights have no structure that would forgive an error: the most likely of 151,936 tokens leads by little. "
        "(`python -m benchmarks.quality`)\n"
    )
    rows = []
    for name, found in quality.items():
        error = f"{100 * found['error']:.2f} %" if "error" in found else ""
        same = f"{100 * found['same']:.0f} %" if "same" in found else ""
        rows.append((name, f"{found['perplexity']:.3f}", error, same))
    yield from _table(("computed in", "perplexity", "error of logits", "same most likely token"), rows)


def _embeddings(found: Mapping[str, list[float]] | None) -> Iterator[str]:
    if not found:
        return
    yield "## W6: embeddings\n"
    yield (
        f"{COUNT} texts of {SHORTEST} to {LONGEST} words, embedded by all-MiniLM-L6-v2 (6 layers, hidden size 384, cut at 256 "
        "tokens); texts per second, medians over rounds in which both took turns. (`python -m benchmarks.embeddings`)\n"
    )
    yield from _table(
        ("", "this engine", "sentence-transformers", "this one is", "at least", ""), embedding_rows(found)
    )


def _server(found: Mapping[str, Any]) -> Iterator[str]:
    if not found:
        return
    yield "## The server's own cost\n"
    yield (
        "A model of two layers and width 64 behind `vllm serve`, prompts of 16 tokens, medians over rounds in which both "
        "servers were started anew; the client takes its share of the same cores. (`python -m benchmarks.server`)\n"
    )
    yield from _table(("", "this server", "vLLM, eager", "this one is"), server_rows(found))


def _same_tokens(summary: Summary) -> Iterator[str]:
    rows = []
    for engine in summary.engines:
        found = summary.same_tokens(engine, REFERENCE)
        if found is not None and engine != REFERENCE:
            rows.append((*_who(summary, engine), f"{found[0]} of {found[1]}"))
    if not rows:
        return
    yield "## The same model\n"
    yield (
        f"Tokens of W1 that were those of {REFERENCE} before the first that was not, over all rounds. Random weights "
        "make near ties, so rounding alone parts engines soon; one that never agreed would compute something else.\n"
    )
    yield from _table(("engine", "", "tokens in common"), rows)


def _absent(summary: Summary) -> Iterator[str]:
    record = summary.record
    rows = [(name, "everything", reason) for name, reason in record["missing"].items()]
    for name, failed in record["failed"].items():
        rows += [(name, what, reason) for what, reason in failed.items()]
    if rows:
        yield "## Not measured\n"
        yield from _table(("engine", "what", "why"), [(name, what, _one_line(why)) for name, what, why in rows])


def _facts(summary: Summary) -> Iterator[str]:
    machine = summary.record["machine"]
    yield "## The machine\n"
    yield f"* {machine['cpu']} ({machine['family']}), {machine['cores']} cores, {machine['memory_bytes'] / GIGA:.1f} GB"
    yield f"* {machine['kernel']}; transparent huge pages: {machine['huge_pages']}; {machine['compiler'] or 'no compiler'}"
    yield f"* {' '.join(machine['flags'])}"
    if roofs := summary.roofs():
        yield f"* read from memory {_range([roof.read / GIGA for roof in roofs])} GB/s"
        yield f"* bf16 {_range([roof.bf16 / GIGA for roof in roofs])} GFLOP/s"
        yield f"* int8 {_range([roof.int8 / GIGA for roof in roofs])} GOP/s"
    yield from (f"* {note}" for note in summary.record["notes"])
    yield "\n## The engines\n"
    rows = []
    for engine in summary.engines:
        facts = summary.record["engines"][engine]
        chosen = ", ".join(f"{name}={value}" for name, value in (facts["settings"] | facts["variables"]).items())
        rows.append((*_who(summary, engine), facts["checkpoint"], chosen, _pairs(facts["versions"])))
    yield from _table(("engine", "", "checkpoint", "settings", "versions"), rows)


def _who(summary: Summary, engine: str) -> tuple[str, str]:
    facts = summary.record["engines"][engine]
    return facts["title"], facts["precision"]


def _share(summary: Summary, workload: str, name: str, engine: str) -> str:
    found = summary.share(workload, name, engine)
    return "" if found is None else f"{found:.2f}"


def _number(name: str, value: float) -> str:
    if name == "first_token":
        return f"{1000 * value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _spread(name: str, series: Series) -> str:
    return f"{_number(name, series.lowest)}-{_number(name, series.highest)}"


def _range(values: Sequence[float]) -> str:
    return f"{median(values):.0f} ({min(values):.0f}-{max(values):.0f})"


def _pairs(versions: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in versions.items())


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


if __name__ == "__main__":
    main()
