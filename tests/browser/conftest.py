"""The app on this machine and a headless Chromium; skipped where one of the two is not installed."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CHROMIUM = next(
    (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None
)
SHOTS = os.environ.get("WEIGHTDIFF_SCREENSHOTS")
"""Folder for screenshots; none are taken without."""
WIDE, NARROW = {"width": 1200, "height": 900}, {"width": 400, "height": 800}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason."""
    why = None
    if CHROMIUM is None:
        why = "no Chromium on this machine"
    for package in ("gradio", "playwright"):
        if importlib.util.find_spec(package) is None:
            why = f"{package} is not installed"
    for item in items:
        if Path(item.path).is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.filterwarnings("default"))  # gradio's own are not ours to mend
            if why:
                item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="module")
def interpreter(embedded_base: Any) -> Any:
    from weightdiff.methods.dit import Interpreter
    from weightdiff.models.rendering import Rendering
    from weightdiff.training.factory import random_diff

    return Interpreter(embedded_base, random_diff(embedded_base.spec, 2, 5, 0.5), Rendering(), 6, {})


@pytest.fixture(scope="module")
def url(interpreter: Any, random_store: Any) -> Iterator[str]:
    """Where the app is."""
    from weightdiff.app.service import Service
    from weightdiff.app.ui import build, launch

    service = Service(interpreter, random_store, megabytes=1)
    pages = build(service)
    _, address, _ = launch(pages, service, server_name="127.0.0.1", prevent_thread_lock=True)
    yield address
    pages.close()
    service.close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any, url: str, request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Opens the app in a browser of its own; at the end there must be no error in any console."""
    opened: list[Any] = []
    errors: list[str] = []

    def call(size: dict[str, int] | None = None, **options: Any) -> Any:
        context = chromium.new_context(viewport=size or WIDE, **options)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.goto(url)
        page.wait_for_selector("#ask")
        opened.append(page)
        return page

    yield call
    if SHOTS and opened:
        Path(SHOTS).mkdir(parents=True, exist_ok=True)
        opened[-1].screenshot(path=str(Path(SHOTS) / f"{request.node.name}.png"), full_page=True)
    for page in opened:
        page.context.close()
    assert errors == []
