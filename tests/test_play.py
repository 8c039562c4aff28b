"""xnet play: the sheet and the classifier by themselves, then the pages in a real browser."""

import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import require_tool
from typer.testing import CliRunner

import xnet
from xnet import datasets, plotting, weights
from xnet.tools import cli
from xnet.tools.play.classifier import GRID, REACH, Classifier, Settings
from xnet.tools.play.points import PROBLEMS
from xnet.tools.play.sheet import SIDE, Sheet, answer

BROWSER = "XNET_REQUIRE_BROWSER"
NO_PAGE = "there is no page to play with: pip install nicegui playwright, and a chromium"


@pytest.fixture(scope="module")
def reader():
    """A network that reads the digits."""
    return plotting.Material(dataset="digits").network


# -- the sheet

ELLIPSE = [
    (140 + 60 * math.cos(k / 20 * math.pi), 140 + 95 * math.sin(k / 20 * math.pi))
    for k in range(41)
]
STROKES = {
    0: [ELLIPSE],
    1: [[(110, 75), (145, 40), (145, 240)]],
    7: [[(80, 50), (200, 50), (120, 240)]],
}


def drawn(strokes):
    sheet = Sheet()
    for stroke in strokes:
        sheet.begin(*stroke[0])
        for point in stroke[1:]:
            sheet.draw(*point)
    return sheet


@pytest.mark.parametrize("digit", STROKES)
def test_a_drawn_digit_is_recognised(reader, digit):
    found = answer(reader, drawn(STROKES[digit]))
    assert found.digit == digit
    assert found.probabilities.sum() == pytest.approx(1)


def test_the_answer_shows_what_the_network_sees_and_what_its_layers_say(reader):
    found = answer(reader, drawn(STROKES[0]))
    assert [name for name, _ in found.steps] == [
        "drawn",
        "cut to the ink",
        "scaled to 8×8, centred",
    ]
    (_, whole), (_, cut), (_, seen) = found.steps
    assert whole.shape == (SIDE, SIDE)
    assert cut.shape == pytest.approx((222, 152), abs=2)  # the strokes, and the pen's width
    assert np.allclose(reader.predict(seen.reshape(64)), found.probabilities)
    names, values = zip(*found.hidden, strict=True)
    assert names == ("1: Affine(64, 50)", "2: ReLU()")
    assert np.allclose(values[0], seen.reshape(64) @ reader.params["W1"] + reader.params["b1"])
    assert (values[1] == np.maximum(values[0], 0)).all()


def test_the_pen_has_a_width_and_stays_on_the_sheet():
    sheet = drawn([[(140, 140)]])
    assert 770 < sheet.ink.sum() < 850  # a dot, of pi 16 squared
    sheet = drawn([[(-50, 20), (500, 20)]])
    assert sheet.strokes == [[(0, 20), (SIDE - 1, 20)]]
    assert (sheet.ink[20] == 1).all()
    assert sheet.ink[40:].max() == 0


def test_strokes_are_taken_back():
    sheet = drawn(STROKES[7] + STROKES[1])
    sheet.undo()
    assert sheet.path == "M80 50 L200 50 L120 240"
    sheet.clear()
    assert sheet.path == ""
    sheet.draw(1, 1)  # the pen is up
    assert sheet.strokes == []


def test_a_sheet_is_full_some_time():
    sheet = drawn([[(7 * k % SIDE, 50) for k in range(20_000)]])
    sheet.begin(5, 5)
    assert [len(stroke) for stroke in sheet.strokes] == [2_000]


def test_the_pen_draws_when_it_has_moved():
    assert drawn([[(50 + k / 10, 50) for k in range(100)]]).strokes == [
        [(50 + k, 50) for k in (0, 2, 4, 6, 8)]
    ]


def test_nothing_is_made_of_an_empty_sheet(reader):
    assert answer(reader, Sheet()) is None


# -- the classifier


@pytest.mark.parametrize("problem", PROBLEMS)
def test_each_problem_can_be_learnt_and_no_line_parts_it(problem):
    x, t = PROBLEMS[problem]()
    assert abs(x).max() < REACH
    assert np.bincount(t).min() > 80
    one = Classifier(Settings(problem=problem, width=1, hidden_layers=1))
    assert one.steps == 0
    one.advance(seconds=60, steps=300)
    assert one.accuracy < 0.95
    many = Classifier(Settings(problem=problem, width=16))
    many.advance(seconds=60, steps=900)
    assert (many.steps, many.run.history.stopped) == (900, "stopped")
    assert many.accuracy > 0.97


