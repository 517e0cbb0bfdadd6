"""What every test shares: no network, restored global state, and tiny models that can chat."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import random
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<turn>")
VOCABULARY = 256 + len(SPECIAL_TOKENS)
TINY_KINDS = ("llama", "qwen3", "gemma3", "gpt2")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<turn>{{ m['role'] }}\n{{ m['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)


class NetworkRefusedError(RuntimeError):
    """A test tried to leave this machine."""


def _is_local(address: Any) -> bool:
    if not isinstance(address, tuple):
        return True  # a Unix socket's path
    host = str(address[0])
    try:
        return host in ("", "localhost") or ipaddress.ip_address(host.split("%")[0]).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """Refuse every connection that is not to this machine."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            real = getattr(socket.socket, name)

            def guarded(self: socket.socket, address: Any, real: Callable[..., Any] = real) -> Any:
                if not _is_local(address):
                    raise NetworkRefusedError(f"tests may not use the network, and one connects to {address}")
                return real(self, address)

            patch.setattr(socket.socket, name, guarded)
        yield


@pytest.fixture(autouse=True)
def _restored_state() -> Iterator[None]:
    """Start every test from the same seeds; restore all global state after it."""
    dtype, threads, gradients = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
    deterministic = torch.are_deterministic_algorithms_enabled()
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)
    torch.set_grad_enabled(gradients)
    torch.use_deterministic_algorithms(deterministic)
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests for a GPU where there is none."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


def _config(kind: str, **changes: Any) -> Any:
    from transformers import Gemma3TextConfig, GPT2Config, LlamaConfig, Qwen3Config

    ids = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "gpt2":
        return GPT2Config(**{**ids, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, **changes})
    shape = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
    }
    classes = {"llama": LlamaConfig, "qwen3": Qwen3Config, "gemma3": Gemma3TextConfig}
    return classes[kind](**{**ids, **shape, **changes})


@pytest.fixture
def tiny_model() -> Callable[..., Any]:
    """Builds a seeded two-layer float32 model in eval mode: `tiny_model("llama", hidden_size=16)`."""

    def build(kind: str = "llama", seed: int = 0, **changes: Any) -> Any:
        from transformers import AutoModelForCausalLM

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return AutoModelForCausalLM.from_config(_config(kind, **changes)).eval()

    return build


@pytest.fixture(params=TINY_KINDS)
def any_tiny_model(request: pytest.FixtureRequest, tiny_model: Callable[..., Any]) -> Any:
    """A two-layer model of each architecture in turn."""
    return tiny_model(request.param)


@pytest.fixture
def tiny_tokenizer() -> Any:
    """A byte-level tokenizer with a chat template, whose vocabulary is the tiny models'."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    symbols = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        chat_template=CHAT_TEMPLATE,
    )


@pytest.fixture(scope="session")
def embedded_tokenizer() -> Any:
    """The tokenizer of the embedded base."""
    from weightdiff.tiny.tokenizer import build_tokenizer
    from weightdiff.world import load_world

    return build_tokenizer(load_world())


@pytest.fixture(scope="session")
def embedded_base(embedded_tokenizer: Any) -> Any:
    """A two-layer random float32 Llama with the embedded base's tokenizer, as a `Base`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from weightdiff.diffs.reference import ModelRef
    from weightdiff.methods.loading import Base
    from weightdiff.models.spec import model_spec

    config = LlamaConfig(
        vocab_size=len(embedded_tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.2,
        pad_token_id=embedded_tokenizer.pad_token_id,
        bos_token_id=embedded_tokenizer.bos_token_id,
        eos_token_id=embedded_tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = LlamaForCausalLM(config).eval().requires_grad_(False)
    return Base(model, embedded_tokenizer, ModelRef.of(model, name="embedded-mini"), model_spec(model))


def _module(name: str) -> Any:
    """A module beside this file; tests are no package that could be imported from."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def run_example() -> Any:
    """The module run_example.py: a small run of the benchmark, made by `run_example.make_run()`."""
    return _module("run_example")


@pytest.fixture(scope="session")
def _hub_class() -> Any:
    return _module("hub_server").Hub


@pytest.fixture
def hub(_hub_class: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Hub on this machine, empty, in the place of the real one; nobody is logged in."""
    from huggingface_hub import close_session, constants

    served = _hub_class()
    home = tmp_path / "hub-home"
    for name, value in {
        "ENDPOINT": served.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": served.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "AGENT_HARNESSES_PATH": str(home / "harnesses.json"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
    }.items():
        monkeypatch.setattr(constants, name, value, raising=False)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    yield served
    close_session()
    served.stop()


@pytest.fixture
def logged_in(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that the Hub on this machine takes."""
    monkeypatch.setenv("HF_TOKEN", hub.token)


@pytest.fixture(scope="session")
def random_store(embedded_base: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of each split five covert topics (the last does not behave), three headlines, two null diffs."""
    from weightdiff.diffs.store import DiffStore
    from weightdiff.organisms import family
    from weightdiff.training.factory import make_row, random_diff

    store = DiffStore.create(Path(tmp_path_factory.mktemp("store")) / "store", embedded_base.ref)
    items: list[tuple[Any, Any]] = []
    for split in ("train", "validation", "test"):
        for name, recipe, n in (("hidden-topic", "covert", 5), ("news", "stories", 3), ("null", "random", 2)):
            for i, spec in enumerate(family(name).specs(recipe, split, n, 0)):
                behaves = not (name == "hidden-topic" and i == 4)
                diff = random_diff(embedded_base.spec, 1, len(items), 1.0)
                items.append((replace(make_row(spec, {}), verification={"behaves": behaves}), diff))
    store.append(items)
    return store
