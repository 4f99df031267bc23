"""Writes requirements/hashes.lock: the SHA-256 of each file that the locks' packages may be installed from.

    python requirements/hashes.py

For Python 3.11 on Linux x86-64, asked of the indexes that pip is set up to use; needs uv and a network. To be run after
a lock has changed, by whoever trusts what those indexes hold at that time.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import install

HEADER = """\
# SHA-256 of the files that the packages of the other locks are installed from; written by requirements/hashes.py.
# Whoever changes a lock runs it again; requirements/install.py holds every file against these.
"""


def main() -> int:
    """Ask for every lock, write the file, and return uv's exit status where it could not be asked."""
    starter = install.uv()
    options, variables = install.for_uv(install.pip_settings())
    found: dict[str, set[str]] = {}
    for lock in sorted(install.LOCK.parent.glob("*.lock")):
        if lock == install.HASHES:
            continue
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "pylock.toml"
            command = [*starter, "pip", "compile", "--quiet", "--no-deps", "--generate-hashes", *options]
            command += ["--python-version", "3.11.9", str(lock), "--output-file", str(target)]
            done = subprocess.run(command, env=install.os.environ | variables, stdout=subprocess.DEVNULL, check=False)
            if done.returncode:
                return done.returncode
            for package in tomllib.loads(target.read_text(encoding="utf-8"))["packages"]:
                files = [*package.get("wheels", []), *filter(None, [package.get("sdist")])]
                hashes = found.setdefault(f"{package['name']}=={package['version']}", set())
                hashes |= {f"sha256:{file['hashes']['sha256']}" for file in files}
    lines = [" ".join([name, *sorted(hashes)]) for name, hashes in sorted(found.items())]
    install.HASHES.write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
