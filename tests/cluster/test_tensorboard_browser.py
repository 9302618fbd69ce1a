"""TensorBoard in a real browser, a headless Chromium that is asked by its own protocol what it shows."""

import asyncio
import base64
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from rich.console import Console

from metagrad.cluster.config.experiment import EvaluationConfig
from metagrad.cluster.launch.launch import run
from metagrad.cluster.run.plot import logged_scalars

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Debian's chromium"),
]

# What a page shows lies in shadow roots, which innerText leaves out.
WALK = """
(() => {
  const texts = [], pictures = [];
  const walk = node => {
    if (node.nodeType === 3) texts.push(node.data.trim());
    if (node.tagName === "IMG" && node.naturalWidth) pictures.push(node.src);
    if (node.shadowRoot) walk(node.shadowRoot);
    if (!["STYLE", "SCRIPT"].includes(node.tagName)) node.childNodes.forEach(walk);
  };
  walk(document.body);
  return [texts.filter(text => text), pictures];
})()
"""

PLACE = """
text => {
  const places = [];
  const walk = node => {
    if (node.nodeType === 3 && node.data.trim() === text) places.push(node.parentElement.getBoundingClientRect().x);
    if (node.shadowRoot) walk(node.shadowRoot);
    node.childNodes.forEach(walk);
  };
  walk(document.body);
  return Math.max(...places);
}
"""


class Page:
    """A page of a browser that its protocol drives."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse):
        self._socket, self._count = socket, 0

    async def ask(self, method: str, **values: Any) -> dict[str, Any]:
        self._count += 1
        await self._socket.send_json({"id": self._count, "method": method, "params": values})
        while True:
            answer = await self._socket.receive_json()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]

    async def place(self, text: str) -> float:
        """Distance from the left of a text, where it stands furthest right."""
        answer = await self.ask("Runtime.evaluate", expression=f"({PLACE})({text!r})", returnByValue=True)
        return float(answer["result"]["value"])

    async def shown(self, url: str, is_there: Callable[[list[str], list[str]], object]) -> tuple[list[str], list[str]]:
        """Texts and loaded pictures of a page, once they are what is waited for."""
        await self.ask("Page.navigate", url="about:blank")
        await self.ask("Page.navigate", url=url)
        while True:
            answer = await self.ask("Runtime.evaluate", expression=WALK, returnByValue=True)
            texts, pictures = answer["result"].get("value", ([], []))
            if is_there(texts, pictures):
                return texts, pictures
            await asyncio.sleep(0.2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def board(runs: Path) -> Iterator[str]:
    """The address of a TensorBoard of all runs."""
    program = "from tensorboard.main import run_main; run_main()"
    words = ["--logdir", str(runs), "--host", "127.0.0.1", "--port", "0", "--load_fast", "false"]
    with subprocess.Popen([sys.executable, "-c", program, *words], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if " at http" in line)
        yield line.split(" at ")[1].split()[0]
        process.kill()


def test_the_browser_shows_returns_options_and_an_episode(
    tiny: Callable[..., Any], console: Console, runs: Path, board: str, tmp_path: Path
) -> None:
    for name, seed in (("one", 1), ("two", 2)):
        evaluation = EvaluationConfig(every=6, episodes=2, is_shown=True)
        run(tiny(seed=seed, evaluation=evaluation, rollout_length=8), runs / name, False, console)
    returns = [logged_scalars(runs / name)["episode/return_mean"][1][-1] for name in ("one", "two")]

    async def look() -> None:
        words = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0"]
        browser = await asyncio.create_subprocess_exec(
            "chromium", *words, f"--user-data-dir={tmp_path}", stderr=subprocess.PIPE
        )
        try:
            assert browser.stderr is not None
            line = b""
            while b"DevTools listening on ws://" not in line:
                line = await browser.stderr.readline()
            address = line.decode().split("ws://")[1].split("/")[0]
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://{address}/json/list") as answer:
                    (tab, *_) = [tab for tab in await answer.json() if tab["type"] == "page"]
                async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    await check(Page(socket))
        finally:
            browser.kill()
            await browser.wait()

    async def check(page: Page) -> None:
        # The columns of returns lie behind those of all options.
        wide = {"width": 20_000, "height": 700, "deviceScaleFactor": 1, "mobile": False}
        await page.ask("Emulation.setDeviceMetricsOverride", **wide)
        table = {"one", "two", "seed", "episode/return_mean", *(f"{value:#.5g}" for value in returns)}
        await page.shown(f"{board}#hparams", lambda texts, _: table <= set(texts))
        await keep(page, "tensorboard-returns", x=await page.place("episode/return_mean") - 500)
        await page.ask("Emulation.setDeviceMetricsOverride", **(wide | {"width": 1_000}))
        await page.shown(f"{board}#text", lambda texts, _: {"SnakeConfig", "env.rows", "3"} <= set(texts))
        await keep(page, "tensorboard-configuration")
        texts, _ = await page.shown(f"{board}#images", lambda texts, pictures: len(pictures) == 2)
        assert "evaluation/episode" in " ".join(texts)
        await keep(page, "tensorboard-episode")

    async def keep(page: Page, name: str, x: float = 0.0) -> None:
        clip = {"x": x, "y": 0, "width": 1_000, "height": 500, "scale": 0.8}
        picture = await page.ask("Page.captureScreenshot", format="png", clip=clip)
        (tmp_path / f"{name}.png").write_bytes(base64.b64decode(picture["data"]))

    asyncio.run(asyncio.wait_for(look(), 300))
