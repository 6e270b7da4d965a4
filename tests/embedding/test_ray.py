"""The Ray engine: the parts of the local one, also when a node dies; and addresses where no Ray is."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from embedding.stream_samples import everything, labelled_tar, write_parquet
from samples import shapes

from nearfar.embedding import embed_stream, ray_engine
from nearfar.errors import InputError


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_engine, "_PATIENCE", 1.0)
    monkeypatch.setattr(ray_engine, "_PROBE_SECONDS", 1.0)


def test_where_nothing_listens(run: Path, tmp_path: Path, impatient: None) -> None:
    data = labelled_tar(tmp_path / "x.tar", shapes(20))
    with pytest.raises(InputError) as caught:
        embed_stream(run, data, out=tmp_path / "out", ray="127.0.0.1:9")
    said = str(caught.value)
    assert said.startswith("no Ray cluster answers at '127.0.0.1:9' (tried for 1 s: Connection refused); start one with")
    assert "\n" not in said
    for wrong in ("nowhere", "127.0.0.1:0", "ray://127.0.0.1:10001", ":6379", "host:port"):
        with pytest.raises(InputError, match="expected auto, local or host:port"):
            embed_stream(run, data, out=tmp_path / "out", ray=wrong)
    with pytest.raises(InputError, match="images in memory cannot go to a cluster"):
        embed_stream(run, shapes(20), out=tmp_path / "other", ray="auto")
    assert embed_stream(run, data, out=tmp_path / "out")["images"] == 20  # without --ray it goes on here


def test_where_something_else_listens(impatient: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(InputError, match=f"something answers at '{address}', but within 1 s it let nobody in"):
            ray_engine._check_answers(address)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_cluster_that_loses_a_node_embeds_every_row_once(run: Path, tmp_path: Path, kind: str) -> None:
    images, data = shapes(800), tmp_path / "data"
    if kind == "tar":
        for number in range(16):
            labelled_tar(data / f"{number:02d}.tar", images.subset(np.arange(50) + 50 * number))
    else:
        write_parquet(data / "0.parquet", images, group=50)
    embed_stream(run, data, out=tmp_path / "here", rows=5)
    program = Path(__file__).with_name("cluster_program.py")
    source = str(Path(ray_engine.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, str(program), str(run), str(data), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"},
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.strip().splitlines()[-1])
    assert said["images"] == said["computed"] == 800
    assert 0 < said["lost_at"] < said["parts"]
    here, there = everything(tmp_path / "here"), everything(tmp_path / "out")
    np.testing.assert_allclose(there[0], here[0], atol=1e-6)
    assert there[1:] == here[1:]
    names = [sorted(path.name for path in (tmp_path / one).iterdir()) for one in ("here", "out")]
    assert names[0] == names[1]


@pytest.mark.slow
def test_a_cluster_started_for_it_gives_one_line_for_a_bad_image(run: Path, tmp_path: Path) -> None:
    images = shapes(60)
    data = write_parquet(tmp_path / "x.parquet", images, group=20)
    program = (
        "import sys; from nearfar.cli import main; "
        f"main(['embed', {str(run)!r}, {str(data)!r}, '--out', {str(tmp_path / 'out')!r}, '--ray', 'local', *sys.argv[1:]])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(ray_engine.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, "--json"], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["images"] == 60
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"no image")
    program = program.replace(str(data), str(tmp_path / "bad")).replace(str(tmp_path / "out"), str(tmp_path / "out2"))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 2
    assert "x.png: not an image in a known format" in done.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_shard_that_kills_its_workers_is_given_up_in_one_line(run: Path, tmp_path: Path) -> None:
    images, data = shapes(60), tmp_path / "data"
    for number, name in enumerate(["a.tar", "deadly.tar", "z.tar"]):
        labelled_tar(data / name, images.subset(np.arange(20) + 20 * number))
    deaths = tmp_path / "deaths"
    (tmp_path / "sitecustomize.py").write_text(  # in every process of the cluster, but only workers read shards
        "import os, sys\n"
        "def hear(event, arguments):\n"
        "    if event == 'open' and str(arguments[0]).endswith('deadly.tar') and os.environ.get('RAY_JOB_ID'):\n"
        f"        os.write(os.open({str(deaths)!r}, os.O_CREAT | os.O_APPEND | os.O_WRONLY), b'x')\n"
        "        os._exit(139)\n"
        "sys.addaudithook(hear)\n"
    )
    out = tmp_path / "out"
    program = (
        f"from nearfar.cli import main; main(['embed', {str(run)!r}, {str(data)!r}, '--out', {str(out)!r}, '--ray', 'local'])"
    )
    places = os.pathsep.join([str(tmp_path), str(Path(ray_engine.__file__).parents[2])])
    environment = {**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 2, done.stderr[-3000:]
    assert "died 4 times over one shard" in done.stderr.strip().splitlines()[-1]
    assert deaths.read_text() == "x" * 4
    assert embed_stream(run, data, out=out)["images"] == 60  # where nothing dies, the same command goes on
