"""Show a live progress line, and messages above it."""

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from metagrad.errors import printable

_SECONDS_BETWEEN_PLAIN_LINES = 10.0


class Progress:
    """Keeps one line up to date on a terminal; where output goes to a file it prints a plain line now and then."""

    def __init__(self, console: Console, updates: int):
        self._console = console
        self._updates = updates
        self._text: Callable[[], str] = str
        self._live = Live(console=console, get_renderable=self._line) if console.is_terminal else None
        self._last_plain = -_SECONDS_BETWEEN_PLAIN_LINES

    def __enter__(self) -> "Progress":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def _line(self) -> Text:
        return Text(printable(self._text()), no_wrap=True, overflow="ellipsis")

    def say(self, message: str) -> None:
        """Print a message that stays."""
        self._console.print(Text(printable(message)), soft_wrap=True)  # Text: a path's [brackets] are no markup

    def begin(self, message: str) -> None:
        """Set the line, on terminals only."""
        self._text = lambda: message

    def follow(self, text: Callable[[], str]) -> None:
        """Let the line say `text()` while time passes; print it once where there is no terminal."""
        self._text = text
        if self._live is None:
            self.say(text())

    def plain(self, line: str, is_last: bool = False) -> None:
        """Print a line where there is no terminal: at most one in ten seconds, and the last one."""
        now = time.monotonic()
        if self._live is None and (is_last or now - self._last_plain >= _SECONDS_BETWEEN_PLAIN_LINES):
            self._last_plain = now
            self.say(line)

    def show(
        self,
        update: int,
        frames_per_second: float,
        return_mean: float | None,
        eta: dict[str, float],
        lag: float,
        is_last: bool,
    ) -> None:
        """Show the run as of now."""
        returns = "-" if return_mean is None else f"{return_mean:.2f}"
        learnt = "  ".join(f"{name} {value:.4f}" for name, value in eta.items())
        line = (
            f"update {update}/{self._updates}  {frames_per_second:,.0f} frames/s  return {returns}  "
            f"{learnt}  lag {lag:g}"
        )
        self.begin(line)
        self.plain(line, is_last)
