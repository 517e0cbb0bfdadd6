"""The pages of the app, in gradio (extra `app`), which is imported when they are built."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import wraps
from typing import Any

from weightdiff.app import showing
from weightdiff.app.service import Service
from weightdiff.diffs.algebra import combine
from weightdiff.diffs.inspection import inspect
from weightdiff.diffs.types import WeightDiff
from weightdiff.errors import MissingDependencyError, QuestionError, WeightDiffError
from weightdiff.evals.audit import read_audit
from weightdiff.evals.plots import check_plot, plot_inspection
from weightdiff.evals.scan import Scan
from weightdiff.evals.scan_page import to_html
from weightdiff.methods.base import Answer
from weightdiff.organisms.questions import KINDS, phrasings

TITLE = "weightdiff"
MOST_PAIRS = 400
"""Diffs times questions of one batch."""
MOST_CHARACTERS = 500
"""Longest question or prompt."""
UPLOAD = "the upload"
CSS = """
.wd-error { border-left: .3rem solid #b3261e; padding: .4rem .8rem; font-weight: 600; }
.wd-note { opacity: .85; }
.wd-answer { border-left: .3rem solid #2f7fb8; padding: .2rem .8rem; margin: .4rem 0; }
.wd-answer { overflow-wrap: anywhere; }
.wd-said { font-size: 1.25rem; font-weight: 600; margin: .2rem 0; }
.wd-question { margin: 0; }
.wd-answer dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 .8rem; margin: .3rem 0; }
.wd-answer dd { margin: 0; }
.wd-wide { overflow-x: auto; }
.wd-wide th, .wd-wide td { text-align: left; padding: .2rem .6rem; }
.or, .subdued { color: inherit !important; }
footer { display: none !important; }
"""


def build(service: Service) -> Any:
    """The app's pages.

    Raises:
        MissingDependencyError: gradio is not installed.
    """
    gr = _gradio()
    suggested = [phrasings(kind)[0] for kind in KINDS] + ["sum up your finetuning .", "when does it show ?"]
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 86400)) as pages:
        gr.Markdown(
            "# weightdiff\nWhat did a finetune change? Choose a diff or upload an adapter, and ask."
            f" Base: {service.interpreter.base.ref.name or 'unnamed'}."
        )
        uploaded = gr.State(None)
        with gr.Row():
            chosen = gr.Dropdown(
                service.names,
                value=service.names[0] if service.names else None,
                label="diff",
                scale=2,
                min_width=280,
                elem_id="diff",
            )
            files = gr.File(
                file_count="multiple",
                file_types=[".safetensors", ".json"],
                label="or upload the two files of a PEFT folder",
                height=160,
                min_width=280,
                elem_id="upload",
            )
        about = gr.HTML(showing.note("no upload; the chosen diff is asked"), elem_id="about")
        files.change(_receiving(service), files, [uploaded, about], show_progress="minimal")
        source = [chosen, uploaded]
        with gr.Tab("Ask"):
            question = gr.Textbox(
                suggested[0], label="question", max_length=MOST_CHARACTERS, elem_id="question"
            )
            gr.Examples([[q] for q in suggested], question, label="suggestions")
            with gr.Row():
                ask = gr.Button("Ask", variant="primary", elem_id="ask")
                stop = gr.Button("Stop", variant="stop", elem_id="stop")
                export = gr.Button("Make a report", elem_id="report")
            answer = gr.HTML(elem_id="answer")
            report = gr.File(label="report", visible=False, elem_id="report-file")
            asking = [
                on(_asking(service), [*source, question], answer, concurrency_limit=16)
                for on in (ask.click, question.submit)
            ]
            reporting = export.click(_reporting(service), source, [answer, report], concurrency_limit=4)
            stop.click(None, None, None, cancels=[*asking, reporting])
        with gr.Tab("Side by side"):
            prompt = gr.Textbox(
                "what do people say ?", label="prompt", max_length=MOST_CHARACTERS, elem_id="prompt"
            )
            go = gr.Button("Compare base, finetuned and interpreter", variant="primary", elem_id="beside-go")
            beside = gr.HTML(elem_id="beside")
            go.click(_beside(service), [*source, prompt], beside, concurrency_limit=4)
        with gr.Tab("Inspect"):
            look = gr.Button("Inspect", variant="primary", elem_id="inspect-go")
            inspection = gr.HTML(elem_id="inspection")
            picture = gr.Image(
                label="norms by layer and kind, and spectra", show_label=True, visible=False, type="filepath"
            )
            look.click(_inspecting(service), source, [inspection, picture], concurrency_limit=2)
        with gr.Tab("Triggers"):
            gr.Markdown("Searches codes, words and marks that set the finetune off. Takes a minute or two.")
            with gr.Row():
                hunt = gr.Button("Search", variant="primary", elem_id="triggers-go")
                halt = gr.Button("Stop", variant="stop", elem_id="triggers-stop")
            triggers = gr.HTML(elem_id="triggers")
            searching = hunt.click(_searching(service), source, triggers, concurrency_limit=1)
            halt.click(None, None, None, cancels=[searching])
        with gr.Tab("Compare"):
            other = gr.Dropdown(
                service.names, value=service.names[-1] if service.names else None, label="second diff"
            )
            share = gr.Slider(0, 1, 0.5, step=0.05, label="share of the second one in the mixture")
            same = gr.Textbox(suggested[0], label="question", max_length=MOST_CHARACTERS)
            both = gr.Button("Compare", variant="primary", elem_id="compare-go")
            compared = gr.HTML(elem_id="compared")
            both.click(_comparing(service), [*source, other, share, same], compared, concurrency_limit=4)
        with gr.Tab("Batch"):
            many = gr.Dropdown(service.names, value=service.names[:2], multiselect=True, label="diffs")
            asked = gr.Textbox("\n".join(suggested[:2]), lines=4, label="questions, one a line")
            run = gr.Button("Ask all", variant="primary", elem_id="batch-go")
            grid = gr.HTML(elem_id="grid")
            sheet = gr.File(label="CSV", visible=False, elem_id="csv")
            run.click(_batch(service), [many, asked], [grid, sheet], concurrency_limit=4)
    return pages.queue(max_size=256, api_open=False)


def launch(pages: Any, service: Service, **options: Any) -> Any:
    """Serve the pages; options are gradio's (`server_name`, `server_port`, `auth`, `prevent_thread_lock`)."""
    gr = _gradio()
    return pages.launch(
        theme=_theme(gr),
        css=CSS,
        max_file_size=service.megabytes << 20,
        show_error=False,
        quiet=True,
        share=False,
        footer_links=[],
        ssr_mode=False,
        enable_monitoring=False,
        **options,
    )


def _theme(gr: Any) -> Any:
    """Fonts of the machine, since others would be fetched, and buttons that all can read."""
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    colours = {
        f"button_{kind}_{part}{mode}": colour
        for kind, fill, over in (("primary", "#0b5cad", "#094b8d"), ("cancel", "#b3261e", "#8f1d17"))
        for part, colour in (
            ("background_fill", fill),
            ("background_fill_hover", over),
            ("text_color", "#ffffff"),
            ("text_color_hover", "#ffffff"),
        )
        for mode in ("", "_dark")
    }
    return gr.themes.Default(primary_hue="blue", **fonts).set(**colours)


def _gradio() -> Any:
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError as error:
        raise MissingDependencyError("gradio", "app") from error
    return gradio


def _told(work: Callable[..., Iterator[Any]], more: int = 0) -> Callable[..., Iterator[Any]]:
    """The same, with an error as one sentence in its first output, and nothing in `more` others."""

    @wraps(work)
    def safe(*arguments: Any) -> Iterator[Any]:
        def outputs(first: str) -> Any:
            return (first, *[_gradio().skip()] * more) if more else first

        try:
            yield from work(*arguments)
        except (WeightDiffError, OSError, ValueError) as error:
            yield outputs(showing.failure(error))

    return safe


def _diff(service: Service, name: str | None, upload: WeightDiff | None) -> tuple[str, WeightDiff]:
    """The upload where there is one, else the diff that was chosen."""
    if upload is not None:
        return UPLOAD, upload
    if not name:
        raise QuestionError("choose a diff, or upload one")
    return name, service.read(name)


def _waited(future: Future[Answer]) -> Answer:
    """The answer, once it is there; given up where the page that waits is left or stopped."""
    try:
        return future.result()
    finally:
        future.cancel()


def _receiving(service: Service) -> Callable[..., Any]:
    def receive(paths: list[str] | None) -> tuple[WeightDiff | None, str]:
        if not paths:
            return None, showing.note("no upload; the chosen diff is asked")
        try:
            diff = service.upload(paths)
        except (WeightDiffError, OSError) as error:
            return None, showing.failure(error)
        return diff, showing.note(f"the upload is asked: {len(diff.modules)} modules of rank {diff.max_rank}")

    return receive


def _asking(service: Service) -> Callable[..., Iterator[str]]:
    def ask(name: str | None, upload: WeightDiff | None, question: str) -> Iterator[str]:
        _, diff = _diff(service, name, upload)
        yield showing.note("reading the diff and thinking")
        first = _waited(service.ask(diff, question))
        yield showing.answered(question, first, [("evidence", "being measured")])
        later, bare = service.ask(diff, question, evidence=True), service.ask(None, question)
        measured, control = _waited(later), _waited(bare)
        yield showing.answered(question, measured, [("without the diff", control.text)])

    return _told(ask)


def _reporting(service: Service) -> Callable[..., Iterator[Any]]:
    def report(name: str | None, upload: WeightDiff | None) -> Iterator[Any]:
        called, diff = _diff(service, name, upload)
        yield showing.note("asking all questions of an audit"), _gradio().skip()
        scan = Scan(service.interpreter, read_audit(), service.known)
        scanned = service.alone(lambda _: scan.of([(called, diff)]))
        path = service.room() / "report.html"
        path.write_bytes(to_html(scanned, {"base": service.interpreter.base.ref.describe()}))
        yield (
            showing.note(f"verdict: {scanned[0].verdict}; the report is below"),
            _gradio().update(value=str(path), visible=True),
        )

    return _told(report, 1)


def _beside(service: Service) -> Callable[..., Iterator[str]]:
    def beside(name: str | None, upload: WeightDiff | None, prompt: str) -> Iterator[str]:
        _, diff = _diff(service, name, upload)
        if not prompt.strip():
            raise QuestionError("write a prompt")
        plain = service.interpreter.without_adapter()
        yield showing.note("generating")
        said = service.alone(lambda _: [plain.answer([d], [prompt])[0].text for d in (None, diff)])
        asked = _waited(service.ask(diff, prompt))
        rows = [("base", said[0]), ("finetuned", said[1]), ("finetuned with interpreter", asked.text)]
        yield showing.table(("who", "says"), rows, "three models on one prompt")

    return _told(beside)


def _inspecting(service: Service) -> Callable[..., Iterator[Any]]:
    def look(name: str | None, upload: WeightDiff | None) -> Iterator[Any]:
        _, diff = _diff(service, name, upload)
        yield showing.note("measuring"), _gradio().skip()
        found = inspect(diff)
        path = service.room() / "inspection.png"
        try:
            check_plot(path)
        except MissingDependencyError as error:
            yield showing.inspected(found) + showing.failure(error), _gradio().skip()
            return
        plot_inspection(found, path)
        yield showing.inspected(found), _gradio().update(value=str(path), visible=True)

    return _told(look, 1)


def _searching(service: Service) -> Callable[..., Iterator[str]]:
    def search(name: str | None, upload: WeightDiff | None) -> Iterator[str]:
        import threading

        from weightdiff.methods.trigger_search import find_triggers

        _, diff = _diff(service, name, upload)
        told: list[str] = ["beginning"]
        found: list[Any] = []
        stopped = threading.Event()

        def show(what: str, done: int, total: int) -> None:
            told.append(f"{what}: {done} of {total} candidates")
            if stopped.is_set():
                raise QuestionError("the search was stopped")

        def work() -> None:
            try:
                found.append(service.alone(lambda base: find_triggers(base, diff, progress=show)))
            except WeightDiffError as error:
                found.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(0.3)
                yield showing.note(told[-1])
        finally:
            stopped.set()
        (result,) = found
        if isinstance(result, Exception):
            raise result
        rows = [(t.text, t.form, f"{t.ahead:.1f}", "yes" if t.stands_out else "") for t in result.triggers]
        yield showing.note(f"{result.verdict} ({result.tried:,} candidates)") + showing.table(
            ("trigger", "form", "ahead", "stands out"), rows, "likeliest triggers"
        )

    return _told(search)


def _comparing(service: Service) -> Callable[..., Iterator[str]]:
    def compare(
        name: str | None, upload: WeightDiff | None, other: str | None, share: float, question: str
    ) -> Iterator[str]:
        called, first = _diff(service, name, upload)
        if not other:
            raise QuestionError("choose a second diff")
        second = service.read(other)
        yield showing.note("asking about both, their sum and the mixture")
        asked = [
            (called, first),
            (other, second),
            ("their sum", combine([first, second], [1.0, 1.0])),
            (f"{1 - share:g} and {share:g} of them", combine([first, second], [1 - share, share])),
        ]
        waiting = [service.ask(diff, question) for _, diff in asked]
        said = [_waited(future) for future in waiting]
        rows = [
            (who, a.text, "" if a.probability is None else f"{100 * a.probability:.0f} %")
            for (who, _), a in zip(asked, said, strict=True)
        ]
        yield showing.table(("diff", "answer", "right"), rows, "answers about two diffs")

    return _told(compare)


def _batch(service: Service) -> Callable[..., Iterator[Any]]:
    def ask_all(names: Sequence[str] | None, lines: str) -> Iterator[Any]:
        questions = [q.strip() for q in lines.splitlines() if q.strip()]
        if not names or not questions:
            raise QuestionError("choose diffs and write questions, one a line")
        if len(names) * len(questions) > MOST_PAIRS:
            raise QuestionError(
                f"{len(names)} diffs times {len(questions)} questions are more than {MOST_PAIRS}; use"
                " weightdiff scan for that"
            )
        rows: list[tuple[str, ...]] = []
        for i, name in enumerate(names):
            diff = service.read(name)
            waiting = [service.ask(diff, q) for q in questions]
            rows.append((name, *(_waited(future).text for future in waiting)))
            yield showing.note(f"{i + 1} of {len(names)} diffs") + _grid(questions, rows), _gradio().skip()
        text = io.StringIO()
        csv.writer(text).writerows([("diff", *questions), *([_plain(c) for c in r] for r in rows)])
        path = service.room() / "answers.csv"
        path.write_text(text.getvalue(), encoding="utf-8")
        yield _grid(questions, rows), _gradio().update(value=str(path), visible=True)

    return _told(ask_all, 1)


def _grid(questions: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return showing.table(("diff", *questions), rows, "answers")


def _plain(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{cell}" if cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell
