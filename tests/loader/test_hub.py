"""Models come from a hub by name: a real client in a process of its own, and a hub on loopback.

What is said of both hubs is tested with both.
"""

from __future__ import annotations

import importlib.util
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from tests import hubs
from vllm.loader.files import weight_files

T = TypeVar("T")

FIND = """
import sys
from vllm.errors import VllmError
from vllm.loader.find import find_model
try:
    print(find_model("org/tiny", **{options}))
except VllmError as error:
    sys.exit(f"{{type(error).__name__}}: {{error}}")
"""
FIRST, SECOND = "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors"


@pytest.fixture
def hub() -> Iterator[hubs.Hub]:
    with hubs.serve() as found:
        yield found


@pytest.fixture(params=["hugging face", "modelscope"])
def where(request: pytest.FixtureRequest) -> dict[str, str]:
    """What the environment says of where models are."""
    if request.param == "hugging face":
        return {}
    if importlib.util.find_spec("modelscope") is None:
        pytest.skip("the package modelscope is not installed: the extra modelscope")
    return {"VLLM_USE_MODELSCOPE": "True"}


@pytest.fixture
def published(sharded: Path, hub: hubs.Hub) -> Path:
    """A split checkpoint on the hub, with what a repository has beside it."""
    (sharded / "config.json").write_text("{}")
    (sharded / "tokenizer.json").write_text("{}")
    for name in ("consolidated.safetensors", "pytorch_model.bin", "model.fp16.safetensors", "README.md", "onnx/a.json"):
        (sharded / name).parent.mkdir(exist_ok=True)
        (sharded / name).write_text("not needed")
    hub.add("org/tiny", sharded, "main", "master")
    return sharded


