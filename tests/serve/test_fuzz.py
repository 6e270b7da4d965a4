"""The interface against its own description: whatever is sent, no 5xx, and every answer as it was described."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from serve.processes import server

load_all_checks()
KEPT = CHECKS.get_by_names(
    ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"]
)


OPERATIONS = [
    "POST /v1/embed",
    "POST /v1/search",
    "POST /v1/predict",
    "POST /v1/items",
    "GET /v1/items",
    "DELETE /v1/items/{id}",
    "GET /v1/items/{id}/image",
    "GET /v1/map",
    "GET /v1/model",
    "GET /healthz",
    "GET /readyz",
    "GET /metrics",
]
BARE = ("/v1/map", "/v1/model", "/healthz", "/readyz", "/metrics")


@pytest.fixture(scope="module")
def address(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    run = Path(shutil.copytree(trained_run, tmp_path_factory.mktemp("fuzzed") / "run"))
    with server(run) as process:
        yield process.address
        with process.client() as client:
            counts = re.findall(r"^nearfar_requests_total.* (\S+)$", client.get("/metrics").text, re.MULTILINE)
        assert sum(map(float, counts)) > 10 * len(OPERATIONS), "hardly anything was sent"
        assert process.popen.poll() is None, "the server has ended"


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_no_request_makes_a_defect(address: str, operation: str, mode: GenerationMode) -> None:
    fuzz(address, operation, mode, 25)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("operation", [one for one in OPERATIONS if not one.endswith(BARE)])
def test_no_request_of_many_makes_a_defect(address: str, operation: str, mode: GenerationMode) -> None:
    fuzz(address, operation, mode, 1000)


def fuzz(address: str, operation: str, mode: GenerationMode, examples: int) -> None:
    method, path = operation.split()
    described = schemathesis.openapi.from_url(f"{address}/openapi.json")
    assert {f"{one.ok().method.upper()} {one.ok().path}" for one in described.get_all_operations()} == set(OPERATIONS)

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=described[path][method].as_strategy(generation_mode=mode))
    def check(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=KEPT)

    try:
        check()
    except Unsatisfiable:  # an address that takes nothing has nothing wrong to be sent
        assert mode == GenerationMode.NEGATIVE
        assert path in BARE
