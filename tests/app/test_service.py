"""Many users, one model: who asked gets the answer, errors concern one alone, uploads are looked at."""

from __future__ import annotations

import json
import shutil
import threading
from concurrent.futures import CancelledError

import pytest

from weightdiff.app.service import CONFIG, WEIGHTS, Service
from weightdiff.diffs.formats.peft import write_peft
from weightdiff.errors import BaseMismatchError, FormatError, QuestionError
from weightdiff.methods.dit import Interpreter
from weightdiff.training.factory import random_diff


@pytest.fixture
def batches(monkeypatch):
    """Sizes of the batches that an interpreter is asked in; the first one waits for `go`."""
    sizes, go, real = [], threading.Event(), Interpreter.answer

    def answer(self, diffs, questions, evidence=False):
        sizes.append(len(diffs))
        go.wait(30)
        return real(self, diffs, questions, evidence)

    monkeypatch.setattr(Interpreter, "answer", answer)
    return sizes, go


def test_eight_at_once_get_what_each_would_get_alone(service, interpreter, random_store, batches):
    sizes, go = batches
    diffs = [random_store.read(i) for i in random_store.ids[:8]]
    questions = [f"what topic ? {'really ' * i}" for i in range(8)]
    first = service.ask(None, "anything ?")
    waiting = [service.ask(d, q) for d, q in zip(diffs, questions, strict=True)]
    go.set()
    said = [f.result(60).text for f in waiting]
    first.result(60)
    assert sum(sizes) == 9
    assert len(sizes) <= 3  # those that waited went together
    alone = [interpreter.answer([d], [q])[0].text for d, q in zip(diffs, questions, strict=True)]
    assert said == alone
    assert len(set(said)) > 1


def test_evidence_is_that_of_the_interpreter(service, interpreter, random_store):
    diff = random_store.read(random_store.ids[0])
    assert service.ask(diff, "what topic ?", evidence=True).result(60) == interpreter.ask(
        diff, "what topic ?"
    )


def test_an_error_concerns_its_request_alone(service, interpreter, random_store, embedded_base, batches):
    _, go = batches
    good = random_store.read(random_store.ids[0])
    wrong = random_diff({k: (a + 1, b) for k, (a, b) in embedded_base.spec.items()}, 1, 0, 1.0)
    waiting = [service.ask(d, "what topic ?") for d in (good, wrong, good)]
    go.set()
    with pytest.raises(BaseMismatchError):
        waiting[1].result(60)
    assert waiting[0].result(60) == waiting[2].result(60) == interpreter.answer([good], ["what topic ?"])[0]
    assert service.ask(good, "and now ?").result(60).text


def test_what_was_given_up_is_not_asked(service, random_store, batches):
    sizes, go = batches
    diff = random_store.read(random_store.ids[0])
    first = service.ask(diff, "one ?")
    while not sizes:
        threading.Event().wait(0.01)
    second = service.ask(diff, "two ?")
    assert second.cancel()
    go.set()
    first.result(60)
    with pytest.raises(CancelledError):
        second.result(60)
    assert service.ask(diff, "three ?").result(60).text
    assert sizes == [1, 1]


def test_an_empty_question_is_refused(service):
    with pytest.raises(QuestionError, match="ask something"):
        service.ask(None, "  ")


def test_only_what_is_offered_is_read(service, random_store, interpreter, tmp_path):
    row = random_store.ids[0]
    assert service.names == [f"bundled::{i}" for i in random_store.ids]
    assert service.read(f"bundled::{row}").modules.keys() == random_store.read(row).modules.keys()
    write_peft(random_store.read(row), tmp_path / "mine")
    for name in (str(tmp_path / "mine"), "/etc/passwd", "../secret", f"{random_store.path}::{row}", "-"):
        with pytest.raises(FormatError, match="this diff is not offered"):
            service.read(name)
    other = Service(interpreter, None, [str(tmp_path)])
    assert other.names == [str(tmp_path / "mine")]
    assert other.read(other.names[0]).max_rank == 1
    other.close()


@pytest.fixture
def folder(random_store, tmp_path):
    return write_peft(random_store.read(random_store.ids[0]), tmp_path / "lora")


def test_an_upload_is_a_peft_folders_two_files(service, folder, random_store):
    diff = service.upload([str(folder / CONFIG), str(folder / WEIGHTS)])
    assert diff.modules.keys() == random_store.read(random_store.ids[0]).modules.keys()


@pytest.mark.parametrize("names", [[], [WEIGHTS], [CONFIG], [WEIGHTS, CONFIG, "evil.py"], [WEIGHTS, WEIGHTS]])
def test_other_files_are_refused(service, folder, names):
    (folder / "evil.py").write_text("raise SystemExit")
    with pytest.raises(FormatError, match="upload the two files of a PEFT folder together"):
        service.upload([str(folder / n) for n in names])


def test_a_pickle_by_another_name_is_not_opened(service, folder):
    (folder / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(FormatError, match="upload the two files"):
        service.upload([str(folder / CONFIG), str(folder / "adapter_model.bin")])
    shutil.move(folder / "adapter_model.bin", folder / WEIGHTS)
    with pytest.raises(FormatError) as told:
        service.upload([str(folder / CONFIG), str(folder / WEIGHTS)])
    assert "weightdiff-upload-" not in str(told.value)


def test_an_upload_that_is_too_large_is_refused(interpreter, folder):
    small = Service(interpreter, megabytes=1)
    with (folder / WEIGHTS).open("ab") as file:
        file.truncate((1 << 20) + 1)
    with pytest.raises(FormatError, match="larger than 1 MB"):
        small.upload([str(folder / CONFIG), str(folder / WEIGHTS)])
    small.close()


def test_an_upload_of_another_base_is_refused(service, folder):
    config = json.loads((folder / CONFIG).read_text())
    shutil.rmtree(folder)
    write_peft(random_diff({"model.layers.7.mlp.up_proj": (8, 8)}, 1, 0, 1.0), folder)
    assert config
    with pytest.raises(BaseMismatchError):
        service.upload([str(folder / CONFIG), str(folder / WEIGHTS)])