def test_the_plane_is_what_the_network_says_of_it():
    found = Classifier(Settings(problem="circles"))
    found.advance(seconds=60, steps=200)
    plane = found.plane()
    assert plane.shape == (GRID, GRID)
    assert plane[GRID // 2, GRID // 2] < 0.5 < plane[0, 0]
    top_left = [-REACH + REACH / GRID, REACH - REACH / GRID]
    assert plane[0, 0] == pytest.approx(found.network.predict(top_left)[1])


def test_both_gradients_take_the_same_way():
    by_algebra, by_losses = (Classifier(Settings(gradient=g)) for g in ("backprop", "numerical"))
    for found in (by_algebra, by_losses):
        found.advance(seconds=60, steps=20)
    assert np.allclose(by_algebra.plane(), by_losses.plane(), atol=1e-5)


def test_a_learning_rate_too_large_ends_in_no_number():
    found = Classifier(Settings(optimizer="sgd", activation="ReLU", learning_rate=1e200))
    found.advance(seconds=60, steps=50)
    assert found.diverged
    found.advance(seconds=60, steps=50)  # and it stays there
    assert found.steps < 50


def test_steps_of_two_threads_are_taken_in_turn():
    found = Classifier(Settings())
    threads = [threading.Thread(target=found.advance, args=(60, 20)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found.steps == 80


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"learning_rate": 0.0}, "the learning rate is 0.0"),
        ({"learning_rate": math.nan}, "the learning rate is nan"),
        ({"width": 0}, "the width is 0"),
        ({"hidden_layers": 4}, "there are 4 hidden layers"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        Settings(**wrong)


# -- in a browser


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium")
    require_tool(chromium, NO_PAGE, BROWSER)
    playwright = pytest.importorskip("playwright.sync_api")
    pytest.importorskip("nicegui", reason=NO_PAGE)
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def address(browser, tmp_path_factory):
    """Of the pages, served by the command with a network of one's own."""
    (x, t), _ = datasets.load_digits()
    net = xnet.TwoLayerNet(64, 20, 10, "he", "tanh", dtype="float32")
    xnet.train(net, x, t, epochs=30, progress=False)
    file = tmp_path_factory.mktemp("networks") / "mine.safetensors"
    weights.save(net, file)
    command = [sys.executable, "-u", "-m", "xnet_command", "play", "--no-browser", str(file)]
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}  # NiceGUI looks
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=kept
    ) as served:
        said = served.stdout.readline()
        yield re.match(r"http://127\.0\.0\.1:\d+", said)[0]
        served.send_signal(signal.SIGINT)
        rest = served.communicate(timeout=20)[0]
    assert "Traceback" not in rest, rest


@pytest.fixture
def page(browser, address):
    """A tab that notes what it asks for and what goes wrong."""
    context = browser.new_context(viewport={"width": 1000, "height": 900})
    tab = context.new_page()
    asked, wrong = [], []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    opened(tab, address)
    yield tab
    context.close()
    assert wrong == []
    own = (address, address.replace("http", "ws"), "data:", "blob:")
    assert [url for url in asked if not url.startswith(own)] == []


def opened(tab, url):
    """Open a page, as soon as it is being served."""
    for _ in range(100):
        try:
            tab.goto(url)
            break
        except Exception as error:
            if "CONNECTION_REFUSED" not in str(error):
                raise
            tab.wait_for_timeout(200)
    tab.get_by_role("heading", level=1).wait_for()
    tab.wait_for_timeout(300)  # until its socket is there


def draw(tab, strokes):
    """By the mouse."""
    box = tab.get_by_role("application").bounding_box()
    for stroke in strokes:
        for k, (x, y) in enumerate(stroke):
            tab.mouse.move(box["x"] + 2 + x, box["y"] + 2 + y, steps=5)
            if k == 0:
                tab.mouse.down()
        tab.mouse.up()


def said(tab, pattern, timeout=15_000):
    """What the page announces, once it is that."""
    status = tab.get_by_role("status").filter(has_text=re.compile(pattern))
    status.wait_for(timeout=timeout)
    return status.inner_text()


def choose(tab, label, option):
    """From a list."""
    tab.get_by_label(label).click()
    tab.get_by_role("option", name=option, exact=True).click()


@pytest.mark.parametrize("digit", STROKES)
def test_a_digit_drawn_by_the_mouse_is_recognised(page, digit):
    draw(page, STROKES[digit])
    said(page, f"It is a {digit}")
    page.wait_for_timeout(500)  # until what was drawn last has its answer, too
    rows = page.get_by_role("table", name="Probability of each digit").get_by_role("row")
    shares = [float(row.split()[1]) for row in rows.all_inner_texts()]
    assert max(shares) == shares[digit] > 30
    assert sum(shares) == pytest.approx(100, abs=0.6)
    pictures = page.locator("main img.pixels")
    described = [pictures.nth(k).get_attribute("alt") for k in range(pictures.count())]
    assert len(described) == 5
    assert all(described)
    page.get_by_role("button", name="Clear").click()
    said(page, "Nothing is drawn")


