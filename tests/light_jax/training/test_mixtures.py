"""llm-train on a mixture: resumed it is the uninterrupted run, and says what each source gave."""

import json
from pathlib import Path

import numpy as np
import pytest
from in_process import call
from tiny_runs import TINY, metrics, train_command, write_config

from light_jax.cli import convert, data, eval, train
from light_jax.config import load_config
from light_jax.data import TokenStream
from light_jax.data.mixed import stream_of
from light_jax.sources import DataSource
from light_llm.errors import UserError

TRAIN = Path(TINY["train_data"])
WEIGHTS = (0.7, 0.3)
STEPS, BATCH, SEQ_LEN = TINY["num_steps"], TINY["batch_size"], TINY["seq_len"]


def entries(weights=WEIGHTS):
    """Two sources: the shards of the first three, and one that has the name of its file."""
    several = [str(TRAIN / f"shard_0000{number}.parquet") for number in range(3)]
    single = str(TRAIN / "shard_0000[34].parquet")
    return [
        {"path": several, "weight": weights[0], "name": "web"},
        {"path": single, "weight": weights[1], "name": "code"},
    ]


def config(folder, name="c.yaml", weights=WEIGHTS, **changes):
    val = [
        {"path": TINY["val_data"], "weight": 1, "name": "new"},
        {"path": str(TRAIN / "shard_00004.parquet"), "weight": 3},
    ]
    changes = {"window_order": "shuffled", "eval_steps": 99, "val_data": val} | changes
    return write_config(folder / name, train_data=entries(weights), **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A whole run in `out`, and in `branch` one that goes on from its third step."""
    folder = tmp_path_factory.mktemp("mixture")
    whole = train_command(config(folder))
    (folder / "stderr").write_text(whole.stderr)
    branch = config(folder, "branch.yaml", checkpoint_dir="branch", num_workers=2)
    train_command(branch, "--resume", "out/step0000003")
    return folder


def test_resumed_it_is_the_same_run_to_the_bit(folder):
    for tag in ("best", "final"):
        weights = [(folder / run / f"{tag}.safetensors").read_bytes() for run in ("out", "branch")]
        assert weights[0] == weights[1]
    whole = [line for line in metrics(folder / "out", timeless=True) if line["step"] > 3]
    assert metrics(folder / "branch", timeless=True) == whole


def test_the_run_read_the_mixture(folder):
    """Its windows are those of the sources alone, and it counted them."""
    cfg = load_config(folder / "c.yaml")
    options = {"seq_len": SEQ_LEN, "seed": cfg.seed, "window_order": "shuffled"}
    stream = stream_of(cfg.train_data, **options)
    sources, numbers = stream.mixture.at(np.arange(STEPS * BATCH))
    alone = [TokenStream(entry["path"], **options) for entry in entries()]
    for g, (source, number) in enumerate(zip(sources.tolist(), numbers.tolist(), strict=True)):
        assert (stream[g] == alone[source][number]).all()
    line = [line for line in metrics(folder / "out") if "train/loss" in line][-1]
    for number, name in enumerate(("web", "code")):
        count = np.count_nonzero(sources == number)
        assert line[f"data/tokens/{name}"] == count * SEQ_LEN
        assert line[f"data/epochs/{name}"] == count / len(alone[number])
    assert line["tokens"] == STEPS * BATCH * SEQ_LEN


def test_the_validation_loss_is_the_weighted_mean_of_the_sources(folder):
    lines = [line for line in metrics(folder / "out") if "val/loss" in line]
    assert len(lines) == 2
    for line in lines:
        new, old = line["val/loss/new"], line["val/loss/shard_00004"]
        assert new != old
        assert line["val/loss"] == pytest.approx(0.25 * new + 0.75 * old, rel=1e-12)


def test_the_summary_and_the_page_tell_what_each_source_gave(folder):
    told = (folder / "stderr").read_text()
    assert told.count("  web   70.83% of the tokens: 544 in 34 windows, 0.05 epochs") == 2
    assert "(new 4." in told
    assert "llm-eval out/best --val-data" in told
    page = (folder / "out/report.html").read_text()
    assert '<data value="544">544</data>' in page
    assert "Validation loss by source" in page


def test_llm_eval_gives_the_same_losses_by_source(folder, monkeypatch):
    monkeypatch.chdir(folder)
    report = json.loads(call(eval.main, "out/final", "--val-data", "--json").stdout)
    line = metrics(folder / "out")[-1]
    assert report["loss"] == pytest.approx(line["val/loss"], rel=1e-6)
    assert [(each["name"], each["share"]) for each in report["per_source"]] == [
        ("new", 0.25),
        ("shard_00004", 0.75),
    ]
    refused = call(eval.main, "out/final", "--val-data", "--data", "x")
    assert refused.exit_code == 2
    assert "--val-data and --data exclude each other" in refused.stderr


def test_llm_data_reads_a_config(folder, monkeypatch):
    monkeypatch.chdir(folder)
    shown = call(data.main, "show", "c.yaml", "--window", "5").stdout
    assert "of epoch 0 of source code, whose window 1 it is (seq_len 16, seed 42)" in shown
    stats = json.loads(call(data.main, "stats", "c.yaml", "--json").stdout)
    assert [(each["name"], each["share"]) for each in stats["sources"]] == [
        ("web", 0.7),
        ("code", 0.3),
    ]
    assert sum(each["tokens"] for each in stats["sources"]) == stats["tokens"]


# What is refused


def test_a_resume_with_other_weights_is_refused(folder, monkeypatch):
    monkeypatch.chdir(folder)
    other = config(folder, "other.yaml", weights=(0.5, 0.5))
    refused = call(train.main, other, "--resume", "auto")
    assert refused.exit_code == 2
    assert "train_data: share of web: 7/10 -> 1/2; share of code: 3/10 -> 1/2" in refused.stderr


def test_a_run_of_pytorch_cannot_go_on_with_it(folder, monkeypatch):
    monkeypatch.chdir(folder)
    refused = call(convert.main, "state", "to-torch", "out/final")
    assert refused.exit_code == 2
    assert "train_data mixes the sources web, code" in refused.stderr
    assert not (folder / "out/final.state.pt").exists()


@pytest.mark.parametrize(
    ("entries", "told"),
    {
        "zero": ("[{path: a, weight: 0}]", "train_data[0].weight=0 must be a finite number above"),
        "nan": ("[{path: a, weight: nan}]", "train_data[0].weight=nan must be a finite number"),
        "switch": ("[{path: a, weight: yes}]", "train_data[0].weight=True must be a value"),
        "mixed": ("[b, {path: a, weight: 1}]", "write each path as an entry, such as {path: b"),
        "empty": ("[]", "train_data=[] must name a folder"),
        "one entry": ("{path: a, weight: 1}", "or a list of entries {path, weight}"),
        "twice": ("[{path: x/a, weight: 1}, {path: y/a, weight: 1}]", "two sources named 'a'"),
        "unknown": ("[{path: a, wieght: 1}]", "wieght is not a known key; did you mean 'weight'?"),
        "no path": ("[{weight: 1}]", "train_data[0].path is required and not set"),
        "no weights": ("[{path: a}, {path: b}]", "has no weights; give each entry a `weight`"),
        "one without": ("[{path: a}, {path: b, weight: 1}]", "has no weight for a; give each"),
        "a name": ("[{path: a, weight: 1, name: a/b}]", "train_data[0].name='a/b' must be 1 to"),
        "no paths": ("[{path: [], weight: 1}]", "train_data[0].path=[] must name a folder"),
        "a secret": ("[{path: 's3://k@b/x', weight: 1}]", "train_data[0].path='s3://…@b/x' must"),
    }.values(),
)
def test_bad_entries_are_told_with_the_rule(tmp_path, entries, told):
    (tmp_path / "c.yaml").write_text(f"train_data: {entries}\n")
    with pytest.raises(UserError) as refused:
        load_config(tmp_path / "c.yaml")
    assert told in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_a_source_without_a_window_ends_a_start(folder, monkeypatch):
    monkeypatch.chdir(folder)
    few = [{"path": str(TRAIN), "weight": 1}, {"path": TINY["val_data"], "weight": 1, "name": "v"}]
    changes = {"seq_len": 2000, "model": {"max_seq_len": 2000}, "checkpoint_dir": "none"}
    refused = call(train.main, write_config(folder / "few.yaml", train_data=few, **changes))
    assert refused.exit_code == 2
    assert "train_data[1].path: 1 shard(s) with 1807 tokens hold no window of" in refused.stderr
    assert not (folder / "none").exists()


def test_names_come_from_paths():
    known = {
        "data/web/train": "web",
        "web/*.parquet": "web",
        "gs://bucket/code/train/": "code",
        "./x/math.parquet": "math",
        "train": "train",
        "a b": "a-b",
    }
    assert {path: DataSource(path=path).label for path in known} == known
