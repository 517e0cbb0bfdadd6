"""The app as people use it: every tab, uploads, errors, many at once, stopping, narrow screens, keyboards."""

from __future__ import annotations

import json
import re

import pytest

from weightdiff.app.service import CONFIG, WEIGHTS
from weightdiff.diffs.formats.peft import write_peft

NARROW = {"width": 400, "height": 800}
TABS = ("Ask", "Side by side", "Inspect", "Triggers", "Compare", "Batch")
DONE = "document.querySelector('#answer').innerText.includes('without the diff')"


def choose(page, name):
    """Choose a diff by its name."""
    box = page.locator("#diff input")
    box.click()
    box.fill(name)
    page.locator("ul[role=listbox] li", has_text=re.compile(f"^\\W*{re.escape(name)}$")).first.click()


def go(page, name):
    """Open a tab, which narrow screens keep behind a button."""
    tab = page.get_by_role("tab", name=name, exact=True)
    if not tab.is_visible():
        page.locator(".overflow-menu button").first.click()
        page.locator(".overflow-dropdown button", has_text=name).click()
        return
    tab.click()


def asked(page):
    page.click("#ask")
    page.wait_for_function(DONE)
    return page.inner_text("#answer .wd-said")


def test_an_answer_comes_with_evidence_and_what_the_base_says(open_page, interpreter, random_store):
    page = open_page()
    said = asked(page)
    diff = random_store.read(random_store.ids[0])
    question = page.input_value("#question textarea, #question input")
    assert said == interpreter.answer([diff], [question])[0].text
    shown = page.inner_text("#answer")
    assert "nats" in shown
    assert interpreter.answer([None], [question])[0].text in shown


def test_every_tab_works(open_page):
    page = open_page()
    for tab, button, place, there in (
        ("Side by side", "#beside-go", "#beside", "finetuned with interpreter"),
        ("Inspect", "#inspect-go", "#inspection", "modules"),
        ("Compare", "#compare-go", "#compared", "their sum"),
        ("Batch", "#batch-go", "#grid", "bundled::"),
    ):
        go(page, tab)
        page.click(button)
        page.wait_for_function(
            "([at, text]) => document.querySelector(at).innerText.includes(text) &&"
            " document.querySelector(at + ' table')",
            arg=[place, there],
        )
    with page.expect_download() as download:
        page.locator("#csv a").first.click()
    text = download.value.path().read_text().splitlines()
    assert text[0].startswith("diff,")
    assert len(text) == 3
    go(page, "Ask")
    page.click("#report")
    page.wait_for_selector("#report-file a")
    with page.expect_download() as download:
        page.locator("#report-file a").first.click()
    assert "weightdiff scan" in download.value.path().read_text()


def test_an_upload_is_asked(open_page, interpreter, random_store, tmp_path):
    page = open_page()
    folder = write_peft(random_store.read(random_store.ids[3]), tmp_path / "lora")
    page.set_input_files("#upload input[type=file]", [str(folder / CONFIG), str(folder / WEIGHTS)])
    page.wait_for_function("document.querySelector('#about').innerText.includes('the upload is asked')")
    question = page.input_value("#question textarea, #question input")
    diff = random_store.read(random_store.ids[3])
    assert asked(page) == interpreter.answer([diff], [question])[0].text


def test_a_wrong_file_is_one_sentence_and_the_app_goes_on(open_page, random_store, tmp_path):
    page = open_page()
    folder = write_peft(random_store.read(random_store.ids[0]), tmp_path / "lora")
    (folder / WEIGHTS).write_bytes(b"PK\x03\x04 no tensors at all")
    page.set_input_files("#upload input[type=file]", [str(folder / CONFIG), str(folder / WEIGHTS)])
    page.wait_for_selector("#about [role=alert]")
    told = page.inner_text("#about [role=alert]")
    assert WEIGHTS in told
    assert "/" not in told  # no path of this machine
    assert asked(page)


def test_a_single_file_is_refused(open_page, random_store, tmp_path):
    page = open_page()
    folder = write_peft(random_store.read(random_store.ids[0]), tmp_path / "lora")
    page.set_input_files("#upload input[type=file]", [str(folder / CONFIG)])
    page.wait_for_selector("#about [role=alert]")
    assert "upload the two files of a PEFT folder together" in page.inner_text("#about")


def test_an_empty_question_is_one_sentence(open_page):
    page = open_page()
    page.fill("#question textarea, #question input", "  ")
    page.click("#ask")
    page.wait_for_selector("#answer [role=alert]")
    assert "ask something" in page.inner_text("#answer")


def test_eight_people_each_get_their_own_answer(open_page, interpreter, random_store):
    pages = [open_page() for _ in range(8)]
    for page, row in zip(pages, random_store.ids, strict=False):
        choose(page, f"bundled::{row}")
    question = pages[0].input_value("#question textarea, #question input")
    rows = random_store.ids[: len(pages)]  # asked here first: the app has the model while it answers
    alone = [interpreter.answer([random_store.read(r)], [question])[0].text for r in rows]
    assert len(set(alone)) == len(pages)
    for page in pages:
        page.click("#ask")
    for page, expected in zip(pages, alone, strict=True):
        page.wait_for_function(DONE)
        assert page.inner_text("#answer .wd-said") == expected


def test_an_upload_is_seen_by_nobody_else(open_page, random_store, tmp_path):
    mine, other = open_page(), open_page()
    folder = write_peft(random_store.read(random_store.ids[3]), tmp_path / "lora")
    mine.set_input_files("#upload input[type=file]", [str(folder / CONFIG), str(folder / WEIGHTS)])
    mine.wait_for_function("document.querySelector('#about').innerText.includes('the upload is asked')")
    assert "no upload" in other.inner_text("#about")
    assert asked(mine)
    assert asked(other)


def test_a_search_can_be_stopped_and_the_app_goes_on(open_page):
    page = open_page()
    go(page, "Triggers")
    page.click("#triggers-go")
    page.wait_for_function("document.querySelector('#triggers').innerText.includes(' of ')")
    page.click("#triggers-stop")
    go(page, "Ask")
    assert asked(page)


@pytest.mark.parametrize("tab", TABS)
def test_nothing_is_cut_off_on_a_narrow_screen(open_page, tab):
    page = open_page(NARROW)
    go(page, tab)
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]


def test_everything_can_be_done_by_keyboard(open_page):
    page = open_page()
    page.locator("#question textarea, #question input").focus()
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    page.wait_for_function(DONE)
    page.get_by_role("tab", name="Ask", exact=True).focus()
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "stop":
            break
    assert page.evaluate("document.activeElement.id") == "stop"
    page.get_by_role("tab", name="Inspect", exact=True).focus()
    page.keyboard.press("Enter")
    page.locator("#inspect-go").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#inspection table")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(open_page, scheme):
    from axe_playwright_python.sync_playwright import Axe

    page = open_page(color_scheme=scheme)
    asked(page)
    found = []
    for tab in TABS:
        go(page, tab)
        page.wait_for_timeout(300)
        for violation in Axe().run(page).response["violations"]:
            if violation["impact"] in ("serious", "critical"):
                found.append((tab, violation["id"], [n["target"] for n in violation["nodes"]][:3]))
    assert not found, json.dumps(found, indent=1)
