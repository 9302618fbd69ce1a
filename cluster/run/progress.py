"""The live progress line, and messages above it."""

import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from metagrad.errors import printable

_SECONDS_BETWEEN_PLAIN_LINES = 10.0


class Progress:
    """One line kept up to date on a terminal; a plain line now and then where output goes to a file."""

    def __init__(self, console: Console, updates: int):
        self._console = console
        self._updates = updates
        self._live = Live(console=console, refresh_per_second=4, transient=False) if console.is_terminal else None
        self._last_plain = -_SECONDS_BETWEEN_PLAIN_LINES

    def __enter__(self) -> "Progress":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, message: str) -> None:
        """One message that stays."""
        self._console.print(Text(printable(message)), soft_wrap=True)  # Text: a path's [brackets] are no markup

    def begin(self, message: str) -> None:
        """What the line says until the first update is done; terminals only."""
        if self._live is not None:
            self._live.update(Text(printable(message)))

    def show(
        self,
        update: int,
        frames_per_second: float,
        return_mean: float | None,
        eta: dict[str, float],
        lag: float,
        is_last: bool,
    ) -> None:
        """The run as of now."""
        returns = "-" if return_mean is None else f"{return_mean:.2f}"
        learnt = "  ".join(f"{name} {value:.4f}" for name, value in eta.items())
        line = printable(
            f"update {update}/{self._updates}  {frames_per_second:,.0f} frames/s  return {returns}  "
            f"{learnt}  lag {lag:g}"
        )
        now = time.monotonic()
        if self._live is not None:
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"))
        elif is_last or now - self._last_plain >= _SECONDS_BETWEEN_PLAIN_LINES:
            self._last_plain = now
            self._console.print(Text(line), soft_wrap=True)
