"""Makes the virtual environment, with pip in it: `python3 .ci/environment.py FOLDER`.

Debian keeps ensurepip in a package of its own, python3-venv. Where that is missing, the wheel of pip is
fetched from PyPI, and its sum is compared with the one below before it is used.
"""

import hashlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import urllib.request
import venv
from pathlib import Path

INDEX = "https://pypi.org/simple/pip/"
INDEX_TYPE = "application/vnd.pypi.simple.v1+json"
WHEEL = "pip-26.3-py3-none-any.whl"
SHA256 = "f3b60b20ffaadd4415ed7957212a38ac63fa4c5fa375bd0f4a797777940fad13"


def main(folder: Path) -> None:
    has_ensurepip = importlib.util.find_spec("ensurepip") is not None
    venv.EnvBuilder(symlinks=True, with_pip=has_ensurepip).create(folder)
    if not has_ensurepip:
        install_pip(folder / "bin" / "python")


def install_pip(python: Path) -> None:
    try:
        listing = json.loads(fetch(INDEX))
        content = fetch(next(file["url"] for file in listing["files"] if file["filename"] == WHEEL))
    except (OSError, ValueError, StopIteration) as fault:
        sys.exit(f"make: pip could not be fetched ({fault}); apt-get install python3-venv brings it")
    if hashlib.sha256(content).hexdigest() != SHA256:
        sys.exit(f"make: what came as {WHEEL} is not that file; apt-get install python3-venv brings pip")
    with tempfile.TemporaryDirectory() as temporary:
        wheel = Path(temporary) / WHEEL
        wheel.write_bytes(content)
        subprocess.run([python, f"{wheel}/pip", "install", "--quiet", "--no-index", wheel], check=True)


def fetch(address: str) -> bytes:
    request = urllib.request.Request(address, headers={"Accept": f"{INDEX_TYPE}, */*;q=0.1"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
