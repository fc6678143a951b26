"""A resumed run is the uninterrupted run, bit for bit on the CPU."""

import json
import shutil

import pytest
from tiny_runs import (
    TINY,
    assert_same_weights,
    command,
    merged,
    metrics,
    train_command,
    write_config,
)

from light_jax.training.loop import run_config
from light_llm.errors import UserError


def test_resume_prefix_in_a_new_process_equals_uninterrupted(tmp_path):
    whole = write_config(tmp_path / "whole/c.yaml", keep_last_n=9)
    train_command(whole)
    shutil.copytree(tmp_path / "whole", tmp_path / "halves")
    halves = tmp_path / "halves/c.yaml"
    resumed = train_command(halves, "--resume", "out/step0000003")  # 4 to 6 are trained again
    assert "resuming    out/step0000003 at step 3" in resumed.stderr
    for tag in ("step0000003", "step0000006", "final", "best"):
        assert_same_weights(
            tmp_path / f"whole/out/{tag}.safetensors", tmp_path / f"halves/out/{tag}.safetensors"
        )
    assert metrics(tmp_path / "whole/out", timeless=True) == metrics(
        tmp_path / "halves/out", timeless=True
    )


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": {"type": "adam"}, "model": {"gradient_checkpointing": True}},
        {"optimizer": {"type": "sgd"}, "scheduler": {"type": "wsd"}},
        {"dtype": "bfloat16", "bf16_model_weights": True},
    ],
    ids=["adam-checkpointing", "sgd-wsd", "bf16-weights"],  # the rest: test_exact_resume.py
)
def test_stopped_between_two_log_lines(tmp_path, monkeypatch, options):
    """Steps 4 to 7 are after the tag: 4 and 5 belong to a log line that began before it."""
    changes = {"num_steps": 7, "save_every": 3, "log_every": 5, "eval_every": 7}
    changes["model"] = {"num_layers": 1}
    write_config(tmp_path / "whole/c.yaml", **merged(changes, options))
    monkeypatch.chdir(tmp_path / "whole")
    assert run_config("c.yaml") == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    monkeypatch.chdir(tmp_path / "resumed")
    assert run_config("c.yaml", "out/step0000003.safetensors") == 0
    assert_same_weights(
        tmp_path / "whole/out/final.safetensors", tmp_path / "resumed/out/final.safetensors"
    )
    assert metrics(tmp_path / "whole/out", timeless=True) == metrics(
        tmp_path / "resumed/out", timeless=True
    )


def test_auto_starts_fresh_then_continues_and_then_has_nothing_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "c.yaml", num_steps=4, save_every=2)
    assert run_config("c.yaml", "auto") == 0
    write_config(tmp_path / "c.yaml", num_steps=6, save_every=2)
    assert run_config("c.yaml", "auto") == 0
    stderr = capsys.readouterr().err
    assert "final at step 4" in stderr
    assert "changed   num_steps: 4 -> 6" in stderr
    before = (tmp_path / "out/metrics.jsonl").read_bytes()
    assert run_config("c.yaml", "auto") == 0
    assert "nothing to do: num_steps=6, and step 6 is done" in capsys.readouterr().err
    assert (tmp_path / "out/metrics.jsonl").read_bytes() == before


def test_an_abandoned_future_is_never_the_newest(tmp_path, monkeypatch, capsys):
    """Resumed from step 2 and stopped at 3: step 6 of the run before lies in no one's future."""
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "c.yaml", num_steps=6, save_every=2, val_data=...)
    run_config("c.yaml")
    write_config(tmp_path / "c.yaml", num_steps=3, save_every=1, val_data=...)
    run_config("c.yaml", "out/step0000002")
    capsys.readouterr()
    write_config(tmp_path / "c.yaml", num_steps=4, save_every=9, val_data=...)
    run_config("c.yaml", "auto")
    assert "at step 3" in capsys.readouterr().err


def test_only_the_newest_step_tags_are_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "c.yaml", save_every=1, keep_last_n=2)
    run_config("c.yaml")
    names = sorted(path.name for path in (tmp_path / "out").glob("step*"))
    endings = [".config.json", ".safetensors", ".state"]
    assert names == [f"step000000{n}{ending}" for n in (5, 6) for ending in endings]


REFUSED = [
    ({"model": {"d_model": 64}}, "model.d_model: 32 -> 64"),
    ({"seq_len": 8}, "seq_len: 16 -> 8"),
    ({"batch_size": 4}, "batch_size: 8 -> 4"),
    ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps: 1 -> 2"),
    ({"seed": 1}, "seed: 42 -> 1"),
    ({"window_order": "shuffled"}, 'window_order: "sequential" -> "shuffled"'),
    ({"optimizer": {"type": "sgd"}}, 'optimizer.type: "adamw" -> "sgd"'),
    ({"dtype": "bfloat16"}, 'dtype: "float32" -> "bfloat16"'),
    ({"train_data": TINY["val_data"]}, "train_data: "),
]


