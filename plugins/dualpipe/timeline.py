"""Timelines as text."""

from typing import Final

from .schedule import Backward, BackwardInput, BackwardWeight, Forward, parts
from .simulate import Span, Timeline

COLUMNS_MAX: Final = 400
"""Wider lines are wrapped by every terminal, and then nobody can read them."""

LETTERS: Final = {Forward: "F", Backward: "B", BackwardInput: "I", BackwardWeight: "W"}


def _title(timeline: Timeline) -> str:
    """One line that says what a timeline shows."""
    schedule = timeline.schedule
    return (
        f"{schedule.name}: {schedule.ranks} ranks, {schedule.stages} stages, {schedule.micro_batches} micro-batches; "
        f"makespan {timeline.makespan:.4g}, idle {timeline.bubble:.1%}"
    )


def as_text(timeline: Timeline) -> str:
    """A line for each rank. Small letters are tasks of the second module, dots are idle time.

    Raises: ValueError if the lines would be too wide.
    """
    tasks = [span for spans in timeline.spans for span in spans if span.end > span.start]
    scale = max(((len(_label(span)) + 1) / (span.end - span.start) for span in tasks), default=1.0)
    if timeline.makespan * scale > COLUMNS_MAX:
        raise ValueError(
            f"as text this needs {timeline.makespan * scale:.0f} columns, more than {COLUMNS_MAX}: show less"
        )
    lines = [_title(timeline)]
    for rank, spans in enumerate(timeline.spans):
        line = ["·"] * round(timeline.makespan * scale)
        for span in spans:
            first, last = round(span.start * scale), round(span.end * scale)
            if last > first:
                line[first:last] = _label(span).ljust(last - first - 1)[: last - first - 1] + "|"
        lines.append(f"rank {rank:<3}|{''.join(line)}")
    return "\n".join(lines)


def _label(span: Span) -> str:
    texts = []
    for part in parts(span.task):
        letter = LETTERS[type(part)]
        texts.append(f"{letter.lower() if part.module % 2 else letter}{part.chunk}")
    return "".join(texts)


__all__ = ["as_text"]
