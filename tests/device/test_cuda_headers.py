"""What doctor says of CUDA's headers, on folders as NVIDIA's packages and toolkits lay them out."""

from __future__ import annotations

from pathlib import Path

import pytest

from archport.device import cuda_headers


def make(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    return folder


@pytest.fixture
def site(tmp_path):
    return tmp_path / "site-packages"


def search(site: Path, major: str = "13", toolkit: Path = Path("/nowhere"), **environment: str) -> cuda_headers.Headers:
    return cuda_headers.search(site, major=major, environment=environment, toolkit=toolkit)


def test_what_mlx_for_cuda_13_brings_lacks_the_header_of_quantised_products(site):
    folder = make(site / "nvidia" / "cu13" / "include", "cuda_fp16.h", "crt/host_defines.h")
    found = search(site)
    assert (found.folder, found.missing) == (folder, ("crt/mma.h",))
    assert "products of quantised weights" in found.advice
    assert "nvidia-cuda-crt" in found.advice


def test_with_the_package_that_holds_it_nothing_is_wrong(site):
    make(site / "nvidia" / "cu13" / "include", "cuda_fp16.h", "crt/mma.h")
    assert search(site).advice == ""


def test_packages_beside_mlx_come_before_a_whole_toolkit(site, tmp_path):
    folder = make(site / "nvidia" / "cu13" / "include", "cuda_fp16.h")
    toolkit = make(tmp_path / "cuda" / "include", "cuda_fp16.h", "crt/mma.h").parent
    found = search(site, CUDA_HOME=str(toolkit))
    assert (found.folder, found.missing) == (folder, ("crt/mma.h",))
    assert f"remove {folder}" in found.advice


@pytest.mark.parametrize("name", ["CUDA_HOME", "CUDA_PATH"])
def test_without_packages_the_toolkit_that_is_named_is_used(site, tmp_path, name):
    toolkit = make(tmp_path / "cuda" / "include", "cuda_fp16.h", "crt/mma.h").parent
    found = search(site, **{name: str(toolkit)})
    assert (found.folder, found.advice) == (toolkit / "include", "")


def test_the_usual_place_is_looked_at_last(site, tmp_path):
    toolkit = make(tmp_path / "cuda" / "include", "cuda_fp16.h", "crt/mma.h").parent
    assert search(site, toolkit=toolkit).folder == toolkit / "include"


@pytest.mark.parametrize("major", ["12", "13"])
def test_where_there_is_no_folder_both_places_are_named(site, major):
    found = search(site, major)
    assert found.folder is None
    assert str(site / cuda_headers.PACKAGED[major]) in found.advice
    assert "/nowhere/include" in found.advice
    assert f"CUDA {major} toolkit" in found.advice


@pytest.mark.only_on("cuda", reason="a CPU compiles no CUDA kernel")
def test_this_machine_has_what_mlx_needs():
    assert cuda_headers.search().advice == ""
