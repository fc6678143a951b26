"""llm-train on a real terminal."""

import re

from terminal import on_terminal, resize, screen
from tiny_runs import metrics, write_config

STEPS = {"num_steps": 300, "log_every": 50, "eval_every": 100, "save_every": 300}
FRAME = re.compile("step [0-9,]+/300(?:\x1b\\[[0-9;]*m| )*━")


def test_lines_survive_and_the_display_goes(tmp_path):
    config = write_config(tmp_path / "c.yaml", **STEPS)
    code, written = on_terminal("llm-train", config, cwd=tmp_path)
    assert code == 0
    lines = screen(written, 80)
    text = "\n".join(lines)
    logged = [line for line in metrics(tmp_path / "out") if "train/loss" in line]
    assert len(logged) == 6
    for line in logged:
        assert f"step {line['step']}/300  loss {line['train/loss']:.4f}  lr " in text
    assert len(re.findall(r"^step \d+/300  val loss ", text, re.MULTILINE)) == 3
    assert not [line for line in lines if "━" in line or "data wait" in line]
    summary = lines[: lines.index(next(line for line in lines if line.startswith("compiled")))]
    assert max(map(len, summary)) < 80
    assert [line for line in summary if line.endswith(" epochs")]  # the word is whole

    drawn = len(FRAME.findall(written.decode()))
    seconds = [int(second) for second in re.findall(rb"0:00:(\d\d)", written)]
    assert 1 <= drawn <= 4 * (max(seconds) + 2)


def test_a_terminal_that_goes_away_does_not_end_the_run(tmp_path):
    """And until then NO_COLOR left only bold and dim."""
    config = write_config(tmp_path / "c.yaml", **STEPS)
    code, written = on_terminal(
        "llm-train",
        config,
        cwd=tmp_path,
        env={"NO_COLOR": "1"},
        seen=lambda _, text: b"step 100/300" in text,
    )
    assert code == 0
    assert metrics(tmp_path / "out")[-1]["step"] == 300
    assert b"Traceback" not in written
    codes = {
        code for codes in re.findall(rb"\x1b\[([\d;]*)m", written) for code in codes.split(b";")
    }
    assert codes <= {b"", b"0", b"1", b"2", b"22"}, codes


def test_a_dumb_terminal_gets_plain_lines(tmp_path):
    config = write_config(tmp_path / "c.yaml", **STEPS)
    code, written = on_terminal("llm-train", config, cwd=tmp_path, env={"TERM": "dumb"})
    assert code == 0
    text = written.decode().replace("starting…\r\x1b[K", "")
    assert "\x1b" not in text
    assert "step 300/300  loss" in text


def test_a_window_that_changes(tmp_path):
    widths = iter([50, 130, 34, 80])

    def seen(terminal, written):
        if b"step 50/300" in written and (width := next(widths, None)):
            resize(terminal, width)
        return False

    config = write_config(tmp_path / "c.yaml", **STEPS)
    code, written = on_terminal("llm-train", config, cwd=tmp_path, columns=120, seen=seen)
    assert code == 0
    assert b"Traceback" not in written
    assert b"step 300/300" in written