def test_another_run_is_refused_with_a_diff(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "c.yaml", num_steps=3)
    run_config("c.yaml")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    for changes, line in REFUSED:
        write_config(tmp_path / "c.yaml", num_steps=3, **changes)
        with pytest.raises(UserError, match="cannot be resumed with this config") as refusal:
            run_config("c.yaml", "auto")
        assert line in str(refusal.value)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_resume_of_what_is_not_there_lists_what_is(tmp_path):
    config = write_config(tmp_path / "c.yaml", num_steps=3)
    train_command(config)
    done = command("llm-train", config, "--resume", "out/step9", cwd=tmp_path)
    assert done.returncode == 2
    assert "there is no checkpoint 'step9' (out has best, final, step0000003)" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_resume_stopped_before_its_first_tag_is_still_the_newest(tmp_path, monkeypatch, capsys):
    """Left at step 2 of 6 and killed at once: `auto` goes back to 2, not to the former future."""
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "c.yaml", num_steps=6, save_every=2, val_data=...)
    run_config("c.yaml")
    with monkeypatch.context() as patch:
        patch.setattr("light_jax.training.run.BatchLoader", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_config("c.yaml", "out/step0000002")
    capsys.readouterr()
    run_config("c.yaml", "auto")
    assert "step0000002 at step 2" in capsys.readouterr().err
    assert [line["step"] for line in metrics(tmp_path / "out")] == [1, 2, 3, 4, 5, 6]


def _interrupted(*args, **kwargs):
    raise KeyboardInterrupt


def test_retention_keeps_the_history_and_drops_the_abandoned_future(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "c.yaml", num_steps=6, save_every=1, keep_last_n=9, val_data=...)
    run_config("c.yaml")
    write_config(tmp_path / "c.yaml", num_steps=3, save_every=1, keep_last_n=9, val_data=...)
    run_config("c.yaml", "out/step0000002")
    tags = sorted(path.name[:11] for path in (tmp_path / "out").glob("step*.safetensors"))
    assert tags == ["step0000001", "step0000002", "step0000003"]


def test_a_copy_of_the_weights_alone_stops_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "c.yaml", num_steps=2, val_data=...)
    run_config("c.yaml")
    for ending in (".safetensors", ".config.json"):
        (tmp_path / f"out/mine{ending}").write_bytes((tmp_path / f"out/final{ending}").read_bytes())
    write_config(tmp_path / "c.yaml", num_steps=3, val_data=...)
    assert run_config("c.yaml", "out/final") == 0
    assert (tmp_path / "out/mine.safetensors").exists()


def test_a_missing_final_is_written_by_the_resume(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "c.yaml", num_steps=3, val_data=...)
    run_config("c.yaml")
    before = (tmp_path / "out/final.safetensors").read_bytes()
    for path in ("final.config.json", "final.safetensors"):
        (tmp_path / "out" / path).unlink()
    assert run_config("c.yaml", "auto") == 0
    assert (tmp_path / "out/final.safetensors").read_bytes() == before


def test_the_best_loss_is_of_the_same_validation_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "c.yaml", num_steps=3)
    run_config("c.yaml")
    write_config(tmp_path / "c.yaml", num_steps=6, eval_steps=1, optimizer={"lr": 1e-9})
    run_config("c.yaml", "out/final")
    record = json.loads((tmp_path / "out/best.config.json").read_text())["checkpoint"]
    assert record["step"] == 6


def test_a_users_own_weights_are_not_half_a_tag(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "c.yaml", num_steps=2, val_data=..., checkpoint_dir="first")
    run_config("c.yaml")
    (tmp_path / "out").mkdir()
    mine = tmp_path / "out/step0000100.safetensors"
    mine.write_bytes((tmp_path / "first/final.safetensors").read_bytes())
    write_config(tmp_path / "c.yaml", num_steps=2, val_data=..., init_from=str(mine))
    run_config("c.yaml")
    assert mine.exists()


def test_a_damaged_tag_does_not_hide_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "c.yaml", num_steps=6, save_every=1, keep_last_n=9, val_data=...)
    run_config("c.yaml")
    damaged = tmp_path / "out/step0000002.config.json"
    for text in ["{", "[]", '{"checkpoint": 3}', '{"checkpoint": {"step": "x"}}']:
        damaged.write_text(text)
        with pytest.raises(UserError, match="step0000002"):
            run_config("c.yaml", "out/step0000002")
        assert run_config("c.yaml", "auto") == 0
    assert "final at step 6" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"it is a folder; add one of its tags: .*final"):
        run_config("c.yaml", "out")


def test_init_from_a_damaged_checkpoint_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "c.yaml", num_steps=1, val_data=..., checkpoint_dir="first")
    run_config("c.yaml")
    path = tmp_path / "first/final.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    write_config(tmp_path / "c.yaml", num_steps=1, val_data=..., init_from="first/final")
    with pytest.raises(UserError, match="CRC-32"):
        run_config("c.yaml")
    path.write_bytes(whole)
    assert run_config("c.yaml") == 0  # a rate of 0: the weights stay as they were
    assert_same_weights(path, tmp_path / "out/final.safetensors")
