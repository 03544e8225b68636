"""The table of docs/models.md, from what the suite found."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.conformance.era import ALIASES
from tests.conformance.suite import WAYS, Outcome
from vllm.models.foreign_names import UNFIT

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- by python -m tests.conformance --write -->", "<!-- end -->"


def write(names: Sequence[str], outcomes: Sequence[Outcome]) -> None:
    """Put the table into the page, between its marks."""
    text = PAGE.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text("\n".join([before + BEGIN, *table(names, outcomes), END]) + after, "utf-8")


def table(names: Sequence[str], outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield what was found, in Markdown: `names` are the model types that were examined."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    passed = sum(outcome.passed for outcome in outcomes)
    yield ""
    yield (
        f"{passed} of {len(outcomes)} model types agree in all five ways ({', '.join(WAYS)}); transformers "
        f"{transformers.__version__}, {time.strftime('%Y-%m-%d')}."
    )
    yield ""
    yield "| architecture | model type | computed by | agrees | largest difference |"
    yield "|---|---|---|---|---|"
    for name, outcome in sorted(
        zip(names, outcomes, strict=True), key=lambda pair: (pair[1].architecture.lower(), pair[0])
    ):
        architecture = outcome.architecture
        if not outcome.route:
            architecture = str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(name, architecture))
        difference = f"{outcome.worst:.0e}" if outcome.ways else ""
        yield f"| `{architecture}` | {name} | {outcome.route or ('refused' if architecture in UNFIT else '')} | {_ways(architecture, outcome)} | {difference} |"
    for name, other in ALIASES.items():
        yield f"| `{name}` | | as `{other}` | | |"
    yield ""


_ELSEWHERE = {"Gemma3nForConditionalGeneration": "its tower needs timm; its text part is compared as gemma3n_text"}
"""Why an architecture that is supported isn't compared here"""


def _ways(architecture: str, outcome: Outcome) -> str:
    if outcome.passed:
        return "in all ways"
    if good := [way for way in WAYS if outcome.ways.get(way)]:
        return ", ".join(good)
    reason = UNFIT.get(architecture) or _ELSEWHERE.get(architecture) or outcome.reason
    return f"not compared: {_cell(reason)}" if reason else "no"


def _cell(text: str) -> str:
    """Return a reason as a table can have it."""
    return text.replace("|", "/").replace("<", "(").replace(">", ")").replace("`", "'")[:120]
