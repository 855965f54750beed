"""Labelling parquet datasets: each kind of column, of row and of death, and the file that comes of them."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from jobs import dataset as datasets
from jobs.cli import main
from jobs.dataset import DatasetRequest, check_licence, labels_schema, plan_dataset
from jobs.plan import describe_run, write_plan
from tests.conftest import draw, ended, image, wait_for, worker_environment
from tests.faults.services import Asked, faulty_service, json_reply, stream
from tests.jobs.conftest import Deployed
from tests.jobs.test_cli import COLOUR, pagefleet
from tests.worker.test_engine_upstage import answer as upstage_answer
from worker.contract import ExitCode, Options, Page, RunPaths
from worker.dataset import ParquetSet, RowImages, row_uri
from worker.engines import ENGINES
from worker.errors import BadRequest, DocumentError
from worker.labels import to_image
from worker.settings import Settings
from worker.shard import Drain, read_shard
from worker.storage import AccessDenied, _Pieces, open_storage, path_uri

COLUMNS = [
    *("id", "split", "image_path", "image_filename", "width", "height"),
    *("polygons", "texts", "labels", "metadata", "confidences", "status"),
]


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def png(action: str = "read", size: tuple[int, int] = (120, 80)) -> bytes:
    file = io.BytesIO()
    image(action, size).save(file, "PNG")
    return file.getvalue()


def write_set(path: Path, columns: dict[str, Any], rows_per_group: int = 1000, **types: pa.DataType) -> Path:
    arrays = {name: pa.array(values, types.get(name)) for name, values in columns.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(arrays), path, row_group_size=rows_per_group)
    return path


def rows(run: Path, name: str = "train") -> list[dict[str, Any]]:
    table: list[dict[str, Any]] = pq.read_table(run / f"{name}_pseudo_labels.parquet").to_pylist()
    return table


def reads(log: Path) -> list[str]:
    """The sizes of the pages that the engine was asked for."""
    return [line.split()[0] for line in log.read_text().splitlines()]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestRows:
    def test_each_row_gets_its_own_in_order_whatever_it_names(self, here: Path) -> None:
        draw(here / "sets/영수증/가 나.png", size=(130, 80))
        draw(here / "sets/red.png", "raise")
        draw(here / "elsewhere/abs.png", size=(140, 80))
        draw(here / "sets/100%2F#.png", size=(150, 80))
        Image.new("RGB", (60, 60), "white").save(here / "sets/blank.png")
        frames = [image("read", (160, 80)), image("raise", (160, 80))]
        frames[0].save(here / "sets/two.tiff", save_all=True, append_images=frames[1:])
        (here / "sets/broken.png").write_bytes(png()[:60])
        paths = [
            *("영수증/가 나.png", "red.png", str(here / "elsewhere/abs.png"), path_uri(here / "sets/100%2F#.png")),
            *("gone.png", None, "", "https://example.org/a.png", "100%2F#.png", "./영수증/../영수증/가 나.png"),
            *("blank.png", "two.tiff", "broken.png", "a\0b.png"),
        ]
        count = len(paths)
        columns = {
            "image_path": paths,
            "width": [7] * count,
            "height": [9] * count,
            "id": [f"행-{n}" for n in range(count)],
        }
        write_set(here / "sets/train.parquet", columns | {"split": ["val"] * (count - 1) + [None]})
        done = pagefleet("run", "--dataset", "sets/train.parquet", "--batch-size", "9", *COLOUR, cwd=here)
        assert done.returncode == 3, done.stderr
        assert "note: 2 rows name the image of an earlier row" in done.stderr
        assert "labels   runs/train/train_pseudo_labels.parquet" in done.stdout
        found = rows(here / "runs/train")
        assert [row["image_path"] for row in found] == paths
        assert [row["id"] for row in found] == columns["id"]
        assert [row["split"] for row in found] == ["val"] * (count - 1) + ["train"]
        codes = [row["metadata"]["code"] or row["status"] for row in found]
        assert codes == [
            *("ok", "engine_error", "ok", "ok", "not_found", "not_found", "not_found", "not_found", "ok", "ok"),
            *("blank", "ok", "corrupt", "not_found"),
        ]
        texts = [row["texts"] for row in found]
        assert texts[0] == texts[9] == ["read 130x80"]
        assert texts[3] == texts[8] == ["read 150x80"]
        assert (texts[2], texts[10], texts[11]) == (["read 140x80"], [], ["read 160x80"])
        assert [row["metadata"]["duplicate_of"] for row in found] == [*(None,) * 8, 3, 0, *(None,) * 4]
        assert [row["metadata"]["row"] for row in found] == list(range(count))
        assert (found[0]["image_filename"], found[9]["image_filename"], found[5]["image_filename"]) == (
            *("가 나.png",) * 2,
            None,
        )
        assert (found[0]["width"], found[0]["height"]) == (130, 80)
        assert (found[4]["width"], found[4]["height"]) == (7, 9)  # what the dataset says of it
        assert found[11]["metadata"]["pages"] == 2
        assert "does not exist" in found[4]["metadata"]["error"]
        assert "https:// is not supported" in found[7]["metadata"]["error"]
        report = (here / "runs/train/report.html").read_text()
        assert "가 나.png" in report
        summary = (here / "runs/train/summary.md").read_text()
        assert f"{count} (1 blank, 7 failed, 6 ok), in `train_pseudo_labels.parquet`" in summary

    def test_a_row_without_an_id_gets_none_of_another_row(self, here: Path) -> None:
        draw(here / "a.png")
        write_set(here / "train.parquet", {"image_path": ["a.png"] * 4, "id": [1, 2, None, 4]})
        assert pagefleet("run", "--dataset", "train.parquet", *COLOUR, cwd=here).returncode == 0
        assert [row["id"] for row in rows(here / "runs/train")] == ["1", "2", "row-2", "4"]
        write_set(here / "two.parquet", {"image_path": ["a.png"] * 2})
        planned = pagefleet("run", "--dataset", "two.parquet", "--dry-run", *COLOUR, cwd=here)
        assert "note: 1 row names the image of an earlier row" in planned.stdout

    def test_the_file_has_the_types_that_training_reads(self, here: Path) -> None:
        """Polygons are those of the image as it lies there: the page that an engine sees may be turned and smaller."""
        draw(here / "a.png")
        draw(here / "large.png", size=(5000, 1000))
        sideways = Image.Exif()
        sideways[0x0112] = 6
        image("read", (4200, 2100)).save(here / "sideways.jpg", exif=sideways)
        write_set(here / "train.parquet", {"image_path": ["a.png", "gone.png", "large.png", "sideways.jpg"]})
        assert pagefleet("run", "--dataset", "train.parquet", "--no-report", *COLOUR, cwd=here).returncode == 3
        path = here / "runs/train/train_pseudo_labels.parquet"
        schema = pq.read_schema(path)
        assert schema.names == COLUMNS
        assert schema.equals(labels_schema())
        assert schema.field("polygons").type == pa.list_(pa.list_(pa.list_(pa.float64())))
        assert json.loads(schema.metadata[b"pagefleet"])["dataset"] == path_uri(here / "train.parquet")
        frame = pandas.read_parquet(path)
        assert frame["width"].dtype == frame["height"].dtype == np.int64
        assert list(frame["id"]) == ["0", "1", "2", "3"]  # the row numbers, where there is no such column
        assert list(frame["split"]) == ["train"] * 4
        first = frame.iloc[0]
        assert len(first.polygons) == len(first.texts) == len(first.labels) == len(first.confidences) == 1
        assert [[float(x), float(y)] for x, y in first.polygons[0]] == [[10, 35], [110, 35], [110, 45], [10, 45]]
        assert (list(first.labels), list(first.confidences)) == (["text"], [0.5])
        assert (first.metadata["unit"], first.metadata["model"]) == ("line", "colour-test")
        large, upright = rows(here / "runs/train")[2:]
        assert large["texts"] == ["read 4000x800"]
        assert (large["width"], large["height"], large["polygons"][0][2]) == (5000, 1000, [4987.5, 506.25])
        assert upright["texts"] == ["read 2000x4000"]
        assert (upright["width"], upright["height"], upright["polygons"][0][2]) == (2100, 4200, [2089.5, 2105.25])

    def test_embedded_images_are_read_from_their_row_groups(self, here: Path) -> None:
        draw(here / "other/b.png", size=(131, 80))
        values = [{"bytes": png(size=(140 + number, 80)), "path": f"그림-{number}.png"} for number in range(70)]
        values[5] = {"bytes": None, "path": "b.png"}
        values[6] = {"bytes": None, "path": None}
        values[7] = None  # type: ignore[call-overload]
        values[8] = {"bytes": b"", "path": "empty.png"}
        values[9] = {"bytes": png("raise"), "path": "red.png"}
        type_ = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        write_set(here / "hf.parquet", {"image": values, "id": list(range(70))}, rows_per_group=20, image=type_)
        columns = ("--dataset", "hf.parquet", "--image-column", "image", "--image-root", "other")
        dealt = ("--batch-size", "40", "--workers", "2", "--out", "out")
        done = pagefleet("run", *columns, *dealt, *COLOUR, cwd=here)
        assert done.returncode == 3, done.stderr
        found = rows(here / "out", "hf")
        strange = {5: "ok", 6: "not_found", 7: "not_found", 8: "empty", 9: "engine_error"}
        for number, row in enumerate(found):
            assert (row["metadata"]["code"] or row["status"]) == strange.get(number, "ok"), number
            assert row["id"] == str(number)
            if number not in strange:
                assert row["texts"] == [f"read {140 + number}x80"]
                assert row["image_path"] == row["image_filename"] == f"그림-{number}.png"
        assert found[5]["texts"] == ["read 131x80"]
        assert found[6]["image_path"].startswith("parquet+file:///")
        assert (here / "out/documents/00001/00000069-그림-69.png.md").exists()
        assert "UklGR" in (here / "out/report.html").read_text()  # pictures (RIFF, in base64), read from the rows again

    @pytest.mark.parametrize("rotation", [0, 90, 180, 270])
    def test_a_turned_page_is_turned_back(self, rotation: Any) -> None:
        pixels = np.zeros((30, 50), bool)
        pixels[4:7, 11:20] = True
        upright = np.rot90(pixels, -rotation // 90)
        ys, xs = np.nonzero(upright)
        left, right, top, bottom = int(xs.min()), int(xs.max()) + 1, int(ys.min()), int(ys.max()) + 1
        page = Page(number=1, width=upright.shape[1], height=upright.shape[0], status="ok", rotation=rotation)
        page.scaled_from = (500, 300)
        points = list(to_image([(left, top), (right, top), (right, bottom), (left, bottom)], page))
        assert sorted(points) == [[110, 40], [110, 70], [200, 40], [200, 70]]


class TestRefusals:
    @pytest.mark.parametrize(
        ("columns", "arguments", "message"),
        [
            (
                {"path": ["a.png"], "text": ["a"]},
                (),
                "there is no column image_path: name the one with the images; it has",
            ),
            ({"image_path": [1]}, (), "column image_path is of type int64: neither paths nor images"),
            ({"image_path": pa.array([], pa.string())}, (), "nothing to read: file:///"),
            ({"image_path": ["a.png"], "id": [{"a": 1}]}, (), "column id is of type struct<a: int64>"),
            ({"image_path": ["a.png"]}, ("--pages", "2"), "--pages does not go with --dataset"),
            ({"image_path": ["a.png"]}, ("in",), "INPUT does not go with --dataset"),
            ({"image_path": ["a.png"]}, ("--engine", "none"), "unknown engine 'none'"),
        ],
    )
    def test_what_cannot_be_labelled(
        self, here: Path, columns: dict[str, Any], arguments: tuple[str, ...], message: str
    ) -> None:
        write_set(here / "train.parquet", columns)
        done = invoke("run", "--dataset", "train.parquet", *arguments)
        assert done.exit_code == 2, done.output
        assert message in done.stderr
        assert not (here / "runs").exists()

    def test_what_is_no_parquet_file(self, here: Path) -> None:
        good = write_set(here / "good.parquet", {"image_path": ["a.png"] * 5000}).read_bytes()
        files = {"text": b"id,image_path\n1,a.png\n", "empty": b"", "cut": good[:-100], "head": b"PAR1" + bytes(40)}
        files["footer"] = good[:-60] + bytes(52) + good[-8:]
        for name, data in files.items():
            (here / f"{name}.parquet").write_bytes(data)
            done = invoke("run", "--dataset", f"{name}.parquet")
            assert (done.exit_code, done.stdout) == (2, ""), name
            assert f"{name}.parquet is not a parquet file, or is damaged" in done.stderr, name
        assert "does not exist" in invoke("run", "--dataset", "none.parquet").stderr
        (here / "folder.parquet").mkdir()
        assert invoke("run", "--dataset", "folder.parquet").exit_code == 2

    def test_options_of_a_dataset_want_one(self, here: Path) -> None:
        for option in ("--image-column=a", "--image-root=a", "--batch-size=5", "--accept-licence"):
            done = invoke("run", "in", option)
            assert done.exit_code == 2
            assert "is for a run over a --dataset" in done.stderr
        assert "--resume needs --out" in invoke("run", "in", "--resume").stderr

    def test_an_engine_that_forbids_training_on_its_output(self, here: Path) -> None:
        draw(here / "a.png")
        write_set(here / "train.parquet", {"image_path": ["a.png"]})
        told = "hunyuan must not label data that other models are trained on (Tencent Hunyuan Community License"
        for engine in (
            ("hunyuan",),
            ("openai", "preset=hunyuan"),
            ("vllm", "model=tencent/HunyuanOCR/"),
            ("openai", "model=HunyuanOCR"),
            ("openai", "model=hf.co/someone/HunyuanOCR-GGUF:Q8_0"),
            ("lighton", "model=/models/hunyuanOCR/"),
            ("trocr", "model=hub/models--tencent--HunyuanOCR/snapshots/449e7d4"),
            ("trocr", "model=tencent/HunyuanOCR@449e7d4"),
            ("vllm", "model=a", "command=vllm serve s3://models/HunyuanOCR --port {port}"),
            (COLOUR[1], "fallback=hunyuan-1.0"),
        ):
            options = (f"--engine-option={option}" for option in engine[1:])
            done = invoke("run", "--dataset", "train.parquet", "--engine", engine[0], *options)
            assert done.exit_code == 2
            assert told in done.stderr.replace("hunyuan-1.0", "hunyuan"), engine
            assert "--accept-licence" in done.stderr
        assert check_licence("glm-ocr", {}, accept=False) is None
        assert not (here / "runs").exists()
        accepted = (*COLOUR, "--engine-option", "fallback=hunyuan", "--accept-licence", "--no-report")
        assert invoke("run", "--dataset", "train.parquet", *accepted).exit_code == 0
        recorded = json.loads((here / "runs/train/run.json").read_text())["dataset"]["accepted_licence"]
        assert recorded.startswith("hunyuan: Tencent Hunyuan Community License")
        schema = pq.read_schema(here / "runs/train/train_pseudo_labels.parquet")
        assert json.loads(schema.metadata[b"pagefleet"])["accepted_licence"] == recorded

    def test_forbidden_is_told_before_what_is_missing_here(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(ENGINES, "hunyuan", replace(ENGINES["hunyuan"], requires=("not_installed_here",)))
        done = invoke("run", "--dataset", "train.parquet", "--engine", "hunyuan")
        assert done.exit_code == 2
        assert "hunyuan must not label data" in done.stderr
        done = invoke("run", "--dataset", "train.parquet", "--engine", "hunyuan", "--accept-licence")
        assert "hunyuan needs not_installed_here" in done.stderr

    def test_a_server_whose_only_model_forbids_it(self, here: Path) -> None:
        draw(here / "a.png")
        write_set(here / "train.parquet", {"image_path": ["a.png"]})
        with faulty_service(
            lambda *_: stream(["read"]), lambda: json_reply({"data": [{"id": "tencent/HunyuanOCR"}]})
        ) as service:
            asked = ("--engine", "openai", "--engine-option", f"base_url={service.url}", "--no-report")
            done = invoke("run", "--dataset", "train.parquet", *asked)
            assert done.exit_code == 2
            assert "tencent/HunyuanOCR, which openai would read with, must not label data" in done.stderr
            assert "start a new run with another model" in done.stderr
            assert service.asked == []
            assert not (here / "runs").exists()
            assert invoke("run", "--dataset", "train.parquet", *asked, "--accept-licence").exit_code == 0
            assert len(service.asked) == 1
        recorded = json.loads((here / "runs/train/run.json").read_text())["dataset"]["accepted_licence"]
        assert recorded == "of whichever model reads"

    def test_concurrency_is_for_engines_that_send_requests(self, here: Path) -> None:
        write_set(here / "train.parquet", {"image_path": ["a.png"]})
        done = invoke("run", "--dataset", "train.parquet", "--concurrency", "3")
        assert done.exit_code == 2
        assert "--concurrency is for engines that send requests (openai, vllm, upstage)" in done.stderr

    def test_batches_grow_where_there_would_be_too_many(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(datasets, "MAX_SHARDS", 10)
        path = write_set(here / "train.parquet", {"image_path": [f"{n}.png" for n in range(101)]})
        plan = plan_dataset(open_storage(), DatasetRequest(path_uri(path), batch_size=5), COLOUR[1], {})
        assert (plan.shards, len(plan.tasks)) == (10, 101)
        assert plan.warnings == ["a run has at most 10 batches: they have 11 rows each instead of 5"]
        shards = list(plan.by_shard())
        assert [task.row for tasks in shards for task in tasks] == list(range(101))
        assert list(map(len, shards)) == [11] * 9 + [2]

    def test_columns_whose_statistics_python_has_no_words_for(self, here: Path) -> None:
        path = here / "train.parquet"
        last = pa.array([2**31 - 1], pa.int32()).cast(pa.date32())  # as PostgreSQL's "infinity" is written
        soon = pa.array([1], pa.int64()).cast(pa.timestamp("ns"))
        pq.write_table(pa.table({"image_path": ["a.png"], "until": last, "since": soon}), path)
        with ParquetSet(open_storage(), path_uri(path)) as opened, pytest.raises(OverflowError):
            opened.parquet.metadata.to_dict()
        before = plan_dataset(open_storage(), DatasetRequest(path_uri(path)), COLOUR[1], {})
        pq.write_table(pa.table({"image_path": ["a.png"], "until": last, "sinc3": soon}), path)
        after = plan_dataset(open_storage(), DatasetRequest(path_uri(path)), COLOUR[1], {})
        assert before.dataset
        assert after.dataset
        assert before.dataset.fingerprint != after.dataset.fingerprint

    def test_large_row_groups_of_images_are_told(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(datasets, "LARGE_GROUP", 1000)
        path = write_set(here / "train.parquet", {"image": [random.randbytes(600) for _ in range(2)]})
        plan = plan_dataset(open_storage(), DatasetRequest(path_uri(path), "image"), COLOUR[1], {})
        assert "write the file with smaller ones" in plan.warnings[0]


class TestDuplicates:
    def test_are_found_by_what_they_lead_to(self, here: Path) -> None:
        draw_from = random.Random(3)
        names = [f"{draw_from.randrange(60)}.png" for _ in range(500)]
        path = write_set(
            here / "train.parquet", {"image_path": [f"x/../{n}" if i % 3 else n for i, n in enumerate(names)]}
        )
        plan = plan_dataset(open_storage(), DatasetRequest(path_uri(path), batch_size=50), COLOUR[1], {})
        shards = list(plan.by_shard())
        firsts = sorted(names.index(name) for name in set(names))
        assert [task.row for tasks in shards for task in tasks] == firsts
        assert len(shards) == plan.shards == 10
        assert [] in shards  # of duplicates alone
        assert len({task.key for tasks in shards for task in tasks}) == len(plan.tasks) == plan.documents == len(firsts)

    def test_of_a_later_batch_get_the_reading_of_the_first(self, here: Path) -> None:
        for number in range(3):
            draw(here / f"{number}.png", "raise" if number == 1 else "read", (120 + number, 80))
        names = ["0.png", "1.png", "0.png", "0.png", "1.png", "2.png", "2.png"]
        write_set(here / "train.parquet", {"image_path": names})
        log = here / "log"
        arguments = ("--dataset", "train.parquet", "--batch-size", "4", "--engine-option", f"log={log}", "--no-report")
        done = pagefleet("run", *arguments, "--json", *COLOUR, cwd=here)
        assert done.returncode == 3, done.stderr
        assert json.loads(done.stdout)["files"]["pseudo_labels"].endswith("/train_pseudo_labels.parquet")
        assert sorted(reads(log)) == ["120x80", "121x80", "122x80"]
        found = rows(here / "runs/train")
        assert [row["texts"] for row in found] == [
            *(["read 120x80"], [], ["read 120x80"], ["read 120x80"], [], ["read 122x80"], ["read 122x80"]),
        ]
        assert [row["metadata"]["duplicate_of"] for row in found] == [None, None, 0, 0, 1, None, 5]
        assert [row["metadata"]["code"] for row in found][4] == "engine_error"


class TestParts:
    @pytest.fixture(scope="class")
    @classmethod
    def done(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """The folder of a dataset and its run."""
        folder = tmp_path_factory.mktemp("done")
        for number in range(10):
            draw(folder / f"{number}.png", size=(120 + number, 80))
        names = [f"{number}.png" for number in range(10)]
        write_set(folder / "train.parquet", {"image_path": names, "id": names})
        arguments = ("--dataset", "train.parquet", "--batch-size", "4", "--no-report", "--json")
        ended = pagefleet("run", *arguments, *COLOUR, cwd=folder)
        assert ended.returncode == 0, ended.stderr
        return folder

    @pytest.fixture
    def run(self, done: Path, here: Path) -> Path:
        """A copy of that run, over the same dataset."""
        shutil.copytree(done / "runs/train", here / "run")
        return here / "run"

    def test_that_are_damaged_or_gone_are_done_without(self, run: Path) -> None:
        whole = rows(run)
        parts = sorted(run.glob("labels/*.parquet"))
        assert [pq.read_metadata(part).num_rows for part in parts] == [4, 4, 2]
        good = [part.read_bytes() for part in parts]
        parts[0].write_bytes(good[0][:-30])
        parts[1].write_bytes(b"")
        parts[2].write_bytes(good[1])  # another's
        (run / "train_pseudo_labels.parquet").unlink()
        assert invoke("collect", str(run)).exit_code == 0
        assert rows(run) == whole
        parts[0].unlink()
        parts[1].write_bytes(good[1][:40] + bytes(8) + good[1][48:])
        assert invoke("collect", str(run)).exit_code == 0
        assert rows(run) == whole

    def test_of_an_unfinished_run_are_collected_with_what_is_missing(self, run: Path) -> None:
        (run / "documents/00001/00000005-5.png.json").unlink()
        (run / "labels/00001.parquet").unlink()
        assert invoke("collect", str(run)).exit_code == 4
        found = rows(run)
        assert [row["status"] for row in found] == ["ok"] * 5 + ["unaccounted"] + ["ok"] * 4
        assert found[5]["id"] == "5.png"
        assert not (run / "labels/00001.parquet").exists()

    def test_are_not_believed_after_failures_are_read_again(self, here: Path) -> None:
        draw(here / "a.png")
        write_set(here / "train.parquet", {"image_path": ["a.png", "late.png"]})
        assert pagefleet("run", "--dataset", "train.parquet", "--no-report", *COLOUR, cwd=here).returncode == 3
        draw(here / "late.png", size=(90, 90))
        assert pagefleet("resume", "runs/train", "--retry-failed", "--no-report", cwd=here).returncode == 0
        assert [row["texts"] for row in rows(here / "runs/train")] == [["read 120x80"], ["read 90x90"]]
        assert pq.read_table(here / "runs/train/labels/00000.parquet")["status"].to_pylist() == ["ok", "ok"]

    def test_a_dataset_that_has_changed_is_not_joined(self, run: Path, done: Path, here: Path) -> None:
        names = [f"{number}.png" for number in reversed(range(10))]
        write_set(here / "train.parquet", {"image_path": names, "id": names})
        before = rows(run)
        (run / "run.json").write_text((run / "run.json").read_text().replace(path_uri(done), path_uri(here)))
        collected = invoke("collect", str(run))
        assert collected.exit_code == 1
        assert "train.parquet has changed since the run was planned" in collected.stderr
        assert rows(run) == before
        (here / "train.parquet").unlink()
        (run / "summary.md").unlink()
        assert "the dataset of the run cannot be read any more" in invoke("collect", str(run)).stderr
        assert (run / "summary.md").exists()

    def test_resume_goes_on_with_the_same_alone(self, done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(done)
        again = invoke("run", "--dataset", "train.parquet", *COLOUR)
        assert again.exit_code == 2
        assert "already holds a run" in again.stderr
        again = invoke("run", "--dataset", "train.parquet", "--resume")
        assert again.exit_code == 2
        assert "not column image_path of train.parquet with rapidocr" in again.stderr
        again = invoke("run", "--dataset", "train.parquet", "--resume", "--no-report", "--json", *COLOUR)
        assert again.exit_code == 0, again.output
        assert json.loads(again.stdout)["documents"]["ok"] == 10


class TestReading:
    def test_rows_come_in_any_order(self, here: Path) -> None:
        path = write_set(here / "a.parquet", {"image": [b"%d" % n for n in range(300)]}, rows_per_group=70)
        images = RowImages(open_storage())
        order = list(range(300))
        random.Random(5).shuffle(order)
        for row in [*range(0, 300, 7), *order[:60], 299, 0]:
            fetched = images.fetch(row_uri(path_uri(path), "image", row, path_uri(here)), here)
            assert fetched.path.read_bytes() == b"%d" % row
            assert fetched.temporary
        with pytest.raises(DocumentError, match=r"row 300 of .* does not exist"):
            images.fetch(row_uri(path_uri(path), "image", 300, ""), here)
        with pytest.raises(DocumentError, match="does not say which row"):
            images.fetch(f"parquet+{path_uri(path)}", here)

    def test_a_damaged_row_group_costs_its_rows(self, here: Path) -> None:
        path = write_set(here / "a.parquet", {"image": [random.randbytes(3000) for _ in range(40)]}, rows_per_group=20)
        data = bytearray(path.read_bytes())
        data[4:200] = bytes(196)
        path.write_bytes(data)
        images = RowImages(open_storage())
        with pytest.raises(DocumentError, match=r"row 3 of .* cannot be read"):
            images.fetch(row_uri(path_uri(path), "image", 3, ""), here)
        assert images.fetch(row_uri(path_uri(path), "image", 30, ""), here).size == 3000

    def test_rows_after_one_that_storage_would_not_give_are_read(
        self, here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write_set(here / "a.parquet", {"image": [random.randbytes(3000) for _ in range(40)]}, rows_per_group=20)
        storage = open_storage()
        images = RowImages(storage)
        local, denied = storage.open(path_uri(path)), False

        def read(start: int, size: int) -> bytes:
            if denied:
                raise AccessDenied("s3://inputs/a.parquet")
            local.seek(start)
            return local.read(size)

        monkeypatch.setattr(storage, "open", lambda uri: _Pieces(read, path.stat().st_size))
        address = partial(row_uri, "s3://inputs/a.parquet", "image", root="")
        images.fetch(address(0), here)
        denied = True
        with pytest.raises(DocumentError, match=r"access to s3://inputs/a.parquet is denied"):
            images.fetch(address(30), here)
        denied = False
        assert images.fetch(address(31), here).size == 3000
        local.close()

    def test_what_is_no_parquet_file_any_more_ends_the_run(self, here: Path) -> None:
        (here / "a.parquet").write_bytes(b"PAR1" + bytes(40))
        with pytest.raises(BadRequest, match="is not a parquet file, or is damaged"):  # and nothing besides
            RowImages(open_storage()).fetch(row_uri(path_uri(here / "a.parquet"), "image", 3, ""), here)

    def test_of_another_dataset_than_was_planned_nothing_is_read(self, here: Path) -> None:
        path = write_set(here / "a.parquet", {"image": [png(), png()]})
        storage, paths = open_storage(), RunPaths(path_uri(here / "run"))
        plan = plan_dataset(storage, DatasetRequest(path_uri(path), "image"), "rapidocr", {})
        run = describe_run(plan, "one", COLOUR[1], Options(engine_options={"log": str(here / "log")}), {})
        write_plan(storage, paths, plan, run)
        whole = path.read_bytes()
        settings, drain = Settings(run_uri=paths.base), Drain(1.0)
        write_set(path, {"image": [png("raise"), png()]})
        with pytest.raises(BadRequest, match=r"a.parquet has changed since the run was planned: put the old one back"):
            read_shard(settings, storage, drain)
        path.unlink()
        with pytest.raises(BadRequest, match="the dataset of the run cannot be read any more"):
            read_shard(settings, storage, drain)
        assert not (here / "log").exists()
        path.write_bytes(whole)
        assert read_shard(settings, storage, drain) is ExitCode.OK
        assert len(reads(here / "log")) == 2

    def test_of_an_object_in_s3_only_pieces_are_downloaded(
        self, s3: Any, here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        values = [random.randbytes(100_000) for _ in range(40)]
        path = write_set(here / "a.parquet", {"image": values}, rows_per_group=4)
        s3.upload_file(str(path), "inputs", "한국어/a#b.parquet")
        storage = open_storage()
        images = RowImages(storage)
        read: list[int] = []
        download = _Pieces.readinto
        monkeypatch.setattr(
            _Pieces, "readinto", lambda self, buffer: read.append(len(buffer)) or download(self, buffer)
        )
        fetched = images.fetch(row_uri("s3://inputs/한국어/a#b.parquet", "image", 33, "s3://inputs"), here)
        assert fetched.path.read_bytes() == values[33]
        assert sum(read) < path.stat().st_size / 2
        before = sum(read)
        images.fetch(row_uri("s3://inputs/한국어/a#b.parquet", "image", 34, "s3://inputs"), here)
        assert sum(read) == before  # what was read with it is kept
        with storage.open("s3://inputs/한국어/a#b.parquet") as file:
            assert file.seek(-4, os.SEEK_END) == path.stat().st_size - 4
            assert file.read() == b"PAR1"
            file.seek(1)
            assert file.read(3) == b"AR1"
            s3.put_object(Bucket="inputs", Key="한국어/a#b.parquet", Body=b"PAR1" * 10)
            file.seek(0)
            with pytest.raises(BadRequest, match=r"a#b\.parquet has been replaced while it was read: put the old one"):
                file.read(4)
        with pytest.raises(BadRequest, match="has been replaced"):  # through the parquet reader
            images.fetch(row_uri("s3://inputs/한국어/a#b.parquet", "image", 3, "s3://inputs"), here)
        with pytest.raises(DocumentError, match="does not exist"):
            storage.open("s3://inputs/none.parquet")


class Upstage:
    """Upstage's Document OCR on loopback, as `tests.worker.test_engine_upstage` describes it: a page is known by its
    width. After `limit` requests nobody listens any more; answers to those after the 37th wait for `go_on`.

    Several may have one `port`, which is nobody else's as long as one of them is there: they are opened in turn.
    """

    def __init__(self, limit: int | None = None, port: int = 0) -> None:
        self.asked: list[int] = []  # widths of the pages, in the order they came
        self.reached = threading.Event()  # 37 pages were asked for
        self.go_on = threading.Event()
        self.go_on.set()
        self._limit = limit
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._listener.bind(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]

    def open(self) -> None:
        self._listener.listen(100)
        threading.Thread(target=self._serve, daemon=True).start()

    def options(self) -> list[str]:
        options = (f"base_url=http://127.0.0.1:{self.port}/v1", "rate=10000", "attempts=10000", "page_deadline=540")
        return ["--engine", "upstage", *(f"--engine-option={option}" for option in options)]

    def close(self) -> None:
        with contextlib.suppress(OSError):  # it never listened
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        upstage = self
        counting = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                body = self.rfile.read(int(self.headers["Content-Length"]))
                _, _, data = Asked("POST", self.path, headers, body).form["document"]
                width, height = Image.open(io.BytesIO(data)).size
                with counting:
                    upstage.asked.append(width)
                    number = len(upstage.asked)
                if number == 37:
                    upstage.reached.set()
                if number > 37:
                    upstage.go_on.wait()
                said = json.dumps(upstage_answer(width, height)).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *_: object) -> None:
                pass

        for _ in range(self._limit) if self._limit else itertools.count():
            try:
                connection, address = self._listener.accept()
            except OSError:
                return

            def answer(connection: socket.socket = connection, address: Any = address) -> None:
                with connection:
                    Handler(connection, address, None)  # type: ignore[arg-type]

            threading.Thread(target=answer, daemon=True).start()
        self._listener.close()


class TestUpstage:
    """A page that was answered is paid for, and never asked for again."""

    @pytest.fixture
    def hundred(self, here: Path) -> Path:
        for number in range(100):
            draw(here / f"images/{number}.png", size=(300 + number, 60))
        write_set(here / "train.parquet", {"image_path": [f"images/{number}.png" for number in range(100)]})
        return here

    def start(self, upstage: Upstage, batch_size: int = 34) -> subprocess.Popen[str]:
        arguments = ("--dataset", "train.parquet", "--batch-size", str(batch_size), "--concurrency", "3", "--resume")
        options = ("--workers", "1", "--no-report", *upstage.options())
        command = [sys.executable, "-m", "jobs.cli", "run", *arguments, *options]
        environment = worker_environment(UPSTAGE_API_KEY="up_test", TMPDIR=os.getcwd())  # SIGKILL leaves downloads
        return subprocess.Popen(command, env=environment, text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)

    def check(self, folder: Path, asked: list[int]) -> None:
        found = rows(folder / "runs/train")
        assert [row["status"] for row in found] == ["ok"] * 100
        assert [row["width"] for row in found] == list(range(300, 400))
        assert {tuple(row["texts"]) for row in found} == {("Print", "the", "words", "hello,")}
        assert {tuple(row["confidences"]) for row in found} == {(0.9, 0.8, 0.7, 0.99)}
        assert found[37]["polygons"][1][2] == [110, 30]
        assert found[37]["metadata"]["unit"] == "word"
        assert json.loads(found[37]["metadata"]["details"])["billed_pages"] == 1
        assert sorted(asked) == list(range(300, 400))  # each once

    def test_killed_at_row_37_of_100_and_resumed(self, hundred: Path) -> None:
        upstage = Upstage(limit=37)
        again = Upstage(port=upstage.port)
        upstage.open()
        results = lambda: len(list((hundred / "runs/train/documents").rglob("*.json")))  # noqa: E731
        with self.start(upstage) as run:
            wait_for(lambda: results() == 37, lambda: (results(), upstage.asked), run)
            tasks = Path(f"/proc/{run.pid}/task").glob("*/children")
            for pid in (run.pid, *(int(pid) for task in tasks for pid in task.read_text().split())):
                os.kill(pid, signal.SIGKILL)
        before = list(upstage.asked)
        assert [part.name for part in (hundred / "runs/train/labels").iterdir()] == ["00000.parquet"]
        again.open()
        try:
            done = ended(self.start(again))
        finally:
            again.close()
        assert done.returncode == 0, done.stderr
        self.check(hundred, before + again.asked)

    def test_asked_to_stop_at_row_37_of_100_and_resumed(self, hundred: Path) -> None:
        upstage = Upstage()
        upstage.open()
        upstage.go_on.clear()
        try:
            with self.start(upstage, batch_size=100) as run:
                wait_for(upstage.reached.is_set, lambda: upstage.asked, run)
                run.terminate()
                assert run.stderr is not None
                assert any("stopping" in line for line in run.stderr)
                upstage.go_on.set()
                stopped = ended(run)
            assert stopped.returncode == 4, stopped.stderr
            assert "resume" in stopped.stderr
            assert 37 <= len(upstage.asked) < 100
            done = ended(self.start(upstage, batch_size=100))
            assert done.returncode == 0, done.stderr
        finally:
            upstage.go_on.set()
            upstage.close()
        self.check(hundred, upstage.asked)


class TestOnBatch:
    def test_a_dataset_in_s3_is_labelled_by_an_array_whose_child_is_killed(
        self, deployed: Deployed, here: Path
    ) -> None:
        deployed.upload(here, {f"영수증/{number}.png": "slow" if number == 4 else "read" for number in range(8)})
        names = [f"../영수증/{number}.png" for number in range(4)] + [
            f"s3://inputs/영수증/{n}.png" for n in range(4, 8)
        ]
        write_set(here / "a.parquet", {"image_path": [*names, "gone.png", "/local.png"]})
        deployed.client("s3").upload_file(str(here / "a.parquet"), "inputs", "sets/a.parquet")
        submit = ("submit", "--dataset", "sets/a.parquet", "--batch-size", "7", "--run-id", "one", "--json", *COLOUR)
        planned = json.loads(invoke(*submit, "--dry-run").stdout)
        assert (planned["documents"], planned["shards"], planned["estimate"]["pages"]) == (10, 2, 10)
        assert invoke(*submit, "--resume").exit_code == 0  # there is nothing yet to go on with
        assert deployed.agent.size(deployed.job("one")) == 2
        deployed.agent.faults = {(0, 1): [signal.SIGKILL]}
        deployed.agent.run(deployed.job("one"))
        again = invoke(*submit, "--resume")
        assert (again.exit_code, json.loads(again.stdout)["job"]) == (0, None)  # nothing is left
        assert "the run at s3://outputs/runs/one reads" in invoke(*submit, "--resume", "--engine", "rapidocr").stderr
        fetched = invoke("fetch", "one", "--out", "out", "--no-documents", "--json")
        assert fetched.exit_code == 3, fetched.output
        found = rows(here / "out", "a")
        assert [row["status"] for row in found] == ["ok"] * 8 + ["failed"] * 2
        assert [row["image_path"] for row in found][:8] == names
        assert found[2]["metadata"]["source"] == "s3://inputs/영수증/2.png"
        assert not (here / "out/labels").exists()
        assert not (here / "out/documents").exists()
        invoke("fetch", "one", "--out", "out")
        assert len(list((here / "out/labels").iterdir())) == 2
        assert rows(here / "out", "a") == found

    def test_upstage_reads_its_key_from_the_stacks_own_secret(self, deployed: Deployed, here: Path) -> None:
        arn = "arn:aws:secretsmanager:us-east-1:123456789012:secret:pagefleet-dev-upstage-AbCdEf"
        deployed.description["upstage_secret"] = arn
        deployed.publish()
        write_set(here / "a.parquet", {"image_path": ["a.png"]})
        deployed.client("s3").upload_file(str(here / "a.parquet"), "inputs", "a.parquet")
        options = ("--engine", "upstage", "--concurrency", "2", "--run-id", "one")
        assert invoke("submit", "--dataset", "a.parquet", *options).exit_code == 0
        run = json.loads(deployed.client("s3").get_object(Bucket="outputs", Key="runs/one/run.json")["Body"].read())
        assert run["options"]["engine_options"] == {"key_secret": arn, "concurrency": "2", "unit": "word"}

    def test_images_that_are_not_in_s3_are_refused(self, deployed: Deployed, here: Path) -> None:
        write_set(here / "a.parquet", {"image_path": ["/data/a.png", None]})
        done = invoke("submit", "--dataset", str(path_uri(here / "a.parquet")), *COLOUR)
        assert (done.exit_code, "is not in S3: a run on AWS reads s3:// keys" in done.stderr) == (2, True)
        deployed.client("s3").upload_file(str(here / "a.parquet"), "inputs", "a.parquet")
        done = invoke("submit", "--dataset", "a.parquet", *COLOUR)
        assert done.exit_code == 2
        assert "no row of s3://inputs/a.parquet names an image in S3" in done.stderr
