"""The engine `vllm` with a real server process beside it, which dies on purpose."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.conftest import PATIENCE, ROOT, ends
from tests.faults.services import SetClock
from worker.beside import Beside, ServerLost
from worker.contract import ExitCode, Options, Result
from worker.engines import EngineSettings, PageImage
from worker.engines.openai_server import OpenAiEngine
from worker.engines.presets import PRESETS
from worker.engines.vllm_server import VllmEngine, _Lane
from worker.errors import BadRequest, TryAgain
from worker.remote import Broken, Clock, Service

Lives = Callable[..., Path]
PAGE = PageImage(1, np.zeros((40, 60, 3), np.uint8))


@pytest.fixture
def lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lives:
    """A folder with the script of a server's lives."""
    monkeypatch.setattr("worker.beside.POLL_SECONDS", 0.1)

    def make(script: str) -> Path:
        folder = tmp_path / "lives"
        folder.mkdir()
        (folder / "script").write_text(script)
        return folder

    return make


def options(folder: Path, **more: str) -> dict[str, Any]:
    command = f"{shlex.quote(sys.executable)} -m tests.faults.dying_server {{port}} {shlex.quote(str(folder))}"
    return {"command": command, "model": "tiny", "start": str(PATIENCE), **more}


def started(folder: Path) -> int:
    return len(list(folder.glob("life-*")))


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state != "Z"


def test_a_server_that_dies_is_started_again_and_stopped_at_the_end(lives: Lives) -> None:
    folder = lives("die 2 live")
    engine = VllmEngine(EngineSettings(1, options=options(folder)))
    assert [engine.read([PAGE])[0].markdown for _ in range(4)] == ["life 1", "life 1", "life 2", "life 2"]
    engine.close()
    assert started(folder) == 3
    assert not any(is_running(int(life.read_text())) for life in folder.glob("life-*"))


def test_it_is_started_again_five_times_at_most(lives: Lives) -> None:
    folder = lives("die")
    with pytest.raises(ServerLost, match="has died 6 times in a row, the last time with code 3") as raised:
        VllmEngine(EngineSettings(1, options=options(folder)))
    assert raised.value.exit_code == ExitCode.TRY_AGAIN
    assert started(folder) == 6


