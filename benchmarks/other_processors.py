"""The same bits on processors that are not here? xnet on Debian's NumPy for each, by emulation.

What each computes is compared with what is published and with this machine: every result of
`xnet parity` (`xnet/tools/fingerprints.json`), every test vector
(`docs/reproducible/vectors.json`), and the weights after 50 steps on MNIST, 784-50-10, by SGD and
Adam, whose hashes are those of ``xnet train --dataset mnist --iterations 50 --reproducible``. On
aarch64, riscv64, ppc64le and big-endian s390x all have to be equal. Two have to be refused: i386,
where Debian's Python and NumPy round twice, and armhf, where vectors take subnormal numbers for
zeros and roots are not rounded correctly; what they compute all the same is in the report, too.

It needs a Debian, or what is made of it, on x86-64: apt, dpkg, `qemu-user-static`, and a
`debian-archive-keyring` that knows Debian 13. The rest is downloaded from the mirror of Debian that
apt knows, 20 MB a processor, and unpacked in a temporary folder of 120 MB that goes again; nothing
is installed, and it need not be root. It also needs what tests need, and MNIST, as `xnet train`
does.

i386 runs on the processor itself, in half a minute; the others take a few minutes each, but for
aarch64 with SVE, which takes a quarter of an hour.

    python benchmarks/other_processors.py               # all, one after the other
    python benchmarks/other_processors.py s390x armhf   # these; the report keeps the others
    python benchmarks/other_processors.py --quick       # in a third of the time
    python benchmarks/other_processors.py s390x --debian forky   # of another release

With --quick the results of `xnet parity` are left out, and two of the four trainings; what is
refused is not asked for more.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

HOME = Path(__file__).parents[1]
NAME = "other_processors"
RELEASE = "trixie"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
PACKAGES = ("python3-numpy", "python3-threadpoolctl", "libopenblas0-pthread")
STEPS = 50
ITSELF = "on the processor itself"
DTYPES = ("float32", "float64")
TRAININGS = [(optimizer, dtype) for optimizer in ("SGD", "Adam") for dtype in DTYPES]
QUICK = [("SGD", "float32"), ("Adam", "float64")]


@dataclass(frozen=True)
class Processor:
    """One that Debian is made for.

    Attributes
    ----------
    debian
        Its name in Debian.
    loader
        What runs a program there, if this processor itself can: Debian's dynamic loader.
    emulator
        Else the name of QEMU's emulator.
    model
        Which processor it is to be; None for one that has all that QEMU knows.
    refused
        Whether its arithmetic is known not to be IEEE 754's.
    """

    debian: str
    emulator: str | None = None
    model: str | None = None
    loader: str | None = None
    refused: bool = False


PROCESSORS = {
    "aarch64": Processor("arm64", "aarch64", "neoverse-n1"),
    "aarch64-sve": Processor("arm64", "aarch64"),
    "riscv64": Processor("riscv64", "riscv64"),
    "s390x": Processor("s390x", "s390x"),
    "ppc64le": Processor("ppc64el", "ppc64le"),
    "i386": Processor("i386", loader="lib/ld-linux.so.2", refused=True),
    "armhf": Processor("armhf", "arm", refused=True),
}


# -- what each processor is asked; it has NumPy and xnet, and nothing else of what is used here


def answers(quick: bool) -> dict[str, Any]:
    """What this processor, NumPy and xnet give in reproducible mode; why not, where refused."""
    import numpy as np
    import threadpoolctl

    import xnet
    from xnet.arithmetic import failures, unchecked
    from xnet.errors import BackendError

    config: Any = np.show_config(mode="dicts")
    simd = config["SIMD Extensions"]
    found: dict[str, Any] = {
        "compiled for": sysconfig.get_config_var("MULTIARCH"),
        "bits": 8 * np.intp().itemsize,
        "order": sys.byteorder,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "vectors of NumPy": [*simd.get("baseline", []), *simd.get("found", [])],
    }
    np.ones((9, 9)) @ np.ones((9, 9))
    found["blas"] = [
        f"{Path(library['filepath']).name} {library['version']}: "
        f"{library.get('architecture', '?')}, {library['num_threads']} thread(s)"
        for library in threadpoolctl.threadpool_info()
        if library["user_api"] == "blas"
    ]
    try:
        xnet.resolve("numpy", reproducible=True)
    except BackendError as error:
        found["refused"] = str(error)
        with unchecked():
            numpy = xnet.resolve("numpy", reproducible=True)
            found["failures of NumPy"] = [str(failure) for failure in failures(numpy)]
            return found if quick else found | results() | vectors_and_hashes(TRAININGS)
    if quick:
        return found | vectors_and_hashes(QUICK)
    return found | results() | vectors_and_hashes(TRAININGS)


def results() -> dict[str, Any]:
    """How many results of `xnet parity` are published and computed here, and which differ."""
    from xnet.tools import fingerprints

    published = fingerprints.load(fingerprints.PUBLISHED)
    taken = fingerprints.taken(DTYPES, published.steps, published.seed, show=said)
    apart = fingerprints.differences(taken, published.found)
    return {
        "results": len(taken.keys() & published.found.keys()),
        "results apart": [difference.name for difference in apart],
    }


def vectors_and_hashes(trainings: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """How many test vectors there are, which come out otherwise, and the hashes of trainings."""
    import xnet

    sys.path.append(str(HOME / "tests"))
    make_vectors: Any = import_module("make_vectors")
    vectors: list[Any] = json.loads(make_vectors.PATH.read_text())["vectors"]
    said("test vectors")
    backend = xnet.resolve("numpy", reproducible=True)
    wrong: Iterable[Any] = make_vectors.differences(backend, vectors)
    (x, t), _ = xnet.datasets.load_mnist()
    return {
        "vectors": len(vectors),
        "vectors apart": [f"{name}: {output}" for name, output in wrong],
        "sha256": {
            f"{optimizer}, {dtype}": trained(x, t, optimizer, dtype)
            for optimizer, dtype in trainings
        },
    }


def trained(x: Any, t: Any, optimizer: str, dtype: str) -> str:
    """The hash that `xnet train` ends with, by the mini-batches and settings that it takes."""
    import xnet
    from xnet.layers import Affine, ReLU
    from xnet.optimizers import SGD, Adam

    said(f"{STEPS} steps of {optimizer} in {dtype}")
    stepper = {"SGD": SGD(lr=0.1), "Adam": Adam()}[optimizer]
    layers = [Affine(784, 50, "he"), ReLU(), Affine(50, 10, "he")]
    with xnet.use_backend("numpy", reproducible=True):
        network = xnet.Network(layers, seed=0, dtype=dtype)
    order = xnet.random.Generator(0).permutation(len(x))
    for batch in order[: STEPS * 100].reshape(STEPS, 100):
        network.train_step(x[batch], t[batch], stepper)
    return xnet.weights.sha256(network)


def said(text: str) -> None:
    """Say what is being done, on a terminal."""
    if sys.stderr.isatty():
        print(f"\r{text:70.70}", end="", file=sys.stderr, flush=True)


# -- a folder with what Debian has for a processor


def mirror() -> str:
    """The mirror of Debian that apt is told to use here."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(LABEL)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for line in listed.splitlines():
        where, _, label = line.partition(" ")
        if label == "Debian":
            return where
    sys.exit("apt knows no mirror of Debian here: apt-get update may not have been run yet")


