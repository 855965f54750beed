"""`pagefleet bench`: what it measures and says; never how much."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from jobs import bench
from jobs.cli import main
from jobs.cost import INSTANCES, SPOT_SHARE
from tests.assets import TINY_TROCR
from tests.conftest import draw, draw_frames
from tests.faults.services import faulty_service, json_reply, stream
from tests.rendering import DISTINCT, draw_page, fresh_strings
from tests.worker.test_engine_upstage import answer

COLOUR = "tests.faults.engines:Colour"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


def told(*arguments: object) -> dict[str, Any]:
    done = run(*arguments, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of the kernel's that tells what machine this is; empty at first."""
    folder = tmp_path / "dmi"
    folder.mkdir()
    monkeypatch.setattr(bench, "DMI", folder)
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    draw(folder / "a.png")
    draw_frames(folder / "b.tiff", ["read", "raise", "read"])
    Image.new("RGB", (200, 200), "white").save(folder / "blank.png")
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:60])
    return folder


def test_an_engine_that_reads_is_measured_with_its_errors_tokens_and_price(tmp_path: Path) -> None:
    for number in (1, 2):
        lines = fresh_strings(4, seed=number, shortest=5, alphabet=DISTINCT)
        draw_page(lines).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.png.txt").write_text("\n".join(lines))
    found = told(
        tmp_path, "--engine", "trocr", "--device", "cpu", "--engine-option", f"model={TINY_TROCR}", "--hourly-usd", 0.9
    )
    assert (found["engine"], found["model"], found["device"]) == ("trocr", str(TINY_TROCR), "cpu")
    assert str(found["revision"]).startswith("sha256:")
    assert found["versions"].keys() >= {"torch", "transformers", "rapidocr", "pagefleet"}
    assert (found["pages"], found["failed_pages"], found["documents_with_truth"]) == (2, 0, 2)
    assert found["character_error_rate"] < 0.02
    assert found["notes"] == []  # true texts are no documents that were passed over
    pace, tokens = float(found["pages_per_second"]), float(found["tokens_per_second"])
    written = sum(len("".join(fresh_strings(4, seed, shortest=5, alphabet=DISTINCT))) for seed in (1, 2))
    assert tokens / pace == pytest.approx(written / 2, rel=0.02)
    assert found["price"] == {
        "usd_per_hour": 0.9,
        "usd_per_1000_pages": pytest.approx(0.9 / 3600 / pace * 1000, rel=0.01),
        "source": "as given",
    }


def test_pages_that_fail_are_blank_or_broken_are_told(pictures: Path) -> None:
    found = told(pictures, "--engine", COLOUR)
    assert (found["pages"], found["failed_pages"], found["blank_pages"]) == (4, 1, 1)
    (note,) = found["notes"]
    assert "broken.png: " in note
    assert "tokens_per_second" not in found  # this engine tells none
    assert "character_error_rate" not in found  # no truth is given
    assert "price" not in found


def test_the_table_says_the_same(pictures: Path) -> None:
    (pictures / "truth").mkdir()
    (pictures / "truth" / "a.png.txt").write_text("read 120x80\n")
    done = run(pictures, "--engine", COLOUR)
    assert done.exit_code == 0, done.output
    rows = dict(line.split("  ", 1) for line in done.stdout.splitlines())
    said = {name: value.strip() for name, value in rows.items()}
    assert said["engine"] == COLOUR
    assert (said["model"], said["revision"], said["device"]) == ("colour-test", "1", "not told")
    assert said["pages"] == "4 (1 failed, 1 blank ones left out)"
    assert said["tokens/s"] == "not told"
    assert said["character errors"] == "0.00% in 1 document"
    assert said["$ per 1,000 pages"] == "give --hourly-usd, or --instance on EC2"
    assert said.keys() >= {"machine", "versions", "pages/s", "seconds a page", "peak memory"}
    assert "broken.png" in done.stderr


def test_no_more_pages_are_read_than_asked_for(pictures: Path) -> None:
    found = told(pictures / "b.tiff", pictures / "a.png", "--engine", COLOUR, "--pages", 2)
    assert found["pages"] == 2
    assert found["notes"] == ["only the first 2 pages: --pages reads more"]


def test_a_machine_that_says_what_it_is_has_its_price(pictures: Path, machine: Path) -> None:
    (machine / "sys_vendor").write_text("Amazon EC2\n")
    (machine / "product_name").write_text("g6.xlarge\n")
    for given in ([], ["--instance", "g6.xlarge"]):
        found = told(pictures / "a.png", "--engine", COLOUR, *given)
        price = found["price"]
        assert isinstance(price, dict)
        assert price["usd_per_hour"] == INSTANCES["g6.xlarge"].on_demand
        assert price["spot_usd_per_1000_pages"] == pytest.approx(price["usd_per_1000_pages"] * SPOT_SHARE, rel=0.01)
        assert str(found["machine"]).startswith("g6.xlarge: ")
        assert found["notes"] == []