def start(hub: hubs.Hub, home: Path, extra: dict[str, str], **options: object) -> subprocess.Popen[str]:
    """Look for org/tiny in a process of its own, which keeps what it fetches in `home`."""
    environment = {**hubs.environment_without(), **hub.environment(home), **extra}
    command = [sys.executable, "-c", FIND.format(options=options)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(script: str, hub: hubs.Hub, home: Path) -> str:
    """Run a script for which this is the hub.  Returns the last line it prints."""
    environment = {**hubs.environment_without(), **hub.environment(home)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def found(process: subprocess.Popen[str]) -> Path:
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return Path(out.splitlines()[-1])


def refusal(process: subprocess.Popen[str]) -> str:
    """The one line that the process ended with."""
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    line = errors.splitlines()[-1]
    assert line.startswith(("ModelError: ", "ConfigError: ")), errors
    return line


def wait_for(condition: Callable[[], T | None]) -> T:
    """Ask until there is an answer."""
    end = time.monotonic() + 60
    while (answer := condition()) is None:
        assert time.monotonic() < end
        time.sleep(0.02)
    return answer


def assert_whole(folder: Path, published: Path) -> None:
    """The folder has what is needed, byte by byte, and nothing else."""
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    weights = {file.name for file in weight_files(published)}
    assert names == {"config.json", "tokenizer.json", "model.safetensors.index.json", *weights}
    assert all((folder / name).read_bytes() == (published / name).read_bytes() for name in names)


def test_a_model_is_fetched_cold_kept_and_found_again_without_a_network(
    hub: hubs.Hub, published: Path, where: dict[str, str], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    folder = found(start(hub, home, where))
    assert home in folder.parents
    assert_whole(folder, published)
    hub.asked.clear()
    assert found(start(hub, home, where)) == folder
    assert not hub.bodies(FIRST), "what is in the cache was fetched again"
    hub.asked.clear()
    assert found(start(hub, home, {**where, "HF_HUB_OFFLINE": "1"})) == folder
    assert not hub.asked


def test_without_a_network_the_cache_is_used_and_what_is_not_in_it_refused(
    hub: hubs.Hub, published: Path, where: dict[str, str], tmp_path: Path
) -> None:
    folder = found(start(hub, tmp_path / "home", where))
    offline = {**where, "HF_HUB_OFFLINE": "1"}
    hub.url = "http://127.0.0.1:9"  # nobody listens there
    if not where:  # ModelScope's client tries for ten seconds
        assert found(start(hub, tmp_path / "home", where)) == folder
        assert "http://127.0.0.1:9 cannot be reached. The cache is empty." in refusal(
            start(hub, tmp_path / "new", where)
        )
    line = refusal(start(hub, tmp_path / "new", offline))
    assert "org/tiny: no such directory, not in" in line and "HF_HUB_OFFLINE is set" in line


def test_a_revision_is_what_it_was_and_a_missing_one_is_named(
    hub: hubs.Hub, published: Path, where: dict[str, str], tmp_path: Path
) -> None:
    older = tmp_path / "older"
    older.mkdir()
    (older / "config.json").write_text('{"older": true}')
    (older / "model.safetensors").write_bytes((published / FIRST).read_bytes())
    hub.add("org/tiny", older, "v1")
    folder = found(start(hub, tmp_path / "home", where, revision="v1"))
    assert {path.name for path in folder.iterdir() if path.suffix} >= {"config.json", "model.safetensors"}
    assert json.loads((folder / "config.json").read_text()) == {"older": True}
    assert_whole(found(start(hub, tmp_path / "home", where)), published)
    assert "v9" in refusal(start(hub, tmp_path / "home", where, revision="v9"))


@pytest.fixture
def large(hub: hubs.Hub, tmp_path: Path) -> Path:
    """A model on the hub whose file is longer than what a client keeps in memory before it writes (10 MB)."""
    folder = tmp_path / "large"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(random.Random(0).randbytes(24 << 20))
    hub.add("org/tiny", folder)
    return folder / "model.safetensors"


def test_a_cut_connection_is_taken_up_where_it_broke(
    hub: hubs.Hub, large: Path, where: dict[str, str], tmp_path: Path
) -> None:
    hub.cuts["model.safetensors"] = 1
    folder = found(start(hub, tmp_path / "home", where))
    assert (folder / "model.safetensors").read_bytes() == large.read_bytes()
    whole, rest = hub.bodies("model.safetensors")
    assert not whole and re.fullmatch(r"bytes=[1-9]\d+-", rest)


def test_a_download_that_was_killed_leaves_what_was_fetched_and_nothing_damaged(
    hub: hubs.Hub, large: Path, where: dict[str, str], tmp_path: Path
) -> None:
    hub.slow["model.safetensors"] = 60.0
    first = start(hub, tmp_path / "home", where)
    wait_for(lambda: next((path for path in tmp_path.rglob("*.incomplete") if path.stat().st_size), None))
    first.kill()
    first.communicate()
    hub.slow.clear()
    folder = found(start(hub, tmp_path / "home", where))
    assert (folder / "model.safetensors").read_bytes() == large.read_bytes()
    assert len(hub.bodies("config.json")) == 1
    if where:  # the Hub's client starts the file again, lest two processes write to one
        assert re.fullmatch(r"bytes=[1-9]\d+-", hub.bodies("model.safetensors")[-1])


def test_two_processes_share_one_download(
    hub: hubs.Hub, published: Path, where: dict[str, str], tmp_path: Path
) -> None:
    hub.slow[FIRST] = 0.5
    processes = [start(hub, tmp_path / "home", where) for _ in range(2)]
    folders = {found(process) for process in processes}
    assert len(folders) == 1
    assert_whole(folders.pop(), published)
    assert [len(hub.bodies(file.name)) for file in weight_files(published)] == [1, 1, 1]


def test_pickled_weights_are_fetched_where_there_are_no_others(
    hub: hubs.Hub, where: dict[str, str], tmp_path: Path
) -> None:
    only = tmp_path / "pickled"
    only.mkdir()
    (only / "config.json").write_text("{}")
    (only / "pytorch_model.bin").write_text("weights")
    hub.add("org/tiny", only)
    assert (found(start(hub, tmp_path / "home", where)) / "pytorch_model.bin").read_text() == "weights"
    folder = found(start(hub, tmp_path / "dummy", where, load_format="dummy"))
    assert not (folder / "pytorch_model.bin").exists()


def test_modules_of_sentence_transformers_come_along(hub: hubs.Hub, where: dict[str, str], tmp_path: Path) -> None:
    source = tmp_path / "sentences"
    (source / "1_Pooling").mkdir(parents=True)
    (source / "config.json").write_text("{}")
    (source / "model.safetensors").write_text("weights")
    (source / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")]
    entries = [{"idx": number, "path": path, "type": f"a.{kind}"} for number, (path, kind) in enumerate(kinds)]
    (source / "modules.json").write_text(json.dumps(entries))
    hub.add("org/tiny", source)
    assert (found(start(hub, tmp_path / "home", where)) / "1_Pooling" / "config.json").exists()


def test_a_name_that_nobody_has_is_refused_with_what_is_near(
    hub: hubs.Hub, where: dict[str, str], tmp_path: Path, sharded: Path
) -> None:
    assert "org/tiny: no such directory, and no such repository" in refusal(start(hub, tmp_path / "home", where))


def test_what_is_in_the_cache_is_offered(hub: hubs.Hub, published: Path, tmp_path: Path) -> None:
    found(start(hub, tmp_path / "home", {}))
    hub.repositories["org/tony"] = hub.repositories.pop("org/tiny")
    cache = tmp_path / "home" / "hf" / "hub"
    (cache / "models--org--tiny").rename(cache / "models--org--tinny")
    assert refusal(start(hub, tmp_path / "home", {})).endswith("Did you mean 'org/tinny'?")


def test_a_gated_model_needs_a_token(hub: hubs.Hub, published: Path, tmp_path: Path) -> None:
    hub.gated.add("org/tiny")
    line = refusal(start(hub, tmp_path / "home", {}))
    assert f"org/tiny is gated: accept its terms at {hub.url}/org/tiny, then pass hf_token" in line
    assert_whole(found(start(hub, tmp_path / "given", {}, hf_token=hubs.TOKEN)), published)
    assert_whole(found(start(hub, tmp_path / "set", {"HF_TOKEN": hubs.TOKEN})), published)


def test_a_hub_that_is_out_of_order_is_said_to_be(hub: hubs.Hub, published: Path, tmp_path: Path) -> None:
    hub.down = 503
    assert f"{hub.url} answers 503" in refusal(start(hub, tmp_path / "home", {}))


def test_a_proxy_is_used(hub: hubs.Hub, published: Path, tmp_path: Path) -> None:
    proxy, hub.url = hub.url, "http://hub.invalid"
    assert_whole(found(start(hub, tmp_path / "home", {"http_proxy": proxy, "no_proxy": ""})), published)


def test_a_damaged_index_is_refused_before_weights_are_fetched(hub: hubs.Hub, published: Path, tmp_path: Path) -> None:
    (published / "model.safetensors.index.json").write_text("{}")
    assert "has no readable `weight_map`" in refusal(start(hub, tmp_path / "home", {}))
    assert not hub.bodies(FIRST)


def test_download_dir_takes_what_is_fetched(
    hub: hubs.Hub, published: Path, where: dict[str, str], tmp_path: Path
) -> None:
    place = tmp_path / "elsewhere"
    assert place in found(start(hub, tmp_path / "home", where, download_dir=str(place))).parents


@pytest.mark.parametrize(("revision", "layers"), [(None, 2), ("v1", 1)])
def test_code_in_a_repository_of_its_own_has_a_revision_of_its_own(
    hub: hubs.Hub, tmp_path: Path, revision: str | None, layers: int
) -> None:
    for name, count in (("main", 2), ("v1", 1)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "own.py").write_text(
            "from transformers import PretrainedConfig\n"
            f"class OwnConfig(PretrainedConfig):\n    model_type = 'own'\n    num_hidden_layers = {count}\n"
        )
        hub.add("org/code", tmp_path / name, name)
    model = tmp_path / "model"
    model.mkdir()
    reference = {"AutoConfig": "org/code--own.OwnConfig"}
    content = {"model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": reference}
    (model / "config.json").write_text(json.dumps(content))
    script = (
        "from pathlib import Path; from vllm.loader.config import read_config\n"
        f"config = read_config(Path({str(model)!r}), trust_remote_code=True, code_revision={revision!r})\n"
        "print(config.num_hidden_layers)"
    )
    assert run(script, hub, tmp_path / "home") == str(layers)