@pytest.mark.slow
def test_another_network_and_another_backend_answer(page):
    draw(page, STROKES[0])
    said(page, r"It is a 0, by .* \(numpy\)")
    choose(page, "Network", "mine.safetensors")
    page.get_by_text("1: Affine(64, 20)").first.wait_for()
    choose(page, "Backend", "numba")
    said(page, r"It is a 0, by .* \(numba\)", timeout=60_000)


def test_a_digit_is_drawn_by_the_keyboard_alone(page):
    while page.evaluate("document.activeElement.getAttribute('role')") != "application":
        page.keyboard.press("Tab")
    page.keyboard.press(" ")
    for key in ["ArrowDown"] * 18:
        page.keyboard.press(key)
    page.keyboard.press(" ")
    said(page, "It is a 1")


@pytest.mark.slow
def test_tabs_do_not_disturb_each_other(page, browser, address):
    with browser.new_context() as other:
        second = other.new_page()
        opened(second, address)
        draw(page, STROKES[0])
        draw(second, STROKES[7])
        said(second, "It is a 7")
        said(page, "It is a 0")


def test_training_is_started_and_stopped_and_the_boundary_moves(page, address):
    opened(page, f"{address}/train")
    assert said(page, "Step 0").endswith("(numpy).")
    plane = page.get_by_role("img").locator("image").first
    before = plane.get_attribute("href")
    page.get_by_role("button", name="Start").click()
    said(page, r"Step [1-9]\d+")
    page.get_by_role("button", name="Stop").click()
    page.wait_for_timeout(600)
    now = said(page, "Step")
    assert plane.get_attribute("href") != before
    page.wait_for_timeout(800)
    assert said(page, "Step") == now
    page.get_by_role("button", name="One step").click()
    said(page, f"Step {int(re.findall('[0-9]+', now)[0]) + 1}:")
    choose(page, "Points", "XOR")
    said(page, "Step 0")
    choose(page, "Gradient", "numerical gradient")
    page.get_by_role("button", name="One step").press("Enter")  # by the keyboard
    said(page, "Step 1:")


@pytest.mark.slow
def test_a_run_that_diverges_says_so_and_stops(page, address):
    opened(page, f"{address}/train")
    choose(page, "Optimizer", "SGD")
    choose(page, "Activation", "LeakyReLU")
    page.get_by_label("Learning rate").fill("10")
    page.get_by_label("Learning rate").press("Enter")
    page.get_by_role("button", name="Start").click()
    said(page, "the loss is no longer a number")
    page.get_by_role("button", name="Start").wait_for()  # no longer Stop


def test_a_page_of_elsewhere_cannot_ask_by_a_name_that_leads_here(browser, address):
    with browser.new_context() as other:
        answered = other.request.get(address, headers={"Host": "elsewhere.example"})
        assert answered.status == 400
        assert other.request.get(address).status == 200


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        (None, "neither a safetensors file"),
        ((64, 5, 7), "the network gives 7 numbers, expected one a digit"),
        ((10, 5, 10), "the network takes 10 features"),
    ],
)
def test_a_file_that_reads_no_digits_is_refused_in_a_line(tmp_path, sizes, says):
    pytest.importorskip("nicegui", reason=NO_PAGE)
    file = tmp_path / "no.safetensors"
    if sizes is None:
        file.write_bytes(b"nothing")
    else:
        weights.save(xnet.TwoLayerNet(*sizes), file)
    done = CliRunner().invoke(cli.app, ["play", "--no-browser", str(file)])
    assert done.exit_code != 0
    assert says in str(done.exception)


def test_what_predicts_no_probabilities_is_refused(tmp_path):
    pytest.importorskip("nicegui", reason=NO_PAGE)
    net = xnet.TwoLayerNet(64, 5, 10)
    net.loss_layer = xnet.layers.BinaryCrossEntropy()
    weights.save(net, tmp_path / "no.safetensors")
    done = CliRunner().invoke(cli.app, ["play", "--no-browser", str(tmp_path / "no.safetensors")])
    assert "no probabilities" in str(done.exception)


def test_a_port_that_is_taken_is_said_in_a_line():
    pytest.importorskip("nicegui", reason=NO_PAGE)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "xnet_command", "play", "--no-browser", "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert f"port {port} of 127.0.0.1" in done.stderr


def test_networks_of_one_name_are_told_apart(tmp_path, monkeypatch):
    pages = pytest.importorskip("xnet.tools.play.pages", reason=NO_PAGE)
    files = [tmp_path / folder / "mine.safetensors" for folder in "ab"]
    for file in files:
        file.parent.mkdir()
        weights.save(xnet.TwoLayerNet(64, 5, 10), file)
    served = []
    monkeypatch.setattr(pages, "serve", lambda networks, *_: served.append(list(networks)))
    for given in (files, files[:1]):
        done = CliRunner().invoke(cli.app, ["play", *map(str, given)])
        assert done.exit_code == 0, done.output
    assert served == [["digits", *map(str, files)], ["digits", "mine.safetensors"]]