def test_a_price_of_a_machine_that_does_not_tell_is_taken_with_a_note(pictures: Path) -> None:
    found = told(pictures / "a.png", "--engine", COLOUR, "--instance", "g5.xlarge")
    assert found["notes"] == ["this machine doesn't tell what it is: the price is right if it is a g5.xlarge"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--instance", "g6.xlarge"], "this machine is no EC2 instance, not a g6.xlarge"),
        (["--instance", "x9.huge"], "no price of x9.huge is known here: give --hourly-usd"),
        (["--instance", "g6.xlarge", "--hourly-usd", "1"], "not both"),
        (["--engine", "rapidocr", "--device", "cuda"], "engine rapidocr can't be told to use cuda"),
        (["--engine", "none"], "unknown engine 'none'"),
        (["--engine-option", "nonsense"], "is not of the form K=V"),
        (["nowhere.png"], "nowhere.png"),
    ],
)
def test_what_can_not_be_measured_is_refused(pictures: Path, machine: Path, arguments: list[str], message: str) -> None:
    (machine / "sys_vendor").write_text("QEMU\n")
    (machine / "product_name").write_text("Standard PC\n")
    inputs = [] if "nowhere.png" in arguments else [pictures / "a.png"]
    engine = [] if "--engine" in arguments else ["--engine", COLOUR]
    done = run(*inputs, *engine, *arguments)
    assert done.exit_code == 2, done.output
    assert message in done.output


def test_a_price_counts_what_a_service_charges(tmp_path: Path, machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2, 3):
        draw(tmp_path / f"in/{number}.png", size=(200, 100))
    (machine / "sys_vendor").write_text("Amazon EC2\n")
    (machine / "product_name").write_text("g6.xlarge\n")
    monkeypatch.setenv("UPSTAGE_API_KEY", "up_test")
    with faulty_service(lambda *_: json_reply(answer())) as service:
        asked = [tmp_path / "in", "--engine", "upstage", "--engine-option", f"base_url={service.url}"]
        asked += ["--engine-option", "rate=1000"]
        found = told(*asked, "--engine-option", "price_per_page=0.002")
        unknown = told(*asked)
        table = run(*asked, "--hourly-usd", 1).stdout
        assert len(service.asked) == 3 * 4
    assert found["device"] == "not told"
    assert any("warms up" in note for note in found["notes"])
    price = found["price"]
    assert isinstance(price, dict)
    machines = INSTANCES["g6.xlarge"].on_demand / 3600 / float(found["pages_per_second"]) * 1000
    assert price["charged_usd_per_1000_pages"] == 2
    assert price["usd_per_1000_pages"] == pytest.approx(2 + machines, rel=0.001)
    assert price["spot_usd_per_1000_pages"] == pytest.approx(2 + SPOT_SHARE * machines, rel=0.001)
    assert "price" not in unknown
    assert "give what Upstage charges you" in unknown["notes"][-1]
    assert "give what Upstage charges you" in table


def test_this_machine_tells_no_price_of_a_server_elsewhere(pictures: Path, machine: Path) -> None:
    (machine / "sys_vendor").write_text("Amazon EC2\n")
    (machine / "product_name").write_text("g6.xlarge\n")
    with faulty_service(lambda *_: stream(["read"])) as service:
        asked = [pictures / "a.png", "--engine", "openai", "--engine-option", f"base_url={service.url}"]
        found, given = told(*asked), told(*asked, "--hourly-usd", 0.9)
    assert (found["device"], found["model"]) == ("not told", "tiny")
    assert "price" not in found
    assert "--hourly-usd of the machine that the server runs on" in found["notes"][-1]
    assert given["price"]["usd_per_hour"] == 0.9


def test_no_figure_is_given_where_nothing_was_read(pictures: Path) -> None:
    draw(pictures / "red.png", "raise")
    done = run(pictures / "red.png", "--engine", COLOUR)
    assert done.exit_code == 1
    assert "could read no page (1 tried); the first: RuntimeError: this page is red" in done.stderr
    done = run(pictures / "blank.png", "--engine", COLOUR)
    assert done.exit_code == 2
    assert "there is no page to read" in done.stderr
    assert "; 1 page blank" in done.stderr
    (pictures / "junk").mkdir()
    (pictures / "junk/none.png").write_text("junk")
    (pictures / "junk/notes.txt").write_text("junk")
    done = run(pictures / "junk", "--engine", COLOUR)
    assert done.exit_code == 2
    assert "none.png: " in done.stderr
    assert "by their suffix: 1 .txt" in done.stderr
