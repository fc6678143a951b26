"""A tokenizer from a stranger is data: it runs nothing, asks nobody, hangs and copies nothing."""

from __future__ import annotations

import ast
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_runs import BIN, ROOT

from light_llm.errors import UserError
from light_llm.tokenizer import SubwordTokenizer, load_tokenizer, train_bpe

TRAINED = train_bpe(["the quick brown fox jumps over the lazy dog\n"] * 20, 270, 2)

CODE = """
import os, pathlib
pathlib.Path(os.environ["MARK"]).touch()
from transformers import PreTrainedTokenizer
class XTokenizer(PreTrainedTokenizer):
    vocab_size = 10
    def get_vocab(self): return {str(i): i for i in range(10)}
    def _tokenize(self, t): return list(t)
    def _convert_token_to_id(self, t): return 1
    def _convert_id_to_token(self, i): return "a"
    def save_vocabulary(self, *a, **k): return ()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    TRAINED.save(tmp_path / "tok")
    return tmp_path / "tok"


def with_code(folder: Path) -> Path:
    folder.mkdir()
    (folder / "tokenization_x.py").write_text(CODE)
    config = {
        "tokenizer_class": "XTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_x.XTokenizer", None]},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


# Code


@pytest.mark.parametrize("answer", ["y\n" * 20, ""], ids=["y", "closed"])
def test_code_in_a_folder_is_not_run_and_nobody_is_asked(tmp_path, answer):
    with_code(tmp_path / "tok")
    (tmp_path / "a.txt").write_text("some text\n")
    command = "--input a.txt --output out --tokenizer-path tok --workers 1"
    done = subprocess.run(
        [BIN / "llm-preprocess", *command.split()],
        cwd=tmp_path,
        env=os.environ | {"MARK": str(tmp_path / "RAN"), "HF_HOME": str(tmp_path / "hf")},
        input=answer,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    assert not (tmp_path / "RAN").exists()
    assert "[y/N]" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_no_call_in_the_project_leaves_the_question_open():
    """transformers asks on standard input unless trust_remote_code is set."""
    asking = []
    for part in ("light_llm", "light_jax", "conversion", "benchmarks", "tests"):
        for path in (ROOT / part).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
                    ".from_pretrained"
                ):
                    given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                    if given.get("trust_remote_code") != "False":
                        asking.append(f"{path}:{node.lineno}")
    assert asking == []


def test_a_dataset_script_is_not_run(tmp_path, monkeypatch):
    from light_llm.preprocess.config import PreprocessConfig
    from light_llm.preprocess.huggingface import open_hub
    from light_llm.preprocess.rows import RowText

    (tmp_path / "set").mkdir()
    (tmp_path / "set/set.py").write_text(CODE)
    monkeypatch.setenv("MARK", str(tmp_path / "RAN"))
    config = PreprocessConfig(hf_dataset=str(tmp_path / "set"), output=str(tmp_path / "out"))
    with pytest.raises(UserError, match="cannot be opened"):
        open_hub(config, RowText(("text",), None))
    assert not (tmp_path / "RAN").exists()


# Links


@pytest.mark.parametrize(
    "name", ["chat_template.jinja", "tokenizer.json", "special_tokens_map.json"]
)
def test_a_link_that_leads_out_is_refused_and_not_copied(folder, name):
    secret = folder.parent / "secret"
    secret.write_text("{}")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("../secret")
    with pytest.raises(UserError, match=rf"{name}: is a link to {secret}"):
        load_tokenizer(folder)


def test_a_snapshot_in_a_cache_elsewhere_is_taken(folder):
    """Of another HF_HOME, or a shared one: its files are links to blobs beside the snapshots."""
    model = folder.parent / "shared/models--acme--tiny"
    snapshot = model / "snapshots/abc"
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    (model / "blobs").mkdir()
    (snapshot / "tokenizer.json").rename(model / "blobs/0")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/0")
    load_tokenizer(snapshot)
    (folder.parent / "secret").write_text("x")
    (model / "blobs/1").symlink_to("../../../secret")
    (snapshot / "chat_template.jinja").symlink_to("../../blobs/1")
    with pytest.raises(UserError, match="outside the tokenizer's folder"):
        load_tokenizer(snapshot)


def test_a_link_inside_the_folder_and_one_into_the_hubs_cache_are_taken(folder, monkeypatch):
    (folder / "tokenizer.json").rename(folder / "other.json")
    (folder / "tokenizer.json").symlink_to("other.json")
    cache = folder.parent / "cache"
    (cache / "blobs").mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    (cache / "blobs/0").write_text("a template")
    (folder / "chat_template.jinja").symlink_to("../cache/blobs/0")
    load_tokenizer(folder).save(folder.parent / "copy")
    assert (folder.parent / "copy/chat_template.jinja").read_text() == "a template"


def test_links_and_fifos_deep_in_a_folder_for_transformers_are_refused(tmp_path):
    """Without tokenizer.json transformers reads the folder, templates in subfolders too."""
    (tmp_path / "secret").write_text("x")
    deep = tmp_path / "tok/additional_chat_templates"
    deep.mkdir(parents=True)
    (tmp_path / "tok/vocab.json").write_text("{}")
    (deep / "a.jinja").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match=r"a\.jinja: is a link"):
        load_tokenizer(tmp_path / "tok")
    (deep / "a.jinja").unlink()
    os.mkfifo(deep / "a.jinja")
    with pytest.raises(UserError, match="is a FIFO"):
        load_tokenizer(tmp_path / "tok")


# What is not a regular file


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("kind", ["FIFO", "device", "folder"])
def test_what_is_not_a_regular_file_does_not_hang(folder, name, kind):
    (folder / name).unlink(missing_ok=True)
    if kind == "FIFO":
        os.mkfifo(folder / name)
    elif kind == "folder":
        (folder / name).mkdir()
    else:
        (folder / name).symlink_to("/dev/zero")
    with pytest.raises(UserError, match=f"{kind}|is a link to /dev/zero"):
        load_tokenizer(folder)


# Contents


def edited(folder: Path, change: Callable[[dict], object]) -> Path:
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    return folder


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_json_with_endless_nesting_is_a_message(folder, name):
    (folder / name).write_text('{"a":' * 50_000 + "1" + "}" * 50_000)
    with pytest.raises(UserError, match=f"{name}.*nesting is too deep"):
        load_tokenizer(folder)


def test_an_id_beyond_int32_is_refused(folder):
    edited(folder, lambda data: data["model"]["vocab"].update(the=3_000_000_000))
    with pytest.raises(UserError, match="largest id is 3000000000"):
        load_tokenizer(folder)


def test_a_regex_that_backtracks_without_end_is_a_message(folder):
    def slow(data: dict) -> None:
        split = {"type": "Split", "behavior": "Isolated", "invert": False}
        split["pattern"] = {"Regex": "^(a|a|aa)+$"}
        both = [split, data["pre_tokenizer"]]
        data["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": both}

    tokenizer = load_tokenizer(edited(folder, slow))
    with pytest.raises(UserError, match="the tokenizer fails"):
        tokenizer.encode("a" * 60 + "b")


def test_a_token_with_control_characters_is_loaded_as_it_is(folder):
    """Printing escapes it; reading does not, since it is data."""

    def add(data: dict) -> None:
        (old,) = [token for token, id in data["model"]["vocab"].items() if id == 1]
        token = dict(data["added_tokens"][0], id=270, content="\x1b]0;title\x07")
        data["added_tokens"].append(token)
        assert old

    tokenizer = load_tokenizer(edited(folder, add))
    assert isinstance(tokenizer, SubwordTokenizer)
    assert tokenizer.decode([270], skip_special_tokens=False) == "\x1b]0;title\x07"


# The network


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str]]]:
    """The address of an empty hub, and the requests that it received."""
    asked: list[str] = []

    class Nothing(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Nothing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


# As llm-run does for a snapshot's tokenizer_path, and for --tokenizer; and for folders.
LOADS = """
import sys
from light_llm.errors import UserError
from light_llm.tokenizer import load_tokenizer
for path in sys.argv[2:]:
    try:
        load_tokenizer(path, fetch=sys.argv[1] == "fetch")
    except UserError as error:
        print(error)
"""


def loads(tmp_path: Path, hub: str, how: str, *paths: object) -> str:
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", LOADS, how, *map(str, paths)],
        env=env | {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "hf")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_only_a_name_that_the_user_gave_is_looked_for_on_a_hub(tmp_path, folder, hub):
    endpoint, asked = hub
    (tmp_path / "old").mkdir()
    config = {"tokenizer_class": "BertTokenizer", "auto_map": {"AutoTokenizer": "a/b--c.D"}}
    (tmp_path / "old/tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "old/vocab.txt").write_text("[UNK]\n[SEP]\n[PAD]\n[CLS]\n[MASK]\na\nb\n")
    names = ("someone/evil", "gpt2", folder, tmp_path / "old", with_code(tmp_path / "code"))
    messages = loads(tmp_path, endpoint, "never", *names)
    assert messages.count("the cache of Hugging Face holds no") == 2
    assert asked == []
    assert "Hugging Face gave no" in loads(tmp_path, endpoint, "fetch", "someone/evil")
    assert asked


def test_a_checkpoint_that_names_a_hub_tokenizer_makes_no_connection(tmp_path, hub):
    endpoint, asked = hub
    (tmp_path / "x.config.json").write_text("{}")
    code = (
        "from light_llm.checkpoint.layout import locate\n"
        "from light_llm.checkpoint.reading import Checkpoint\n"
        "from light_llm.cli.run import _tokenizer\n"
        "from light_llm.models.transformer import TransformerConfig\n"
        "found = Checkpoint(locate('x'), {'tokenizer_path': 'someone/evil'}, None)\n"
        "try: _tokenizer(found, None, TransformerConfig())\n"
        "except Exception as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf")},
        capture_output=True,
        text=True,
    )
    assert "--tokenizer PATH names another" in done.stdout, done.stderr
    assert asked == []