@pytest.mark.parametrize("death", ["poison", "engine", "stuck"])
def test_a_page_that_kills_each_server_costs_that_page(
    death: str, lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the run nor the pages that the server had in hand beside it: who was there is asked again alone."""
    if death == "stuck":
        monkeypatch.setattr("worker.beside.DYING_SECONDS", 0.0)
    folder = lives(death)
    engine = VllmEngine(EngineSettings(1, options=options(folder, attempts="2")))
    pages = [PageImage(number, np.full((40, 60, 3), 7 * number, np.uint8)) for number in range(8)]
    pages[3] = PageImage(3, np.zeros((13, 13, 3), np.uint8))  # what the server dies of
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda page: engine.read([page])[0], pages))
    engine.close()
    assert [number for number, text in enumerate(texts) if text.error] == [3]
    assert "could not read the page in 2 tries" in str(texts[3].error)
    assert started(folder) == 3


@pytest.mark.parametrize("together", [True, False])
def test_pages_that_kill_each_server_cost_no_more_than_themselves(together: bool, lives: Lives) -> None:
    """However many they are: only deaths in a row end the run."""
    folder = lives("poison" if together else "kills")
    clock = SetClock()
    engine = VllmEngine(EngineSettings(1, options=options(folder)), Clock(clock.now, clock.sleep))
    pages = [PageImage(number, np.full((40, 60, 3), 7 * number, np.uint8)) for number in range(8)]
    for number in (1, 3, 5):
        pages[number] = PageImage(number, np.full((13, 13, 3), number, np.uint8))
    with ThreadPoolExecutor(8 if together else 1) as pool:
        texts = list(pool.map(lambda page: engine.read([page])[0], pages))
    engine.close()
    assert [number for number, text in enumerate(texts) if text.error] == [1, 3, 5]
    assert started(folder) == (1 + 2 * 3 if together else 3 * 3) + 1


def test_a_server_that_dies_of_each_page_is_no_page_s_fault(lives: Lives) -> None:
    clock = SetClock()
    engine = VllmEngine(EngineSettings(1, options=options(lives("0"))), Clock(clock.now, clock.sleep))
    with pytest.raises(TryAgain, match="does not read even a page of ours"):
        engine.read([PAGE])
    engine.close()


def silent(monkeypatch: pytest.MonkeyPatch, *requests: bool) -> Clock:
    """For which of the requests silence ends at once; and a clock that stands still."""
    waits = iter(requests)
    monkeypatch.setattr(Service, "timeouts", lambda *_: httpx.Timeout(PATIENCE, read=0.1 if next(waits) else PATIENCE))
    clock = SetClock()
    return Clock(clock.now, clock.sleep)


def test_a_server_that_runs_but_reads_no_more_is_started_again(lives: Lives, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a page that it hangs of again, alone, has failed; the next one is read."""
    folder = lives("wedges")
    clock = silent(monkeypatch, *[True, True, True, False, True], *[True, True, True, False, False])
    engine = VllmEngine(EngineSettings(1, options=options(folder)), clock)
    (poison,) = engine.read([PageImage(1, np.zeros((13, 13, 3), np.uint8))])
    (text,) = engine.read([PAGE])
    engine.close()
    assert "could not read the page in 3 tries, while it reads others" in str(poison.error)
    assert (text.error, text.markdown) == (None, "life 2")
    assert started(folder) == 3


def test_a_server_that_reads_nothing_when_started_again_either_is_away(
    lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = lives("wedged")
    engine = VllmEngine(EngineSettings(1, options=options(folder)), silent(monkeypatch, *[True] * 4))
    with pytest.raises(TryAgain, match="runs, but does not read even a page of ours"):
        engine.read([PAGE])
    engine.close()
    assert started(folder) == 2


def test_the_time_of_a_restart_is_not_the_page_s(lives: Lives, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which would be up: it has waited longer than it may take."""
    clock = slow_restarts(monkeypatch, 310)
    folder = lives("0 live")
    engine = VllmEngine(EngineSettings(1, options=options(folder)), Clock(clock.now, clock.sleep))
    (text,) = engine.read([PAGE])
    engine.close()
    assert (text.error, text.markdown) == (None, "life 1")


def test_a_page_waits_for_restarts_no_longer_than_a_call_may_take(
    lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that the server dies of even when it is alone has failed by then, before the worker is given up."""
    clock = slow_restarts(monkeypatch, 400)
    engine = VllmEngine(EngineSettings(1, options=options(lives("kills"))), Clock(clock.now, clock.sleep))
    (text,) = engine.read([PageImage(1, np.zeros((13, 13, 3), np.uint8))])
    assert "the server dies of the page, which it had alone" in str(text.error)
    assert clock.time < 1000 + 600
    engine.close()


@pytest.mark.parametrize(("seconds", "says"), [(540, "was away for too long"), (700, "does not answer within 540 s")])
def test_a_page_that_waits_too_long_for_the_server_is_not_to_blame(
    seconds: float, says: str, lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = slow_restarts(monkeypatch, seconds)
    engine = VllmEngine(EngineSettings(1, options=options(lives("0 live"))), Clock(clock.now, clock.sleep))
    with pytest.raises(TryAgain, match=says):
        engine.read([PAGE])
    assert clock.time < 1000 + 600
    engine.close()


def watched(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Who wants to be alone, in the order in which the lane is entered."""
    entered: list[bool] = []
    enter = _Lane.enter

    def note(lane: _Lane, *, alone: bool, seconds: float) -> Any:
        entered.append(alone)
        return enter(lane, alone=alone, seconds=seconds)

    monkeypatch.setattr(_Lane, "enter", note)
    return entered


def test_a_page_is_suspected_though_the_server_is_up_again_when_that_is_asked(
    lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered = watched(monkeypatch)
    clock = SetClock()
    engine = VllmEngine(EngineSettings(1, options=options(lives("live"))), Clock(clock.now, clock.sleep))
    answer = OpenAiEngine._complete

    def slowly(self: OpenAiEngine, *asked: Any) -> Any:
        """Told of the engine's death, the thread sleeps until the server is up again."""
        monkeypatch.setattr(OpenAiEngine, "_complete", answer)
        process = engine._server._process
        assert process
        os.killpg(process.pid, signal.SIGKILL)
        engine._server.settle(PATIENCE)
        raise Broken("EngineCore encountered an issue")

    monkeypatch.setattr(OpenAiEngine, "_complete", slowly)
    (text,) = engine.read([PAGE])
    engine.close()
    assert text.markdown == "life 1"
    assert entered == [False, True]


def test_a_page_that_the_server_dies_of_when_asked_again_at_once_is_suspected(
    lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server had died before it could be asked; and now it dies of the page: that one must be alone next."""
    entered = watched(monkeypatch)
    engine = VllmEngine(EngineSettings(1, options=options(lives("live 0 live"))))
    wait = Beside.wait

    def dies_after(server: Beside, seconds: float) -> None:
        wait(server, seconds)
        monkeypatch.setattr(Beside, "wait", wait)
        process = server._process
        assert process
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    monkeypatch.setattr(Beside, "wait", dies_after)
    (text,) = engine.read([PAGE])
    engine.close()
    assert text.markdown == "life 2"
    assert entered == [False, True]


def test_a_turn_that_does_not_come_is_no_document_s_fault() -> None:
    lane = _Lane()
    with lane.enter(alone=False, seconds=0), pytest.raises(TryAgain, match="busy with pages"):
        lane.enter(alone=True, seconds=0).__enter__()
    with lane.enter(alone=True, seconds=0), pytest.raises(TryAgain, match="busy with pages"):
        lane.enter(alone=False, seconds=0).__enter__()
    with lane.enter(alone=False, seconds=0), lane.enter(alone=False, seconds=0):
        pass


def slow_restarts(monkeypatch: pytest.MonkeyPatch, seconds: float) -> SetClock:
    """A clock by which each restart takes so long, whatever it takes by ours."""
    clock = SetClock()
    settle = Beside.settle

    def slow(server: Beside, most: float) -> None:
        clock.time += min(seconds, most)
        if seconds > most:
            raise ServerLost(f"does not answer within {most:.0f} s")
        settle(server, PATIENCE)

    monkeypatch.setattr(Beside, "settle", slow)
    return clock


@pytest.mark.parametrize(
    ("named", "most"),
    [
        ({"preset": "hunyuan"}, 1),
        ({"preset": "hunyuan-1.0"}, 1),
        ({"model": "tencent/HunyuanOCR"}, 1),
        ({"model": "mine/hunyuanocr-receipts"}, 1),
        ({"preset": "paddleocr-vl"}, 4),
        ({"preset": "paddleocr-vl", "fallback": "hunyuan"}, 4),
    ],
)
def test_pages_that_vllm_would_mix_are_asked_one_at_a_time(named: dict[str, str], most: int, lives: Lives) -> None:
    engine = VllmEngine(EngineSettings(1, options=options(lives("live"), concurrency="4") | named))
    engine.close()
    assert engine.concurrency == most


def test_a_server_that_never_answers_is_given_up(lives: Lives, monkeypatch: pytest.MonkeyPatch) -> None:
    servers: list[Beside] = []

    class Noted(Beside):
        def __init__(self, *how: Any, **more: Any) -> None:
            super().__init__(*how, **more)
            servers.append(self)

    monkeypatch.setattr("worker.engines.vllm_server.Beside", Noted)
    with pytest.raises(ServerLost, match="does not answer within 1 s"):
        VllmEngine(EngineSettings(1, options=options(lives("mute"), start="1", port="1")))
    (server,) = servers
    assert server._process
    assert server._process.poll() is not None
    assert not server._thread.is_alive()


def test_a_program_that_does_not_exist() -> None:
    with pytest.raises(ServerLost, match="there is no such program"):
        VllmEngine(EngineSettings(1, options={"command": "no-such-program --port {port}", "model": "tiny"}))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "needs a model"),
        ({"preset": "hunyuan"}, "no program vllm here: install vLLM into an environment of its own .* --engine openai"),
        ({"preset": "hunyuan", "base_url": "http://x/v1"}, "has no option 'base_url'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BadRequest, match=says):
        VllmEngine(EngineSettings(1, options=options))


@pytest.fixture
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of that name that notes its arguments, its environment and the model's files, and leaves."""
    program = tmp_path / "vllm"
    program.write_text('#!/bin/sh\necho "$@" >> "$0.args"; env >> "$0.env"; LC_ALL=C ls "$2" >> "$0.files"; exit 127\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return program


def told(program: Path, what: str) -> list[str]:
    return program.with_suffix(f".{what}").read_text().splitlines()


def test_vllm_is_started_with_the_preset_s_pinned_weights(vllm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    asked = {"preset": "hunyuan", "port": "8123", "server_args": "--max-model-len 32768"}
    with pytest.raises(ServerLost):
        VllmEngine(EngineSettings(1, options=asked))
    assert told(vllm, "args")[0] == (
        "serve tencent/HunyuanOCR --revision 449e7d471a8a1ef5bd5d652e4881183d7252cbc7 --served-model-name "
        "tencent/HunyuanOCR --host 127.0.0.1 --port 8123 --max-model-len auto --max-model-len 32768"
    )
    assert "sk-secret" not in "".join(told(vllm, "env"))


@pytest.mark.parametrize("preset", [name for name, preset in PRESETS.items() if preset.chat_template])
def test_no_model_is_run_in_a_precision_in_which_it_writes_nonsense(preset: str, vllm: Path) -> None:
    """Which vLLM would choose by itself on a card without bfloat16."""
    with pytest.raises(ServerLost):
        VllmEngine(EngineSettings(1, options={"preset": preset}))
    asked = "--dtype bfloat16" in told(vllm, "args")[0]
    assert asked == (PRESETS[preset].without_bf16 != "float16")


def test_vllm_serves_weights_from_s3(vllm: Path, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    files = sorted(path for path in (ROOT / "tests/assets/tiny-hunyuan").iterdir())
    for path in files:
        s3.upload_file(str(path), "inputs", f"models/mine/{path.name}")
    with pytest.raises(ServerLost):
        VllmEngine(EngineSettings(1, options={"preset": "hunyuan", "model": "s3://inputs/models/mine/"}))
    words = told(vllm, "args")[0].split()
    assert Path(words[1]).parent == tmp_path / "scratch"
    assert words[2:4] == ["--served-model-name", "s3://inputs/models/mine/"]
    assert told(vllm, "files") == [path.name for path in files]
    assert not list((tmp_path / "scratch").iterdir())  # no copy stays behind


def test_the_worker_reads_on_when_its_server_dies(make_run: Any, lives: Lives) -> None:
    folder = lives("3 live")
    names = {f"{number}.png": "read" for number in range(8)}
    run = make_run(names, engine="vllm", options=Options(engine_options=options(folder, concurrency="2")))
    done = run.work()
    assert done.returncode == ExitCode.OK, done.stderr
    assert run.outcomes() == dict.fromkeys(names, "ok")
    texts = [result.extracted_markdown for task in run.tasks[0] if isinstance(result := run.outcome(task), Result)]
    assert set(texts) == {"life 0\n", "life 1\n"}
    assert len(done.stdout.splitlines()) == 8  # the server's own words go to standard error
    assert "hello from the server" in done.stderr
    assert not any(is_running(int(life.read_text())) for life in folder.glob("life-*"))


def test_the_server_goes_when_the_worker_is_killed(make_run: Any, lives: Lives) -> None:
    folder = lives("live")
    run = make_run(
        {"a.png": "read"}, engine="vllm", options=Options(engine_options=options(folder, preset="hunyuan", task="text"))
    )
    worker = run.start()
    assert worker.stderr
    for line in worker.stderr:
        if "hello from the server" in line:
            break
    (life,) = folder.glob("life-*")
    worker.send_signal(signal.SIGKILL)
    worker.communicate()
    assert ends(int(life.read_text())), "the server outlives its worker"


def test_what_a_dead_server_has_started_goes_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's own processes hold the card's memory, which the next start needs."""
    monkeypatch.setattr("worker.beside.POLL_SECONDS", 0.1)
    script = f"sleep 1000 & echo $! >> {shlex.quote(str(tmp_path / 'children'))}; exit 1"
    server = Beside(["sh", "-c", script], lambda: False, start_seconds=PATIENCE, restarts=1)
    with pytest.raises(ServerLost, match="has died 2 times"):
        server.wait(PATIENCE)
    server.stop()
    children = (tmp_path / "children").read_text().split()
    assert len(children) == 2
    assert all(ends(int(child)) for child in children)


def test_a_stopped_server_stays_down(lives: Lives) -> None:
    folder = lives("live")
    command = [sys.executable, "-m", "tests.faults.dying_server", "0", str(folder)]
    server = Beside(command, lambda: True, start_seconds=PATIENCE)
    server.wait(PATIENCE)
    server.stop()
    assert started(folder) <= 1
