"""Holds what is installed against the known vulnerabilities (PyPI's advisories), where those can be asked.

    python requirements/audit.py [PYTHON ...]

Looks through the packages of each interpreter, with pip-audit, which must be installed beside this one. Without a
network, or without pip-audit, it says so and ends with 0; with something found it ends with 1.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

SITES = "import json, sysconfig; print(json.dumps(sorted({sysconfig.get_path(it) for it in ('purelib', 'platlib')})))"
SECONDS = 10
NOT_ASKED = ("ConnectionError", "ServiceError", "Max retries", "Failed to upgrade", "Could not connect", "timed out")


def audit(python: str) -> int:
    """Say what is known of the packages of one interpreter; return 1 where something is."""
    if not Path(python).exists():
        print(f"audit of {python}: skipped: it is not there")
        return 0
    sites: list[str] = json.loads(subprocess.run([python, "-c", SITES], capture_output=True, check=True).stdout)
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "audit.json"
        command = [
            sys.executable,
            "-m",
            "pip_audit",
            "--format",
            "json",
            "--output",
            str(told),
            "--timeout",
            str(SECONDS),
        ]
        command += ["--progress-spinner", "off", *(word for site in sites for word in ("--path", site))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not told.is_file():
            known = "No module named pip_audit" in done.stderr or any(word in done.stderr for word in NOT_ASKED)
            print(f"audit of {python}: skipped: {(done.stderr.strip().splitlines() or ['no answer'])[-1][:300]}")
            return 0 if known else done.returncode or 1
        packages = json.loads(told.read_text(encoding="utf-8"))["dependencies"]
    found = [(it, one) for it in packages for one in it.get("vulns", ())]
    asked = sum("skip_reason" not in it for it in packages)
    if not asked:
        print(f"audit of {python}: skipped: the index here has no advisories on any of its {len(packages)} packages")
        return 0
    print(f"audit of {python}: {asked} packages, {len(packages) - asked} not known to the index, {len(found)} findings")
    for package, one in found:
        mended = ", ".join(one["fix_versions"]) or "no release"
        print(f"  {package['name']} {package['version']}: {one['id']}, mended in {mended}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(max(map(audit, sys.argv[1:] or [sys.executable])))
