"""The server on a real socket, the command that starts it, and the frame of a notebook."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from page_cases import NAMES, fresh, save_model

from tangentune import TangentClassifier
from tangentune.cli.app import main
from tangentune.errors import InputError, MissingExtraError, StoreError
from tangentune.workbench import server
from tangentune.workbench.edits import Edit
from tangentune.workbench.server import Serving, prepare

pytestmark = pytest.mark.usefixtures("loadable")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("kept"))


def test_a_server_answers_its_own_address_only(kept: Path, tmp_path: Path) -> None:
    serving = prepare(fresh(kept, tmp_path))
    stop = serving.start()
    try:
        place = urlsplit(serving.address)
        assert place.hostname == "127.0.0.1"
        assert serving.listener.getsockname()[0] == "127.0.0.1"
        with httpx.Client(base_url=f"http://{place.netloc}", trust_env=False) as client:
            assert client.get("/").status_code == 401
            assert client.get(f"/?{place.query}").status_code == 200
            assert "<h1>" in client.get("/").text
            assert "server" not in client.get("/").headers
        with pytest.raises(InputError, match="it is taken; --port 0 finds a free one"):
            prepare(kept, port=int(place.port or 0))
        with pytest.raises(StoreError, match="another workbench"):
            prepare(tmp_path / "m")
    finally:
        stop()
    prepare(tmp_path / "m").close()  # it was let go


def test_other_machines_are_let_in_on_purpose_only(kept: Path, tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "localhost", "192.0.2.1"):
        with pytest.raises(InputError, match="--i-know-what-this-means"):
            prepare(kept, host=host)
    with pytest.raises(InputError, match="cannot serve on 192.0.2.1, port 0"):
        prepare(kept, host="192.0.2.1", exposed=True)
    serving = prepare(fresh(kept, tmp_path), host="0.0.0.0", exposed=True)
    serving.close()
    assert socket.gethostname().lower() in serving.address
    assert "?" not in serving.address
    assert len(urlsplit(serving.address).path) > 40


def test_the_command_prints_the_address(
    kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Serving, "run", Serving.close)
    seen: list[str] = []
    monkeypatch.setattr(server, "show", lambda address: seen.append(address))
    model = fresh(kept, tmp_path)
    assert main(["serve", str(model), "-q", "--open"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("http://127.0.0.1:")
    assert seen == [out.strip()]
    assert "no browser" in err
    assert main(["serve", str(model)]) == 0
    assert "Ctrl-C ends it" in capsys.readouterr().out
    assert main(["serve", str(model), "--host", "0.0.0.0"]) == 2
    assert "without encryption" in capsys.readouterr().err
    assert main(["serve", str(tmp_path)]) == 2
    assert "no config.json" in capsys.readouterr().err


def test_an_interrupt_is_its_usual_end(
    kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Serving) -> None:
        self.desk.session.take(Edit("forget", (3,)))
        self.close()
        raise KeyboardInterrupt

    monkeypatch.setattr(Serving, "run", interrupted)
    assert main(["serve", str(fresh(kept, tmp_path))]) == 0
    assert "1 edit not saved; the next start" in capsys.readouterr().err


def test_without_its_packages_the_command_that_brings_them_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "tangentune.workbench.server")
    with pytest.raises(MissingExtraError, match=r'pip install "tangentune\[serve\]"'):
        import tangentune.workbench.server  # noqa: F401


def test_a_notebook_shows_the_page_of_the_model_at_hand(kept: Path, tmp_path: Path) -> None:
    model = TangentClassifier.from_pretrained(fresh(kept, tmp_path))
    frame = model.workbench(height=300)
    try:
        place = urlsplit(frame.address)
        shown = frame._repr_html_()
        assert f'src="{frame.address}"' in shown
        assert 'height="300"' in shown
        with httpx.Client(base_url=f"http://{place.netloc}", trust_env=False) as client:
            assert client.get("/").status_code == 401
            page = client.get(place.path)
            assert "frame-ancestors http://localhost:* http://127.0.0.1:*" in page.headers["content-security-policy"]
            token = page.text.split('"X-Workbench": "')[1].split('"')[0]
            headers = {"Origin": f"http://{place.netloc}", "X-Workbench": token}
            answer = client.post(
                f"{place.path}edit", data={"version": 0, "kind": "forget", "numbers": 3}, headers=headers
            )
            assert answer.status_code == 200
        assert len(model.ids_) == len(NAMES) - 1, "the model at hand is the one that is edited"
    finally:
        frame.close()
    with pytest.raises(InputError, match="save_pretrained"):
        model.workbench()  # it was edited and not saved
    model.save_pretrained(tmp_path / "n")
    model.workbench().close()