def unpack(processor: Processor, release: str, folder: Path) -> Path:
    """Python, NumPy and a BLAS of a release for it, and this xnet, as a tree under `folder`."""
    root, apt = folder / "root", folder / "apt"
    for place in (root, apt / "lists/partial", apt / "archives/partial"):
        place.mkdir(parents=True)
    (apt / "status").touch()  # nothing is installed there
    (apt / "sources").write_text(f"deb [signed-by={KEYRING}] {mirror()} {release} main\n")
    (apt / "conf").write_text(
        f'APT::Architecture "{processor.debian}";\n'
        f'APT::Architectures {{ "{processor.debian}"; }};\n'
        f'APT::Sandbox::User "";\n'
        f'Dir::State "{apt}";\n'
        f'Dir::State::status "{apt}/status";\n'
        f'Dir::Cache "{apt}";\n'
        f'Dir::Etc::sourcelist "{apt}/sources";\n'
        f'Dir::Etc::sourceparts "/dev/null";\n'
    )
    get = ("apt-get", "-q", "-y", "--no-install-recommends")
    environment = os.environ | {"APT_CONFIG": str(apt / "conf")}
    for command in ([*get, "update"], [*get, "--download-only", "install", *PACKAGES]):
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    for package in sorted((apt / "archives").glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", package, root], check=True)
    for name in ("lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")  # as Debian's installation does
    where = root / "usr/lib/python3/dist-packages"
    pip = (sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation")
    subprocess.run([*pip, "--no-compile", "--target", where, HOME], check=True)
    return root


def command(processor: Processor, root: Path) -> list[str]:
    """What runs a Python program on it."""
    libraries = next((root / "usr/lib").glob("*-linux-gnu*"))
    paths = f"{libraries}:{libraries}/openblas-pthread"
    python = str(root / "usr/bin/python3")
    if processor.loader is not None:
        return [str(root / processor.loader), "--library-path", paths, python]
    model = [] if processor.model is None else ["-cpu", processor.model]
    where = ["-L", str(root), "-E", f"LD_LIBRARY_PATH={paths}"]
    return [emulator(processor), *model, *where, python]


def emulator(processor: Processor) -> str:
    """QEMU's program for it."""
    program = shutil.which(f"qemu-{processor.emulator}-static")
    if program is None:
        sys.exit(f"qemu-{processor.emulator}-static is not here: apt-get install qemu-user-static")
    return program


def asked(prefix: list[str], quick: bool, **settings: str) -> dict[str, Any]:
    """What a Python that is started so answers."""
    started = time.monotonic()
    done = subprocess.run(
        [*prefix, __file__, "--answer", *["--quick"] * quick],
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"} | settings,
        stdout=subprocess.PIPE,
        check=True,
    )
    said("")
    return json.loads(done.stdout) | {"seconds": round(time.monotonic() - started)}


def run(name: str, release: str, quick: bool) -> dict[str, Any]:
    """What a processor of `PROCESSORS` answers, and how it was run."""
    processor = PROCESSORS[name]
    with tempfile.TemporaryDirectory() as folder:
        root = unpack(processor, release, Path(folder))
        how = ITSELF
        if processor.loader is None:
            version = subprocess.run(
                [emulator(processor), "--version"], capture_output=True, text=True, check=True
            ).stdout
            how = f"qemu-{processor.emulator} {version.split()[2]}, {processor.model or 'max'}"
        found = asked(command(processor, root), quick, PYTHONHOME=f"{root}/usr", PYTHONPATH="")
    return {"processor": name, "how": how, "debian": f"{release} {processor.debian}", **found}


# -- the report


def apart(row: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """The results and vectors that are otherwise than published, and hashes otherwise than here."""
    hashes = row.get("sha256", {}).items()
    return [
        *row.get("results apart", []),
        *row.get("vectors apart", []),
        *(name for name, digest in hashes if digest != here["sha256"][name]),
    ]


def verdict(row: dict[str, Any], here: dict[str, Any]) -> str:
    """What a row of the report says, in a line."""
    compared = row.get("results", 0) + row.get("vectors", 0) + len(row.get("sha256", {}))
    found = apart(row, here)
    equal = f"{len(found)} of {compared} apart, first {found[0]}" if found else f"{compared} equal"
    return f"refused ({row['refused']}); all the same, {equal}" if "refused" in row else equal


def main(names: list[str], release: str = RELEASE, quick: bool = False) -> None:
    """Ask this machine, then the processors of these names, all if none is given."""
    from report import RESULTS, load, machine, save

    if unknown := set(names) - set(PROCESSORS):
        sys.exit(f"unknown processors: {', '.join(unknown)}; there are {', '.join(PROCESSORS)}")
    chosen = names or list(PROCESSORS)
    for name in chosen:
        if PROCESSORS[name].loader is None:
            emulator(PROCESSORS[name])  # said before anything is done, if it is not here
    here = {"processor": "here", "how": ITSELF, **asked([sys.executable], quick)}
    kept = load(NAME)["processors"] if names and (RESULTS / f"{NAME}.json").exists() else []
    rows = {row["processor"]: row for row in kept} | {"here": here}
    print(f"here, {ITSELF}: {verdict(here, here)}", flush=True)
    broken: list[str] = []
    for name in chosen:
        rows[name] = run(name, release, quick)
        print(f"{name}, {rows[name]['how']}: {verdict(rows[name], here)}", flush=True)
        refused = "refused" in rows[name]
        if refused != PROCESSORS[name].refused or (not refused and apart(rows[name], here)):
            broken.append(name)
        save(NAME, {"machine": machine(), "steps": STEPS, "processors": list(rows.values())})
    if broken:
        sys.exit(f"not as promised: {', '.join(broken)}")


def without_handicaps() -> None:
    """As `bench` has it; who asks a processor, which knows no `bench`, has seen to it."""
    if "--answer" not in sys.argv:
        import_module("bench").without_handicaps()


if __name__ == "__main__":
    without_handicaps()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("processors", nargs="*", help=f"of {', '.join(PROCESSORS)}; all if none is")
    parser.add_argument("--debian", default=RELEASE, help="the release, trixie if none is named")
    parser.add_argument("--quick", action="store_true", help="fewer results and trainings")
    parser.add_argument("--answer", action="store_true", help="what each processor is asked")
    given = parser.parse_args()
    if given.answer:
        print(json.dumps(answers(given.quick)))
    else:
        main(given.processors, given.debian, given.quick)
