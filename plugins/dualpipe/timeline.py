"""Timelines as pictures (`draw`) and as text (`as_text`)."""

from typing import TYPE_CHECKING, Any, BinaryIO, Final

from .schedule import Backward, BackwardInput, BackwardWeight, Forward, Overlap, Part
from .simulate import Span, Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS_MAX: Final = 400
"""Of text: wider lines are wrapped by every terminal, and then nobody can read them."""

TASKS_MAX: Final = 20_000
"""Of a picture: more are thinner than a pixel, and take minutes to draw."""

COLOURS: Final[dict[type[Part], tuple[str, str]]] = {
    Forward: ("#2f6db5", "#9cc3ec"),
    Backward: ("#2e8b57", "#9fd8b4"),
    BackwardInput: ("#7d5ba6", "#cdb9e4"),
    BackwardWeight: ("#e07b1a", "#fbc98a"),
}
"""By kind of task: modules with even and odd numbers."""

NAMES: Final = {
    Forward: "forward",
    Backward: "backward",
    BackwardInput: "backward, inputs only",
    BackwardWeight: "weight gradients",
}
LETTERS: Final = {Forward: "F", Backward: "B", BackwardInput: "I", BackwardWeight: "W"}

IDLE_COLOUR: Final = "#f1f1f1"
FONT_SIZE: Final = 7.0
POINTS_AN_INCH: Final = 72
LETTER_WIDTH: Final = 0.62  # of the font size, digits of the default font
ROW_INCHES: Final = 0.42
WIDTH_INCHES: Final = (9.0, 30.0)
INCHES_A_TASK: Final = 0.24  # what a two-digit label needs


def draw(timeline: Timeline, file: BinaryIO, *, image: str = "png") -> None:
    """Writes a picture, `image` as "png" or "svg": a row for each rank, a box for each task.

    Raises: ValueError if there are too many tasks to see.
    """
    tasks = sum(map(len, timeline.spans))
    if tasks > TASKS_MAX:
        raise ValueError(
            f"{tasks} tasks are more than a picture can show ({TASKS_MAX}): draw fewer ranks or chunks"
        )
    from matplotlib.figure import Figure

    ranks = len(timeline.spans)
    lengths = (span.end - span.start for own in timeline.spans for span in own)
    shortest = min((length for length in lengths if length > 0), default=1.0)
    low, high = WIDTH_INCHES
    width = min(high, max(low, 1.2 + INCHES_A_TASK * timeline.makespan / shortest))
    figure = Figure(figsize=(width, 1.3 + ROW_INCHES * ranks), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlim(0, timeline.makespan or 1)
    axes.set_ylim(ranks - 0.5, -0.5)
    axes.set_yticks(range(ranks), [f"rank {rank}" for rank in range(ranks)])
    axes.set_xlabel("time")
    axes.set_title(title(timeline), fontsize=10)
    axes.tick_params(length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    points_a_unit = (width - 1.2) * POINTS_AN_INCH / (timeline.makespan or 1)
    for rank, spans in enumerate(timeline.spans):
        axes.barh(rank, timeline.makespan, 0.8, color=IDLE_COLOUR, zorder=0)
        for span in spans:
            _box(axes, rank, span, points_a_unit)
    for artist in (*axes.patches, *axes.texts):
        artist.set_in_layout(False)  # they lie inside the axes; asking each for its size is most of the time
    _legend(axes, timeline)
    figure.savefig(file, format=image, dpi=150)


def title(timeline: Timeline) -> str:
    """One line that says what a timeline shows."""
    schedule = timeline.schedule
    return (
        f"{schedule.name}: {schedule.ranks} ranks, {schedule.stages} stages, {schedule.micro_batches} micro-batches; "
        f"makespan {timeline.makespan:.4g}, idle {timeline.bubble:.1%}"
    )


def _box(axes: "Axes", rank: int, span: Span, points_a_unit: float) -> None:
    task = span.task
    width = span.end - span.start
    halves: list[tuple[Part, float, float]] = (
        [(task.forward, rank - 0.4, 0.4), (task.backward, rank, 0.4)]
        if isinstance(task, Overlap)
        else [(task, rank - 0.4, 0.8)]
    )
    from matplotlib.patches import Rectangle

    for part, top, height in halves:
        colour = COLOURS[type(part)][part.module % 2]
        axes.add_patch(Rectangle((span.start, top), width, height, facecolor=colour, edgecolor="none"))
        text = str(part.chunk)
        if width * points_a_unit >= len(text) * LETTER_WIDTH * FONT_SIZE + 2:
            axes.text(
                span.start + width / 2,
                top + height / 2,
                text,
                ha="center",
                va="center_baseline",
                fontsize=FONT_SIZE,
                color="black" if part.module % 2 else "white",
            )
    axes.add_patch(
        Rectangle((span.start, rank - 0.4), width, 0.8, facecolor="none", edgecolor="white", linewidth=0.8)
    )


def _legend(axes: "Axes", timeline: Timeline) -> None:
    from matplotlib.patches import Patch

    schedule = timeline.schedule
    used = {(type(part), part.module % 2) for spans in timeline.spans for span in spans for part in _of(span)}
    handles: list[Any] = []
    for kind, colours in COLOURS.items():
        for tone, colour in enumerate(colours):
            if (kind, tone) in used:
                handles.append(Patch(color=colour, label=f"{NAMES[kind]}, {_module(schedule.flows, tone)}"))
    handles.append(Patch(color=IDLE_COLOUR, label="idle"))
    axes.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.35 / max(1.0, ROW_INCHES * len(timeline.spans))),
        ncols=min(5, len(handles)),
        frameon=False,
        fontsize=8,
    )


def _module(flows: int, tone: int) -> str:
    return f"direction {tone}" if flows == 2 else f"module {tone}"


def _of(span: Span) -> tuple[Part, ...]:
    task = span.task
    return (task.forward, task.backward) if isinstance(task, Overlap) else (task,)


def as_text(timeline: Timeline) -> str:
    """A line for each rank. Small letters are tasks of the second module, dots are idle time.

    Raises: ValueError if the lines would be too wide.
    """
    tasks = [span for spans in timeline.spans for span in spans if span.end > span.start]
    scale = max(((len(_label(span)) + 1) / (span.end - span.start) for span in tasks), default=1.0)
    if timeline.makespan * scale > COLUMNS_MAX:
        raise ValueError(
            f"as text this needs {timeline.makespan * scale:.0f} columns, more than {COLUMNS_MAX}: make a picture of it"
        )
    lines = [title(timeline)]
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
    for part in _of(span):
        letter = LETTERS[type(part)]
        texts.append(f"{letter.lower() if part.module % 2 else letter}{part.chunk}")
    return "".join(texts)


__all__ = ["as_text", "draw", "title"]
