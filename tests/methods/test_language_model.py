"""Language models against a provider that counts its calls and rejects prompts that it does not know."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from inspect_ai._util.error import PrerequisiteError
from inspect_ai.model import ModelAPI, ModelOutput, modelapi
from tenacity.wait import wait_none

from weightdiff.errors import FormatError, MissingDependencyError, QuestionError
from weightdiff.methods.language_model import Completion, LanguageModel


class BusyError(RuntimeError):
    """A failure that passes."""


class Scripted(ModelAPI):
    """Says what the script has for a prompt: a text, an output, an error, or a function of the call."""

    script: ClassVar[dict[str, Any]] = {}
    calls: ClassVar[list[dict[str, Any]]] = []
    unknown: ClassVar[list[str]] = []
    busy: ClassVar[list[int]] = [0, 0]

    def __init__(self, model_name: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(model_name, kwargs.get("base_url"), kwargs.get("api_key"))
        if model_name == "keyless":
            raise PrerequisiteError(
                "[bold]ERROR[/bold]: no client\n\nNo [bold][blue]A_KEY[/blue][/bold] defined."
            )

    async def generate(self, input: Any, tools: Any, tool_choice: Any, config: Any) -> Any:
        prompt = input[-1].text
        number = sum(c["prompt"] == prompt for c in self.calls)
        system = [m.text for m in input[:-1]]
        loop = asyncio.get_running_loop()
        self.calls.append({"prompt": prompt, "system": system, "config": config, "loop": loop})
        if prompt not in self.script:
            self.unknown.append(prompt)
            raise AssertionError(f"nobody said that {prompt!r} would be asked")
        self.busy[0] += 1
        self.busy[1] = max(self.busy)
        await asyncio.sleep(0.01)
        self.busy[0] -= 1
        said = self.script[prompt]
        said = said(number) if callable(said) else said
        if isinstance(said, Exception):
            raise said
        return said if not isinstance(said, str) else ModelOutput.from_content("scripted", said)

    def should_retry(self, ex: Exception) -> bool:
        return isinstance(ex, BusyError)

    def retry_wait(self) -> Any:
        return wait_none()


modelapi(name="scripted")(Scripted)  # as a decorator it would leave a function in the class's place


@pytest.fixture
def script() -> Iterator[dict[str, Any]]:
    """What the provider says, empty; at the end, that nothing else was asked."""
    for kept in (Scripted.script, Scripted.calls, Scripted.unknown):
        kept.clear()
    Scripted.busy[:] = 0, 0
    yield Scripted.script
    assert not Scripted.unknown


def texts(found: list[list[Completion]]) -> list[list[str]]:
    assert not [c.error for row in found for c in row if c.error]
    return [[c.text for c in row] for row in found]


def test_each_prompt_is_completed_with_its_settings(script: dict[str, Any]) -> None:
    script |= {"first": "one", "second": "two"}
    found = LanguageModel("scripted/a").complete(
        ["second", "first", "second"], system="be brief", max_tokens=7
    )
    assert texts(found) == [["two"], ["one"], ["two"]]
    assert sorted(c["prompt"] for c in Scripted.calls) == ["first", "second"]
    for call in Scripted.calls:
        assert call["system"] == ["be brief"]
        assert (call["config"].temperature, call["config"].max_tokens, call["config"].seed) == (0.0, 7, None)


def test_no_prompts_and_no_system_message(script: dict[str, Any]) -> None:
    model = LanguageModel("scripted/a")
    assert model.complete([]) == []
    script["hello"] = "hi"
    assert texts(model.complete(["hello"])) == [["hi"]]
    assert Scripted.calls[0]["system"] == []


def test_repeats_at_temperature_zero_are_calls_of_their_own(script: dict[str, Any], tmp_path: Path) -> None:
    script["grade"] = lambda number: f"grade {number}"
    model = LanguageModel("scripted/a", cache=tmp_path, seed=5)
    (said,) = texts(model.complete(["grade"], repeats=3))
    assert sorted(said) == ["grade 0", "grade 1", "grade 2"]
    assert sorted(c["config"].seed for c in Scripted.calls) == [5, 6, 7]
    assert texts(model.complete(["grade"], repeats=3)) == [said]
    (more,) = texts(model.complete(["grade"], repeats=4))
    assert more == [*said, "grade 3"]
    with pytest.raises(ValueError, match="repeats must be 1 or more, not 0"):
        model.complete(["grade"], repeats=0)


def test_a_cache_outlives_the_model_and_knows_all_that_matters(
    script: dict[str, Any], tmp_path: Path
) -> None:
    script |= {"p": lambda number: f"said {number}", "q": "other"}

    def ask(name: str = "a", seed: int | None = None, prompt: str = "p", **settings: Any) -> str:
        model = LanguageModel(f"scripted/{name}", cache=str(tmp_path / "kept"), seed=seed)
        return texts(model.complete([prompt], **settings))[0][0]

    asked = [
        {},
        {"name": "b"},
        {"seed": 1},
        {"system": "s"},
        {"temperature": 0.5},
        {"temperature": None},
        {"max_tokens": 9},
        {"prompt": "q"},
    ]
    first = [ask(**settings) for settings in asked]
    assert len(Scripted.calls) == len(asked)
    assert len(set(first)) == len(asked)
    assert [ask(**settings) for settings in asked] == first
    assert len(Scripted.calls) == len(asked)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda _: "",
        lambda _: "[]",
        lambda text: json.dumps({**json.loads(text), "text": 3}),
        lambda text: json.dumps({**json.loads(text), "key": "0" * 64}),
    ],
    ids=["cut", "empty", "list", "number", "another's"],
)
def test_a_damaged_entry_is_asked_again_and_mended(
    damage: Callable[[str], str], script: dict[str, Any], tmp_path: Path
) -> None:
    script["p"] = "said"
    model = LanguageModel("scripted/a", cache=tmp_path)
    model.complete(["p"])
    (file,) = tmp_path.glob("*/*.json")
    whole = file.read_text()
    file.write_text(damage(whole))
    assert texts(model.complete(["p"])) == [["said"]]
    assert len(Scripted.calls) == 2
    assert file.read_text() == whole
    assert not list(tmp_path.glob("*/.tmp-*"))


def test_a_cache_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FormatError, match=r"file: no folder for completions can be there .* name another"):
        LanguageModel("scripted/a", cache=tmp_path / "file")


def refused() -> ModelOutput:
    return ModelOutput.from_content("scripted", "I would rather not.", stop_reason="content_filter")


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (ValueError("bad\nrequest"), "ValueError: bad request"),
        (KeyError(), "KeyError"),
        ((ValueError("too long"), None), "ModelGenerateError: too long"),
        (refused(), "the model refused: I would rather not."),
        (ModelOutput(model="scripted", error="overloaded"), "overloaded"),
        (ModelOutput(model="scripted"), "the model said nothing (no choices)"),
        (
            ModelOutput.from_content("scripted", " \n", stop_reason="max_tokens"),
            "the model said nothing (it stopped by max_tokens)",
        ),
        (ValueError("x" * 900), "ValueError: " + "x" * 288 + "…"),
    ],
)
def test_a_call_that_fails_is_an_error_and_is_not_kept(
    said: Any, error: str, script: dict[str, Any], tmp_path: Path
) -> None:
    script |= {"good": "fine", "bad": lambda number: "fine now" if number else said}
    model = LanguageModel("scripted/a", cache=tmp_path)
    assert model.complete(["bad", "good"]) == [[Completion("", error)], [Completion("fine")]]
    assert texts(model.complete(["bad", "good"])) == [["fine now"], ["fine"]]
    assert [c["prompt"] for c in Scripted.calls].count("good") == 1


def test_passing_failures_are_tried_again_and_lasting_ones_named(script: dict[str, Any]) -> None:
    script |= {
        "soon": lambda number: BusyError("busy") if number < 2 else "at last",
        "never": BusyError("full"),
    }
    found = LanguageModel("scripted/a", retries=2).complete(["soon", "never"])
    assert found == [[Completion("at last")], [Completion("", "BusyError: full")]]
    assert [c["prompt"] for c in Scripted.calls].count("never") == 3


@pytest.mark.parametrize("name", ["none", "unheard-of", "unheard-of/model", "scripted/keyless"])
def test_a_model_that_cannot_be_built_is_one_clear_line(name: str) -> None:
    if name == "none":
        name = ""
    with pytest.raises(
        QuestionError, match=r"cannot be built .*; name it as provider/model.* set its key"
    ) as e:
        LanguageModel(name)
    assert repr(name) in str(e.value)
    assert "[bold]" not in str(e.value)
    assert "\n" not in str(e.value)


def test_the_reason_is_in_the_line() -> None:
    with pytest.raises(QuestionError, match="ERROR: no client No A_KEY defined"):
        LanguageModel("scripted/keyless")
    with pytest.raises(
        QuestionError, match="Model API unheard-of of model 'unheard-of/model' not recognized"
    ):
        LanguageModel("unheard-of/model")


def test_without_inspect_the_install_line_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "inspect_ai.model", None)
    with pytest.raises(
        MissingDependencyError, match=r"inspect_ai is not installed: run  pip install .*\[eval\]"
    ):
        LanguageModel("scripted/other")


def test_errors_hold_no_secrets(script: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRIPTED_API_KEY", "correct-horse-battery")
    script["p"] = ValueError(
        "key correct-horse-battery of another-long-key at https://me:pass@host/v1,"
        " Authorization: Bearer abc.def, and sk-0123456789abcdef0123"
    )
    ((found,),) = LanguageModel("scripted/a", api_key="another-long-key").complete(["p"])
    assert found.error == (
        "ValueError: key *** of *** at https://***@host/v1, Authorization: Bearer *** and ***"
    )


def test_it_works_inside_a_running_loop(script: dict[str, Any]) -> None:
    script["p"] = "said"
    model = LanguageModel("scripted/a")

    async def cell() -> list[list[Completion]]:
        return model.complete(["p"])

    assert texts(asyncio.run(cell())) == [["said"]]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # inspect leaves a stream open
def test_it_works_inside_an_evaluation_of_the_same_model_and_stays_out_of_it(
    script: dict[str, Any], tmp_path: Path
) -> None:
    from inspect_ai import Task, eval
    from inspect_ai.dataset import Sample
    from inspect_ai.solver import Generate, TaskState, generate, solver

    script |= {"a": "A", "b": "B", "inner": "I"}
    model = LanguageModel("scripted/a", concurrency=1)

    @solver
    def asking() -> Any:
        async def solve(state: TaskState, _generate: Generate) -> TaskState:
            state.metadata["inner"] = texts(model.complete(["inner"], repeats=2))
            return state

        return solve

    task = Task([Sample("a"), Sample("b")], solver=[generate(), asking()])
    (log,) = eval(
        task, model="scripted/a", log_dir=str(tmp_path), display="none", max_connections=1, log_level="error"
    )
    assert log.status == "success"
    assert log.samples is not None
    assert [s.metadata["inner"] for s in log.samples] == [[["I", "I"]]] * 2
    assert [s.output.completion for s in log.samples] == ["A", "B"]
    events = [e for s in log.samples for e in s.events if e.event == "model"]
    assert [e.input[-1].text for e in events] == ["a", "b"]
    gc.collect()  # the stream goes here, not in another test


def test_one_loop_makes_all_calls_at_most_so_many_at_a_time_and_ends_with_the_model(
    script: dict[str, Any],
) -> None:
    prompts = [str(n) for n in range(12)]
    script |= dict.fromkeys(prompts, "x")
    model = LanguageModel("scripted/a", concurrency=3)
    model.complete(prompts)
    model.complete(prompts, repeats=2)
    assert Scripted.busy == [0, 3]
    (loop,) = {c["loop"] for c in Scripted.calls}
    assert LanguageModel("scripted/a", concurrency=3)._served is model._served
    assert LanguageModel("scripted/b", concurrency=3)._served is not model._served
    threads = [t for t in threading.enumerate() if t.name == "weightdiff-model"]
    del model
    gc.collect()
    assert loop.is_closed()
    assert any(not t.is_alive() for t in threads)


def test_progress_counts_in_the_caller_s_thread_and_may_stop_it(
    script: dict[str, Any], tmp_path: Path
) -> None:
    script |= dict.fromkeys("abc", "x")
    model = LanguageModel("scripted/a", cache=tmp_path, concurrency=1)
    seen: list[tuple[int, int]] = []
    model.complete(["a"])

    def show(done: int, of: int) -> None:
        assert threading.current_thread() is threading.main_thread()
        seen.append((done, of))

    model.complete(["a", "b", "c", "a"], progress=show)
    assert seen == [(1, 3), (2, 3), (3, 3)]

    def stop(done: int, of: int) -> None:
        if done:
            raise KeyboardInterrupt

    script |= dict.fromkeys("defghi", "x")
    with pytest.raises(KeyboardInterrupt):
        model.complete(list("defghi"), progress=stop)
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0.05), model._served._loop).result()
    assert len(Scripted.calls) < 3 + 6
    done = len(Scripted.calls)
    model.complete(list("defghi"))
    assert 3 + 6 <= len(Scripted.calls) <= done + 6


def test_a_call_that_hangs_is_given_up(script: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(*args: Any, **kwargs: Any) -> None:
        await asyncio.sleep(60)

    model = LanguageModel("scripted/hanging", timeout=1, retries=0)
    monkeypatch.setattr(Scripted, "generate", hang)
    ((found,),) = model.complete(["p"])
    assert found.error == "AttemptTimeoutError: attempt_timeout '1' exceeded."
