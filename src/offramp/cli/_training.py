"""Shows a training run while it goes on: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from offramp.cli import _output
from offramp.report import training
from offramp.report.lines import Line
from offramp.train import events
from offramp.train.metrics import read_lines

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from offramp.train.folder import RunFolder

PLAIN_EVERY_S = 10.0  # between lines of steps where there is no terminal
PICTURE = "loss.svg"


class Display:
    """Shows events; as a context, puts the terminal back at its end."""

    def __init__(self, stream: TextIO, folder: RunFolder) -> None:
        self._stream, self._folder = stream, folder
        self._last_s = 0.0
        self._live: Progress | None = None
        self._task: TaskID | None = None
        self._losses: list[float] = []

    def __enter__(self) -> Display:
        if self._stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TimeRemainingColumn(),
                console=Console(file=self._stream, highlight=False),
                transient=True,
            )
            self._live.start()
            self._task = self._live.add_task("preparing", total=None)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _say(self, text: str) -> None:
        if self._live is not None:
            self._live.console.print(text, markup=False, soft_wrap=True)
        else:
            print(text, file=self._stream, flush=True)

    def _describe(self, text: str, done: int | None = None, total: int | None = None) -> None:
        """Change the live line; without one, say it now and then."""
        if self._live is not None and self._task is not None:
            self._live.update(self._task, description=text, completed=done, total=total)
        elif time.monotonic() - self._last_s > PLAIN_EVERY_S:
            self._last_s = time.monotonic()
            self._say(f"  {text}")

    def show(self, event: events.Event) -> None:
        """Show one event."""
        getattr(self, f"_{type(event).__name__.lower()}")(event)

    def _prepared(self, event: events.Prepared) -> None:
        self._describe(f"{event.what}: {event.done:,}", event.done, event.total)

    def _began(self, event: events.Began) -> None:
        going_on = f", going on from step {event.step}" if event.step else ""
        rows = [Line(label, text) for label, text in event.facts]
        title = f"offramp train{going_on}"
        if self._live is not None:
            from offramp.report.lines import styled

            self._live.console.print(styled(title, rows))
        else:
            _output.show(title, rows, self._stream)

    def _stepped(self, event: events.Stepped) -> None:
        self._losses.append(event.metrics["loss"])
        text = training.step_line(event.step, event.total, event.metrics)
        if self._live is not None:
            text += f"  {training.sparkline(self._losses, 16)}"
        self._describe(text, event.step, event.total)

    def _evaluated(self, event: events.Evaluated) -> None:
        self._say(f"  step {event.step}  held-out loss {event.loss:.4f}")

    def _sampled(self, event: events.Sampled) -> None:
        when = f"after {event.step} steps" if event.step else "before training"
        self._say(f"  the model writes, {when}:")
        for prompt, text in event.texts:
            shown = (prompt + text).encode("unicode_escape").decode("ascii")
            self._say(f"    {shown[:160]}")

    def _saved(self, event: events.Saved) -> None:
        self._describe(f"saved {event.path}")

    def _warned(self, event: events.Warned) -> None:
        self._say(f"  warning: {event.text}")

    def _ended(self, event: events.Ended) -> None:
        self._stop()
        records = read_lines(self._folder.metrics)
        losses = [r["loss"] for r in records if r["kind"] == "step" and r["loss"] is not None]
        rows = training.lines(event.summary, losses)
        picture = self._folder.path / PICTURE
        if training.draw(picture, records, self._folder.path.name):
            rows.insert(3, Line("picture", str(picture)))
        _output.show(training.title(event.summary), rows, self._stream)
