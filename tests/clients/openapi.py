"""Random requests by the OpenAPI document, made by schemathesis, against a running server: `make test-openapi`.

Asks until the server has counted the requests that are wanted: none is a 500, none has no answer within a minute, and
none is a 503 or 504, which need a server that loads, ends, fails or is too slow. Writes what it saw to openapi.json
next to this file.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from run import HERE, environment, outside, running_server, version

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
# Seconds after which a request hangs.
LONGEST = 60
_COUNT = re.compile(r'^archport_requests_total\{path="([^"]*)",status="(\d+)"\} ([0-9.e+]+)$', re.M)


def counted(url: str) -> dict[str, dict[str, int]]:
    """Requests by address and status, as the server counted them; its own operations are left out."""
    text = urllib.request.urlopen(f"{url}/metrics", timeout=LONGEST).read().decode()
    found: dict[str, dict[str, int]] = {}
    for path, status, count in _COUNT.findall(text):
        if not path.startswith(("/health", "/metrics", "other")):
            found.setdefault(path, {})[status] = round(float(count))
    return found


def total(counts: dict[str, dict[str, int]]) -> int:
    """All of them."""
    return sum(sum(statuses.values()) for statuses in counts.values())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    python = environment("schemathesis", ["schemathesis"])
    begin, rounds, counts = time.monotonic(), 0, {}
    with running_server() as url:
        while total(counts) < options.requests and rounds < 20:
            command = [python.parent / "schemathesis", "run", f"{url}/openapi.json", "--checks", CHECKS]
            command += ["--max-examples", "60", "--seed", str(options.seed + rounds), "--request-timeout", str(LONGEST)]
            command += ["--phases", "examples,coverage,fuzzing", "--no-shrink", "--continue-on-failure", "--no-color"]
            done = subprocess.run(command, cwd=python.parents[1], env=outside(), capture_output=True, text=True)
            counts, rounds = counted(url), rounds + 1
            print(f"{total(counts)} requests", flush=True)
            if done.returncode:
                sys.exit(done.stdout[-20000:] + done.stderr[-5000:])
        ready = urllib.request.urlopen(f"{url}/health/ready", timeout=LONGEST).status == 200
    failed = {path: {code: n for code, n in codes.items() if code >= "500"} for path, codes in counts.items()}
    failed = {path: codes for path, codes in failed.items() if codes}
    result = {
        "schemathesis": version(python, "schemathesis"), "requests": total(counts), "seed": options.seed,
        "seconds": round(time.monotonic() - begin), "ready_at_the_end": ready, "statuses": counts,
    }  # fmt: skip
    if failed or not ready or total(counts) < options.requests:
        sys.exit(f"failed: {failed}; {json.dumps(result)}")
    (HERE / "openapi.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
